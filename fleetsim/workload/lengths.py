"""How long prompts and outputs are, in tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from numpy.random import Generator

from fleetsim.scenario import schema

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Lengths = Callable[[int], Ints]
"""The next so many lengths."""

_STRATA = 1000


def length_source(config: schema.Lengths, rng: Generator) -> Lengths:
    """Lengths of the distribution that a scenario asks for, drawn from `rng`."""
    match config:
        case schema.FixedTokens():
            return lambda count: np.full(count, config.value, dtype=np.int64)
        case schema.LognormalTokens():
            return _lognormal(config, rng)
        case schema.QuantileTokens():
            levels = np.linspace(0.0, 1.0, len(config.values))
            values = np.minimum(np.asarray(config.values, dtype=np.float64), schema.MAX_TOKENS)
            return lambda count: np.rint(np.interp(rng.random(count), levels, values)).astype(np.int64)


def _lognormal(config: schema.LognormalTokens, rng: Generator) -> Lengths:
    variance = math.log1p(config.cv**2)
    sigma, mu = math.sqrt(variance), math.log(config.mean) - variance / 2

    def draw(count: int) -> Ints:
        lengths = rng.standard_normal(count)
        lengths *= sigma
        lengths += mu
        np.exp(lengths, out=lengths)
        np.rint(lengths, out=lengths)
        np.clip(lengths, config.min, config.max, out=lengths)
        return lengths.astype(np.int64)

    return draw


class RecordedLengths:
    """Lengths that keep to a recorded distribution, given by quantiles.

    Between the quantiles the distribution is linear; above the last one before the maximum it falls as a power law that
    reaches the maximum once in as many requests as were recorded. Draws are balanced: each thousand holds one from
    every thousandth of the distribution, in random order, so that also a short sample has the recorded quantiles.
    """

    def __init__(self, levels: Sequence[float], values: Sequence[float], requests: int, rng: Generator) -> None:
        self._levels = np.asarray(levels[:-1], dtype=np.float64)
        self._values = np.asarray(values[:-1], dtype=np.float64)
        self._max = float(values[-1])
        self._tail = 1.0 - self._levels[-1]
        rare = min(1.0 / requests, self._tail / 2)
        self._power = math.log(max(self._max / self._values[-1], 1.0)) / math.log(self._tail / rare)
        self._rng = rng
        self._left: Ints = np.empty(0, dtype=np.int64)

    def __call__(self, count: int) -> Ints:
        """The next `count` lengths."""
        blocks = -(-(count - len(self._left)) // _STRATA)
        if blocks > 0:
            self._left = np.concatenate([self._left, self._draw(blocks)])
        drawn, self._left = self._left[:count], self._left[count:]
        return drawn

    def _draw(self, blocks: int) -> Ints:
        noise = self._rng.random((blocks, 2, _STRATA))
        level = (np.argsort(noise[:, 0], axis=1, kind="stable") + noise[:, 1]).ravel() / _STRATA
        lengths = np.interp(level, self._levels, self._values)
        above = level > self._levels[-1]
        rarity = self._tail / np.maximum(1.0 - level[above], 1e-12)
        lengths[above] = np.minimum(self._values[-1] * rarity**self._power, self._max)
        return np.maximum(np.rint(lengths), 1).astype(np.int64)
