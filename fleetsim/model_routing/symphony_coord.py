"""Agents that advertise what they can do and how busy they are, and a bandit among the best of them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.api import Ask, ModelsView, Outcome, Query, best
from fleetsim.model_routing.pairs import Latencies, Remembered
from fleetsim.model_routing.tags import Tags
from fleetsim.plugins import PolicyConfig

_Ratio = Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})]
_SIZE = 5
_ONES = np.ones(_SIZE)
_OVERRUN = 1e6


class SymphonyCoordConfig(PolicyConfig):
    """Parameters of Symphony-Coord."""

    screened: Annotated[int, Field(ge=1, le=64, strict=True, json_schema_extra={"unit": "count"})] = 5
    """Arms that are left after the beacons (assumption: the publication does not say)."""
    alpha: Annotated[float, Field(ge=0)] = 0.5
    """How much uncertainty is worth (assumption)."""
    discount: Annotated[float, Field(gt=0, le=1, json_schema_extra={"unit": "ratio"})] = 1.0
    """What is left of an observation after another one; below 1 for worlds that change."""
    latency: _Ratio = 0.2
    """Weight of speed against quality in the reward: one less the latency over `patience`, at least 0 (assumption)."""
    patience: Annotated[float, Field(gt=0, json_schema_extra={"unit": "s"})] = 30.0
    """Latency that is worth nothing (assumption) [s]."""
    memory: Annotated[float, Field(gt=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.1
    """Weight of the last answer in an arm's past success and latency (assumption)."""


class SymphonyCoord:
    """Symphony-Coord: beacons tell who is able and free, and LinUCB chooses among the best of these.

    Rule: of the arms that are there, the `screened` ones with the highest skill in the request's domain less their load; among
    them the highest ``theta . x + alpha sqrt(x' A^-1 x)``, one linear model for all arms, with x = (1, skill, load, past latency,
    past success), the last two as running means; load l and latency (over `patience`) enter as ``l / (1 + l)``. The reward,
    quality and speed end to end, is learned when it is known.

    Charged: 4 ms per decision for the round trip of the beacons (1 round trip and 1 to 5 ms).

    References
    ----------
    Symphony-Coord, arXiv:2602.00966. Read as an abstract only: sizes and context are assumptions.
    """

    Config: ClassVar = SymphonyCoordConfig
    tags: ClassVar[Tags] = Tags(("before",), ("query", "profile", "system"), ("bandit",), "query", ("single",))
    decision_s: ClassVar[float] = 0.004

    def __init__(self, config: SymphonyCoordConfig, rng: Generator, models: ModelsView) -> None:
        self._models, self._config = models, config
        self.inverse = np.eye(_SIZE)
        self._moment = np.zeros(_SIZE)
        self.theta = np.zeros(_SIZE)
        self.success: list[float] = models.mean_quality.tolist()
        """Running mean of the quality of each arm's answers."""
        self._latencies = Latencies(models, config.memory)
        self._skills: list[list[float]] = models.quality.T.tolist()
        self._contexts: Remembered[Any] = Remembered()

    def route(self, query: Query) -> Ask:
        """The highest bound among those that are left."""
        models, config = self._models, self._config
        among = models.open()
        skill = self._skills[query.domain]
        loads = {arm: min(models.load(arm), _OVERRUN) for arm in among}
        if len(among) > config.screened:
            told = sorted(among, key=lambda arm: (-round(skill[arm] - loads[arm], 9), arm))
            among = sorted(told[: config.screened])
        success, patience_s = self.success, config.patience
        x = np.array(
            [
                (1.0, skill[arm], _bounded(loads[arm]), _bounded(latency_s / patience_s), success[arm])
                for arm, latency_s in zip(among, self._latencies.of(among, query), strict=True)
            ]
        )
        variances = ((x @ self.inverse) * x) @ _ONES
        rows = zip((x @ self.theta).tolist(), variances.tolist(), strict=True)
        row = best([mean + config.alpha * max(variance, 0.0) ** 0.5 for mean, variance in rows], range(len(among)))
        self._contexts.keep(query.id, x[row])
        return Ask(among[row])

    def feedback(self, outcome: Outcome) -> None:
        """Learn from an answer."""
        config, arm = self._config, outcome.arm
        self.success[arm] += config.memory * (outcome.quality - self.success[arm])
        self._latencies.learn(outcome)
        x = self._contexts.take(outcome.query.id)
        if x is None:
            return
        speed = max(1.0 - outcome.latency_s / config.patience, 0.0)
        reward = (1.0 - config.latency) * outcome.quality + config.latency * speed
        if config.discount < 1.0:
            self.inverse /= config.discount
            self._moment *= config.discount
        u = self.inverse @ x
        self.inverse -= u[:, None] * (u / (1.0 + float(x @ u)))
        self._moment += reward * x
        self.theta = self.inverse @ self._moment


def _bounded(value: float) -> float:
    return value / (1.0 + value)
