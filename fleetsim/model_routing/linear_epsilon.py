"""A bandit that looks at requests and tries others now and then."""

from __future__ import annotations

from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.api import Ask, ModelsView, Outcome, Query, best
from fleetsim.model_routing.bandit import Context, ContextConfig, Reward, Ridges
from fleetsim.model_routing.tags import Tags


class LinearEpsilonConfig(ContextConfig):
    """Parameters of linear epsilon-greedy, by default as GreenServ sets them."""

    epsilon: Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})] = 1.0
    """Share of requests for which any arm is drawn, at first."""
    decay: Annotated[float, Field(gt=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.985
    """Factor on it with every answer that is learned from."""
    floor: Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.01
    """It does not fall below this."""
    ridge: Annotated[float, Field(gt=0)] = 0.25
    """What the matrix of an arm begins with, times one."""


class LinearEpsilon:
    """Epsilon-greedy over linear models of rewards: any arm now and then, less and less often; else the one that promises most.

    Rule: with probability epsilon any arm, drawn; else ``argmax theta . x`` of a ridge regression for each arm, the first of equal
    ones. With every answer that is learned from, epsilon falls by a factor to a floor. Context and reward as in `linucb`.

    References
    ----------
    GreenServ, arXiv:2601.17551.
    """

    Config: ClassVar = LinearEpsilonConfig
    tags: ClassVar[Tags] = Tags(("before",), ("query",), ("bandit",), "query", ("single",))

    def __init__(self, config: LinearEpsilonConfig, rng: Generator, models: ModelsView) -> None:
        self._models, self._rng = models, rng
        self._epsilon, self._decay, self._floor = config.epsilon, config.decay, config.floor
        self._context = Context(config, models)
        self._reward = Reward(config, models)
        self.ridges = Ridges(models.count, self._context.size, config.ridge, 1.0, config.discount)
        self._asks = [Ask(arm) for arm in range(models.count)]

    def route(self, query: Query) -> Ask:
        """Any arm, or the best."""
        among = self._models.open()
        if self._rng.random() < self._epsilon:
            return self._asks[among[int(self._rng.integers(len(among)))]]
        return self._asks[best(self.ridges.look(self._context.of(query))[0], among)]

    def feedback(self, outcome: Outcome) -> None:
        """Learn from an answer."""
        self.ridges.update(outcome.arm, self._context.of(outcome.query), self._reward.of(outcome))
        self._epsilon = max(self._epsilon * self._decay, self._floor)

    def joined(self, arm: int) -> None:
        """Nothing is known of a model that joins."""
        self.ridges.forget(arm)
