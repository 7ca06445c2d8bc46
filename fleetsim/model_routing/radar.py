"""Item response theory in a router."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.api import Ask, ModelsView, Query, best
from fleetsim.model_routing.tags import Tags
from fleetsim.plugins import PolicyConfig


class RadarConfig(PolicyConfig):
    """Parameters of RADAR."""

    weight: Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.5
    """Weight of performance against cost."""
    scalarisation: Literal["linear", "chebyshev"] = "linear"
    """`linear`: the largest ``w p - (1 - w) c``; `chebyshev`: the smallest ``max(w (1 - p), (1 - w) c)``, which also finds arms
    that lie in a hollow of the front."""
    cost: Literal["price", "energy", "tokens"] = "price"
    """What is saved: expected list price, energy by the profiles, or tokens of the answer; divided by the largest of the arms."""


class Radar:
    """RADAR: performance by item response theory and cost of each model and reasoning budget, made one number.

    Rule: for every arm, a model at a budget, the chance p of a good answer by the two-parameter model, and the expected cost c,
    divided by the largest; the arm with the largest ``w p - (1 - w) c``, or with the smallest ``max(w (1 - p), (1 - w) c)``. The
    first of equal ones.

    Charged: 7 ms per decision, as the authors measured. Abilities are the profile's and difficulties are seen with the error of
    `quality.features`: the published predictor is linear in an embedding.

    References
    ----------
    RADAR, arXiv:2509.25426 (ICLR 2026).
    """

    Config: ClassVar = RadarConfig
    tags: ClassVar[Tags] = Tags(("before",), ("query", "profile"), ("supervised",), "query", ("single", "budget"))
    decision_s: ClassVar[float] = 0.007

    def __init__(self, config: RadarConfig, rng: Generator, models: ModelsView) -> None:
        self._models, self._config = models, config
        self._asks = [Ask(arm) for arm in range(models.count)]

    def route(self, query: Query) -> Ask:
        """The best compromise."""
        cost = self._cost(query)
        largest = float(cost.max())
        if largest > 0.0:
            cost = cost / largest
        scores = scalarised(self._config.scalarisation, self._config.weight, query.chance, cost)
        return self._asks[best(scores, self._models.open())]

    def _cost(self, query: Query) -> Any:
        if self._config.cost == "price":
            return self._models.usd(query)
        return self._models.joules(query) if self._config.cost == "energy" else query.output_tokens


def scalarised(how: str, weight: float, chance: Any, cost: Any) -> Any:
    """Scores of arms by their chances and their costs between 0 and 1; the highest is best."""
    if how == "linear":
        return weight * chance - (1.0 - weight) * cost
    return -np.maximum(weight * (1.0 - chance), (1.0 - weight) * cost)
