"""Scores of models that follow what they did last."""

from __future__ import annotations

from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.api import Ask, ModelsView, Outcome, Query, best
from fleetsim.model_routing.bandit import Reward, RewardConfig


class OrchConfig(RewardConfig):
    """Parameters of ORCH's router."""

    smoothing: Annotated[float, Field(gt=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.1
    """Weight of the last reward in the score of its arm (assumption: the publication does not say)."""


class Orch:
    """ORCH's router: the model with the highest moving average of rewards.

    Rule: ``s <- (1 - b) s + b r`` for the arm that answered; the highest score is asked, the first of equal ones. Scores begin with
    the mean quality of the profile, so that nothing is explored that looks worse than it is: as published, there is no exploration.
    Reward as in `linucb`.

    Not modelled: analysts in parallel and the agent that merges what they say.

    References
    ----------
    ORCH, arXiv:2602.01797. Read as an abstract only.
    """

    Config: ClassVar = OrchConfig

    def __init__(self, config: OrchConfig, rng: Generator, models: ModelsView) -> None:
        self._models, self._smoothing = models, config.smoothing
        self._reward = Reward(config, models)
        self._scores: list[float] = models.mean_quality.tolist()
        self._asks = [Ask(arm) for arm in range(models.count)]

    def route(self, query: Query) -> Ask:
        """The best so far."""
        return self._asks[best(self._scores, self._models.open())]

    def feedback(self, outcome: Outcome) -> None:
        """Move the score of the arm that answered."""
        arm = outcome.arm
        self._scores[arm] += self._smoothing * (self._reward.of(outcome) - self._scores[arm])
