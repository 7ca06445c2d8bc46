"""Agents that advertise what they can do and how busy they are, and a bandit among the best of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.api import Ask, ModelsView, Outcome, Query, best
from fleetsim.model_routing.pairs import Latencies, Remembered
from fleetsim.model_routing.tags import Tags
from fleetsim.plugins import PolicyConfig

_Ratio = Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})]
_SIZE = 5
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
        self.inverse = [[float(i == j) for j in range(_SIZE)] for i in range(_SIZE)]
        """Inverse of the matrix of what was seen: ``A^-1``."""
        self.theta = [0.0] * _SIZE
        """Its solution."""
        self.success: list[float] = models.mean_quality.tolist()
        """Running mean of the quality of each arm's answers."""
        self._latencies = Latencies(models, config.memory)
        self._skills: list[list[float]] = models.quality.T.tolist()
        self._contexts: Remembered[tuple[float, ...]] = Remembered()

    def route(self, query: Query) -> Ask:
        """The highest bound among those that are left."""
        models, config = self._models, self._config
        among = models.open()
        skill = self._skills[query.domain]
        told_loads = models.loads(among)
        loads = {arm: load if load < _OVERRUN else _OVERRUN for arm, load in zip(among, told_loads, strict=True)}
        if len(among) > config.screened:
            told = sorted([(-round(skill[arm] - loads[arm], 9), arm) for arm in among])
            among = sorted([arm for _, arm in told[: config.screened]])
        success, patience_s, alpha = self.success, config.patience, config.alpha
        theta, inverse = self.theta, self.inverse
        rows, bounds = [], []
        for arm, latency_s in zip(among, self._latencies.of(among, query), strict=True):
            x = (1.0, skill[arm], _bounded(loads[arm]), _bounded(latency_s / patience_s), success[arm])
            rows.append(x)
            bounds.append(_product(theta, x) + alpha * max(form(inverse, x), 0.0) ** 0.5)
        row = best(bounds, range(len(among)))
        self._contexts.keep(query.id, rows[row])
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
        lines, theta = self.inverse, self.theta
        if config.discount < 1.0:
            lines = [[value / config.discount for value in line] for line in lines]
        u = [_product(line, x) for line in lines]
        divisor = 1.0 + _product(u, x)
        v0, v1, v2, v3, v4 = [value / divisor for value in u]
        self.inverse = [
            [a - v * v0, b - v * v1, c - v * v2, d - v * v3, e - v * v4]
            for v, (a, b, c, d, e) in zip(u, lines, strict=True)
        ]
        step = (reward - _product(theta, x)) / divisor
        self.theta = [value + step * own for value, own in zip(theta, u, strict=True)]


def _product(a: Sequence[float], b: Sequence[float]) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3] + a[4] * b[4]


def form(matrix: Sequence[Sequence[float]], x: Sequence[float]) -> float:
    """``x' A x`` of a symmetric matrix, from its upper half."""
    (aa, ab, ac, ad, ae), (_, bb, bc, bd, be), (_, _, cc, cd, ce), (_, _, _, dd, de), (_, _, _, _, ee) = matrix
    a, b, c, d, e = x
    squares = aa * a * a + bb * b * b + cc * c * c + dd * d * d + ee * e * e
    rest = a * (ab * b + ac * c + ad * d + ae * e) + b * (bc * c + bd * d + be * e) + c * (cd * d + ce * e) + de * d * e
    return squares + 2.0 * rest


def _bounded(value: float) -> float:
    return value / (1.0 + value)
