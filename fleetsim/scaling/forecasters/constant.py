"""It stays as it is."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.scaling.forecasters.api import Errors, Floats, Series


class ConstantConfig(PolicyConfig):
    """Parameters of the forecaster."""

    errors: Annotated[int, Field(ge=1, strict=True, json_schema_extra={"unit": "count"})] = 200
    """Last changes from one period to the next that are remembered."""


class Constant:
    """The last value goes on.

    Rule: every step ahead is expected to be as the last value; samples are walks from there, each step a change drawn with
    replacement from the last `errors` changes.
    """

    Config: ClassVar = ConstantConfig

    def __init__(self, config: ConstantConfig, rng: Generator, series: Series) -> None:
        self._rng = rng
        self._last: float | None = None
        self._changes = Errors(config.errors)

    def observe(self, now_s: float, value: float) -> None:
        """Note a value."""
        if self._last is not None:
            self._changes.add(value - self._last)
        self._last = value

    def mean(self, steps: int) -> Floats:
        """The last value."""
        return np.full(steps, self._last or 0.0)

    def samples(self, steps: int, count: int) -> Floats:
        """Random walks."""
        return self.mean(steps) + np.cumsum(self._changes.draw(self._rng, (count, steps)), axis=1)
