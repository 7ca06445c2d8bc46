"""The fewest joules that are good enough."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.api import Ask, ModelsView, Outcome, Query, best
from fleetsim.model_routing.tags import Tags
from fleetsim.plugins import PolicyConfig

_Ratio = Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})]


class EnergyAwareConfig(PolicyConfig):
    """Parameters of energy-aware routing."""

    floor: _Ratio = 0.5
    """Quality that answers are to have (assumption)."""
    kept: Literal["each", "mean"] = "each"
    """`each`: every request goes to an arm whose predicted chance reaches the floor; `mean`: answers reach it on average, by a
    price of quality that rises while they do not."""
    slack: _Ratio = 0.05
    """How much below the best arm's chance one may be that is taken where none reaches the floor (assumption)."""
    latency: Annotated[float, Field(gt=0, json_schema_extra={"unit": "s"})] | None = None
    """Expected latency that an arm may have; default: any [s]."""
    rate: Annotated[float, Field(gt=0)] = 0.05
    """Step of the price of quality at an answer (`kept: mean`; assumption)."""


class EnergyAware:
    """Energy as the objective: the arm that takes the fewest joules among those that are good enough and fast enough.

    Rule: of the arms whose expected latency is within the limit (all, if none is), with `each`, the fewest expected joules among
    those whose chance p reaches the floor, or comes within `slack` of the best one where none does. With `mean`, the least
    ``e / e_max + mu (1 - p)`` with the dual price ``mu <- [mu + rate (floor - quality)]+`` after each answer that is graded.
    Joules are those of the profile per token, prompt and expected answer.

    Charged: nothing beyond the predictor's time that the scenario gives.

    References
    ----------
    Workload-Router-Pool, arXiv:2603.21354, direction 19 (energy as a routing objective); the dual form as in GAR-PD
    (arXiv:2605.11603), whose router by carbon is `gar-pd`.
    """

    Config: ClassVar = EnergyAwareConfig
    tags: ClassVar[Tags] = Tags(("before",), ("query", "profile", "system"), ("rule",), "query", ("single",))

    def __init__(self, config: EnergyAwareConfig, rng: Generator, models: ModelsView) -> None:
        self._models, self._config = models, config
        self.price = 0.0
        """Of quality, in shares of the joules of the arm that takes most (mu)."""

    def route(self, query: Query) -> Ask:
        """The thriftiest of those that are good enough."""
        models, config = self._models, self._config
        among = models.open()
        if config.latency is not None:
            among = [arm for arm in among if models.latency_s(arm, query) <= config.latency] or among
        joules, chance = models.joules(query).tolist(), query.chance.tolist()
        largest = max(joules) or 1.0
        if config.kept == "mean":
            rows = zip(joules, chance, strict=True)
            return Ask(best([-energy / largest - self.price * (1.0 - p) for energy, p in rows], among))
        enough = [arm for arm in among if chance[arm] >= config.floor]
        if not enough:
            top = max([chance[arm] for arm in among]) - config.slack
            enough = [arm for arm in among if chance[arm] >= top]
        return Ask(best([-energy / largest for energy in joules], enough))

    def feedback(self, outcome: Outcome) -> None:
        """The price of quality moves."""
        self.price = max(self.price + self._config.rate * (self._config.floor - outcome.quality), 0.0)
