"""Few candidates by their beacons, one of them by a bandit."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.api import Ask, ModelsView, Outcome, Query, best
from fleetsim.model_routing.bandit import Reward, RewardConfig

_FEATURES = 5
"""One, skill, load, latency, past success."""


class SymphonyConfig(RewardConfig):
    """Parameters of Symphony-Coord."""

    candidates: Annotated[int, Field(ge=1, le=1000, strict=True, json_schema_extra={"unit": "count"})] = 5
    """Arms that the beacons leave over (assumption)."""
    alpha: Annotated[float, Field(ge=0)] = 0.5
    """Weight of what is not known yet (assumption)."""
    regularisation: Annotated[float, Field(gt=0)] = 1.0
    """What the matrix begins with, times one (assumption)."""
    smoothing: Annotated[float, Field(gt=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.05
    """Weight of the last answer in an arm's past success (assumption)."""
    discount: Annotated[float, Field(gt=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.995
    """What is left of an observation after another one: what heals after shifts (assumption)."""


class Symphony:
    """Symphony-Coord: beacons tell who is able and free, a bandit on features of the pair chooses among the few that are left.

    Rule: the arms with the highest skill in the domain less their load, so many as `candidates`; of these
    ``argmax theta . x + alpha sqrt(x' A^-1 x)`` with one theta for all arms and x = (1, skill, load, latency, past success); the
    first of equal ones. Skill is the profile's quality in the domain, load the requests at the arm's replicas over those that run
    at a time, latency the expected one over the largest of the candidates. When an answer's quality is known, ``A <- g A + x x'``,
    ``b <- g b + r x`` with the x of the decision; reward as in `linucb`.

    Charged: 3 ms per decision for a round of beacons (1 to 5 ms).

    References
    ----------
    Symphony-Coord, arXiv:2602.00966. Read as an abstract only: sizes and weights are ours.
    """

    Config: ClassVar = SymphonyConfig
    decision_s: ClassVar[float] = 0.003

    def __init__(self, config: SymphonyConfig, rng: Generator, models: ModelsView) -> None:
        self._config, self._models = config, models
        self._reward = Reward(config, models)
        self._inverse = np.eye(_FEATURES) / config.regularisation
        self._moment = np.zeros(_FEATURES)
        self._theta = np.zeros(_FEATURES)
        self._success = np.array(models.mean_quality)
        self._asked: dict[int, Any] = {}
        """Features of decisions whose outcome is not known yet, by request."""
        self._asks: list[Ask] = [Ask(arm) for arm in range(models.count)]

    def route(self, query: Query) -> Ask:
        """The best of the candidates."""
        models, config = self._models, self._config
        among = models.open()
        load = np.array([min(models.load(arm), 10.0) for arm in among])
        skill = models.quality[among, query.domain]
        first = np.argsort(np.round(load - skill, 9), kind="stable")[: config.candidates]
        places: list[int] = sorted(first.tolist())
        arms = [among[i] for i in places]
        latency = np.array([min(models.latency_s(arm, query), 1e6) for arm in arms])
        x = np.column_stack(
            (np.ones(len(arms)), skill[places], load[places], latency / latency.max(), self._success[arms])
        )
        bound = x @ self._theta + config.alpha * np.sqrt(np.maximum(((x @ self._inverse) * x).sum(axis=1), 0.0))
        place: int = best(bound, range(len(arms)))
        self._asked[query.id] = x[place]
        if len(self._asked) > 100_000:
            del self._asked[next(iter(self._asked))]
        return self._asks[arms[place]]

    def feedback(self, outcome: Outcome) -> None:
        """Learn from an answer."""
        arm, config = outcome.arm, self._config
        self._success[arm] += config.smoothing * (outcome.quality - self._success[arm])
        x = self._asked.pop(outcome.query.id, None)
        if x is None:
            return
        self._inverse /= config.discount
        u = self._inverse @ x
        self._inverse -= np.outer(u, u / (1.0 + float(x @ u)))
        self._moment = config.discount * self._moment + self._reward.of(outcome) * x
        self._theta = self._inverse @ self._moment

    def joined(self, arm: int) -> None:
        """Of a model that joins the profile is all that is known."""
        self._success[arm] = self._models.mean_quality[arm]
