"""A level and a slope that drift."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.scaling.forecasters.api import Floats, Series

_Share = Annotated[float, Field(ge=0, json_schema_extra={"unit": "ratio"})]
_MOVE = np.array([[1.0, 1.0], [0.0, 1.0]])
_VAGUE = 1e7
"""Variance of what is not known at the beginning, over that of an observation."""


class KalmanConfig(PolicyConfig):
    """Parameters of the forecaster."""

    level_ratio: _Share = 0.1
    """Variance by which the level drifts in a period, over that of an observation around it."""
    slope_ratio: _Share = 0.01
    """The same for the slope."""


class Kalman:
    """A Kalman filter of a local linear trend: a level and a slope, both drifting, seen with noise.

    Rule: the textbook filter from a vague beginning, with variances in units of the observation's; that one is estimated as the
    mean of the squared errors of one step, each over its predicted variance. Steps ahead follow the trend; samples are courses of
    the normal distribution that the filter ends in, with the drifts and the noise to come.

    References
    ----------
    Durbin, Koopman, "Time Series Analysis by State Space Methods", local linear trend; Dynamo's planner offers the same.
    """

    Config: ClassVar = KalmanConfig

    def __init__(self, config: KalmanConfig, rng: Generator, series: Series) -> None:
        self._rng = rng
        self._drift = np.array([config.level_ratio, config.slope_ratio])
        self._state = np.zeros(2)
        self._spread = np.eye(2) * _VAGUE
        self._seen = 0
        self._squares = 0.0

    def observe(self, now_s: float, value: float) -> None:
        """Predict one step, and correct by the value."""
        state = _MOVE @ self._state
        spread = _MOVE @ self._spread @ _MOVE.T + np.diag(self._drift)
        error, variance = value - state[0], spread[0, 0] + 1.0
        gain = spread[:, 0] / variance
        self._state = state + gain * error
        self._spread = spread - np.outer(gain, spread[0])
        self._seen += 1
        if self._seen > 2:  # before, neither level nor slope was known
            self._squares += error * error / variance

    @property
    def noise(self) -> float:
        """Variance of an observation around the level, as estimated."""
        return self._squares / (self._seen - 2) if self._seen > 2 else 0.0

    def mean(self, steps: int) -> Floats:
        """The trend."""
        if self._seen < 2:
            return np.full(steps, self._state[0])
        ahead: Floats = self._state[0] + self._state[1] * np.arange(1, steps + 1)
        return ahead

    def samples(self, steps: int, count: int) -> Floats:
        """Courses from here on."""
        if self._seen < 3:
            return np.tile(self.mean(steps), (count, 1))
        scale = float(np.sqrt(self.noise))
        state = self._state + scale * self._rng.standard_normal((count, 2)) @ np.linalg.cholesky(self._spread).T
        courses = np.empty((count, steps))
        for step in range(steps):
            drift = self._rng.standard_normal((count, 2)) * np.sqrt(self._drift)
            state = state @ _MOVE.T + scale * drift
            courses[:, step] = state[:, 0] + scale * self._rng.standard_normal(count)
        return courses
