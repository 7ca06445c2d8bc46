"""What a forecaster sees of a series and what it answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Literal, Protocol

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Floats = NDArray[np.float64]
What = Literal["requests", "prompt_tokens", "output_tokens"]
"""What is counted in a period: requests that came, their prompt tokens, or the tokens of answers."""


class Series:
    """What is to be forecast: one value per period.

    Parameters
    ----------
    period_s : float
        Time between two values [s].
    truth : callable, optional
        The value of the time between two times [s]; given only to forecasters whose class says `knows_future`.
    """

    def __init__(self, period_s: float, truth: Callable[[float, float], float] | None = None) -> None:
        self.period_s = period_s
        self.truth = truth


class Forecaster(Protocol):
    """Expects the next values of a series from those it has seen.

    Built as ``Policy(config, rng, series)``: its parameters, a random stream, and the series. With `period_s` as the time between
    two values, the n-th step ahead is the n-th period after the last value observed. Values may be anything; whoever asks for a
    demand takes what is below zero for zero.
    """

    def observe(self, now_s: float, value: float) -> None:
        """Note the value of the period that ends now."""
        ...

    def mean(self, steps: int) -> Floats:
        """Expected value at each of the next `steps` periods; zero before anything was observed."""
        ...

    def samples(self, steps: int, count: int) -> Floats:
        """Possible courses, each equally likely: one row each, one column per step ahead."""
        ...


def quantiles(forecaster: Forecaster, steps: int, levels: tuple[float, ...], count: int = 400) -> Floats:
    """Quantiles of each of the next `steps` periods, one row per level, from `count` samples."""
    found: Floats = np.quantile(forecaster.samples(steps, count), levels, axis=0)
    return found


class Errors:
    """What a forecast was wrong by, lately."""

    def __init__(self, most: int) -> None:
        self._values: deque[float] = deque(maxlen=most)

    def add(self, error: float) -> None:
        """One more; the oldest is forgotten."""
        self._values.append(error)

    def draw(self, rng: Generator, shape: tuple[int, int]) -> Floats:
        """Errors drawn with replacement; zeros where none is known."""
        if not self._values:
            return np.zeros(shape)
        known = np.array(self._values)
        drawn: Floats = known[rng.integers(len(known), size=shape)]
        return drawn
