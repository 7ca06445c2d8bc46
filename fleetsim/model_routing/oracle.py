"""Who knows which arms will be right."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.api import Ask, ModelsView, Query, best
from fleetsim.model_routing.tags import Tags
from fleetsim.plugins import PolicyConfig


class OracleConfig(PolicyConfig):
    """Parameters of the oracle."""

    usd_weight: Annotated[float, Field(ge=0, json_schema_extra={"unit": "1/USD"})] = 0.0
    """Quality that a dollar of list price is worth. 0: the price decides between equally good answers only."""


class Oracle:
    """The cheapest of the best answers, known beforehand: the bound that no router can pass.

    Rule: the arm with the highest quality less `usd_weight` times its expected list price; of equal ones the cheapest. It is told
    how each arm would answer, which its class says with ``knows_answers = True``: no deployed router can be. Deciding costs
    nothing.
    """

    Config: ClassVar = OracleConfig
    tags: ClassVar[Tags] = Tags(("before",), ("query", "profile"), ("rule",), "query", ("single",))
    knows_answers: ClassVar[bool] = True

    def __init__(self, config: OracleConfig, rng: Generator, models: ModelsView) -> None:
        self._models, self._weight = models, config.usd_weight

    def route(self, query: Query) -> Ask:
        """By what can be seen, where nobody tells more."""
        return self.route_knowing(query, query.chance)

    def route_knowing(self, query: Query, quality: Any) -> Ask:
        """The best of all answers."""
        usd = self._models.usd(query)
        largest = float(usd.max())
        cheap = usd / largest if largest > 0.0 else usd
        return Ask(best(quality - self._weight * usd - 1e-6 * cheap, self._models.open()))
