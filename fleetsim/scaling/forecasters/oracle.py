"""The truth, blurred as much as is asked for."""

from __future__ import annotations

from itertools import pairwise
from math import pi, sqrt
from typing import Annotated, ClassVar

import numpy as np
from numpy.random import Generator
from pydantic import Field

from fleetsim.errors import PolicyError
from fleetsim.plugins import PolicyConfig
from fleetsim.scaling.forecasters.api import Floats, Series


class OracleConfig(PolicyConfig):
    """Parameters of the forecaster."""

    crps_ratio: Annotated[float, Field(ge=0, json_schema_extra={"unit": "ratio"})] = 0.0
    """Continuous ranked probability score over the value to be forecast; 0 is the truth itself."""


class Oracle:
    """Oracle: what will come, as the workload knows it; with noise of a given score, an upper bound for others.

    Rule: the forecast of a value `y` is a normal distribution with standard deviation ``s = sqrt(pi) crps_ratio y`` around a mean
    that itself lies ``s z`` off, `z` normal: it is calibrated, and its expected score is ``s / sqrt(pi)``. Each step of each
    forecast is off on its own. What is known are the workload's requests for the pool's LLM, wherever they are sent; not those
    that only come when another has ended.
    """

    Config: ClassVar = OracleConfig
    knows_future: ClassVar[bool] = True

    def __init__(self, config: OracleConfig, rng: Generator, series: Series) -> None:
        if series.truth is None:
            raise PolicyError("the forecaster oracle is told nothing of the future here")
        self._rng, self._period_s, self._truth = rng, series.period_s, series.truth
        self._ratio = config.crps_ratio * sqrt(pi)
        self._now_s = 0.0
        self._last: tuple[Floats, Floats] | None = None

    def observe(self, now_s: float, value: float) -> None:
        """Note the time; what is coming is known."""
        self._now_s, self._last = now_s, None

    def _forecast(self, steps: int) -> tuple[Floats, Floats]:
        """Means and standard deviations; the same until the next value is observed."""
        if self._last is None or len(self._last[0]) < steps:
            edges = [self._now_s + step * self._period_s for step in range(steps + 1)]
            truth = np.array([self._truth(a, b) for a, b in pairwise(edges)])
            spread = self._ratio * truth
            self._last = truth + spread * self._rng.standard_normal(steps), spread
        return self._last[0][:steps], self._last[1][:steps]

    def mean(self, steps: int) -> Floats:
        """The truth, off by as much as is asked for."""
        return self._forecast(steps)[0]

    def samples(self, steps: int, count: int) -> Floats:
        """Normal around that."""
        mean, spread = self._forecast(steps)
        drawn: Floats = mean + spread * self._rng.standard_normal((count, steps))
        return drawn
