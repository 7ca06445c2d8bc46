"""Item response theory in a router."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.random import Generator
from pydantic import Field
from scipy.special import expit, log_expit

from fleetsim.model_routing.api import Ask, ModelsView, Outcome, Query, best
from fleetsim.model_routing.tags import Tags
from fleetsim.plugins import PolicyConfig

_GRID = np.linspace(-4.0, 4.0, 81)
"""Abilities that are looked at."""


class RadarConfig(PolicyConfig):
    """Parameters of RADAR."""

    weight: Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.5
    """Weight of performance against cost."""
    scalarisation: Literal["linear", "chebyshev"] = "linear"
    """`linear`: the largest ``w p - (1 - w) c``; `chebyshev`: the smallest ``max(w (1 - p), (1 - w) c)``, which also finds arms
    that lie in a hollow of the front."""
    onboard: bool = False
    """Whether the ability of a model that joins is learned from its answers; off: its profile is known at once."""
    enough: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Standard deviation of an ability at which it counts as known."""
    informative: Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.8
    """Requests go to a model that is not known yet if they tell so much of what a request can tell at most, ``p (1 - p) /
    0.25``."""
    cost: Literal["price", "energy", "tokens"] = "price"
    """What is saved: expected list price, energy by the profiles, or tokens of the answer; divided by the largest of the arms."""


class Radar:
    """RADAR: performance by item response theory and cost of each model and reasoning budget, made one number.

    Rule: for every arm, a model at a budget, the chance p of a good answer by the two-parameter model, and the expected cost c,
    divided by the largest; the arm with the largest ``w p - (1 - w) c``, or with the smallest ``max(w (1 - p), (1 - w) c)``. The
    first of equal ones.

    With `onboard` nothing is believed of a model that joins but a normal ability around 0. Requests whose difficulty tells most
    about it (Fisher's information ``p (1 - p)``) go there, at full cost, and every answer whose quality becomes known updates the
    belief on a grid of 81 points from -4 to 4, until its standard deviation is below `enough`; from then on its chances follow
    from the mean.

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
        self.beliefs: dict[int, Any] = {}
        """Of each model that joined: log-probabilities of its ability on the grid."""

    def route(self, query: Query) -> Ask:
        """The best compromise, or a model that is to be known."""
        among = self._models.open()
        chance = query.chance
        for arm in [arm for arm in self.beliefs if arm in among]:
            mean, deviation = self.belief(arm)
            p = float(expit(mean - query.difficulty))
            if deviation > self._config.enough and 4.0 * p * (1.0 - p) >= self._config.informative:
                return self._asks[arm]
            chance = np.where(np.arange(len(chance)) == arm, p if deviation <= self._config.enough else 0.0, chance)
        cost = self._cost(query)
        largest = float(cost.max())
        if largest > 0.0:
            cost = cost / largest
        scores = scalarised(self._config.scalarisation, self._config.weight, chance, cost)
        return self._asks[best(scores, among)]

    def feedback(self, outcome: Outcome) -> None:
        """Learn the ability of a model that joined."""
        belief = self.beliefs.get(outcome.arm)
        if belief is not None:
            z = _GRID - outcome.query.difficulty
            belief += outcome.quality * log_expit(z) + (1.0 - outcome.quality) * log_expit(-z)

    def joined(self, arm: int) -> None:
        """Begin to know a model."""
        if self._config.onboard:
            self.beliefs[arm] = -0.5 * _GRID**2

    def belief(self, arm: int) -> tuple[float, float]:
        """Mean and standard deviation of what is believed of an ability."""
        weight = np.exp(self.beliefs[arm] - self.beliefs[arm].max())
        weight /= weight.sum()
        mean = float(weight @ _GRID)
        return mean, float(np.sqrt(weight @ (_GRID - mean) ** 2))

    def _cost(self, query: Query) -> Any:
        if self._config.cost == "price":
            return self._models.usd(query)
        return self._models.joules(query) if self._config.cost == "energy" else query.output_tokens


def scalarised(how: str, weight: float, chance: Any, cost: Any) -> Any:
    """Scores of arms by their chances and their costs between 0 and 1; the highest is best."""
    if how == "linear":
        return weight * chance - (1.0 - weight) * cost
    return -np.maximum(weight * (1.0 - chance), (1.0 - weight) * cost)
