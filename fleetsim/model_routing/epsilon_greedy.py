"""The simplest bandit."""

from __future__ import annotations

from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.api import Ask, ModelsView, Outcome, Query, best
from fleetsim.model_routing.bandit import Reward, RewardConfig
from fleetsim.model_routing.tags import Tags


class EpsilonGreedyConfig(RewardConfig):
    """Parameters of epsilon-greedy, by default as GreenServ sets them."""

    epsilon: Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})] = 1.0
    """Share of requests for which any arm is drawn, at first."""
    decay: Annotated[float, Field(gt=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.98
    """Factor on it with every answer that is learned from."""
    floor: Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.01
    """It does not fall below this."""


class EpsilonGreedy:
    """Epsilon-greedy: any arm now and then, less and less often; else the one with the highest mean reward so far.

    Rule: with probability epsilon any arm, drawn; else the one with the highest mean reward, the first of equal ones; an arm
    without an answer has mean 0. With every answer that is learned from, epsilon falls by a factor to a floor. It does not look at
    requests. Reward as in `linucb`.

    References
    ----------
    GreenServ, arXiv:2601.17551.
    """

    Config: ClassVar = EpsilonGreedyConfig
    tags: ClassVar[Tags] = Tags(("before",), ("profile",), ("bandit",), "query", ("single",))

    def __init__(self, config: EpsilonGreedyConfig, rng: Generator, models: ModelsView) -> None:
        self._models, self._rng = models, rng
        self._epsilon, self._decay, self._floor = config.epsilon, config.decay, config.floor
        self._reward = Reward(config, models)
        self._count = [0] * models.count
        self._mean = [0.0] * models.count
        self._asks = [Ask(arm) for arm in range(models.count)]

    def route(self, query: Query) -> Ask:
        """Any arm, or the best so far."""
        among = self._models.open()
        if self._rng.random() < self._epsilon:
            return self._asks[among[int(self._rng.integers(len(among)))]]
        return self._asks[best(self._mean, among)]

    def feedback(self, outcome: Outcome) -> None:
        """Learn from an answer."""
        arm = outcome.arm
        self._count[arm] += 1
        self._mean[arm] += (self._reward.of(outcome) - self._mean[arm]) / self._count[arm]
        self._epsilon = max(self._epsilon * self._decay, self._floor)

    def joined(self, arm: int) -> None:
        """Nothing is known of a model that joins."""
        self._count[arm], self._mean[arm] = 0, 0.0
