"""As it was a day ago."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.scaling.forecasters.api import Errors, Floats, Series


class SeasonalConfig(PolicyConfig):
    """Parameters of the forecaster."""

    season_s: Annotated[float, Field(gt=0, json_schema_extra={"unit": "s"})] = 86_400.0
    """After which time things are as before: a day, a week."""
    errors: Annotated[int, Field(ge=1, strict=True, json_schema_extra={"unit": "count"})] = 200
    """Last errors that are remembered."""


class Seasonal:
    """The value of one season ago, with errors as they were (seasonal naive with residual bootstrap).

    Rule: each step ahead is expected to be as one season before it; samples add to each step an error drawn with replacement from
    the last `errors` ones. Before a season is over, the last value stands in, with the changes from period to period as errors.
    """

    Config: ClassVar = SeasonalConfig

    def __init__(self, config: SeasonalConfig, rng: Generator, series: Series) -> None:
        self._rng = rng
        self._length = max(round(config.season_s / series.period_s), 1)
        """Periods of a season."""
        self._values: list[float] = []
        self._seen = 0
        self._first = Errors(config.errors)
        self._errors = Errors(config.errors)

    def observe(self, now_s: float, value: float) -> None:
        """Note a value."""
        if self._seen:
            last = self._values[(self._seen - 1) % self._length]
            self._first.add(value - last)
        place = self._seen % self._length
        self._seen += 1
        if len(self._values) < self._length:
            self._values.append(value)
            return
        self._errors.add(value - self._values[place])
        self._values[place] = value

    def mean(self, steps: int) -> Floats:
        """Those of one season before."""
        if self._seen < self._length:
            return np.full(steps, self._values[-1] if self._values else 0.0)
        return np.array([self._values[(self._seen + step) % self._length] for step in range(steps)])

    def samples(self, steps: int, count: int) -> Floats:
        """These, and errors."""
        errors = self._errors if self._seen > self._length else self._first
        return self.mean(steps) + errors.draw(self._rng, (count, steps))
