"""When requests arrive: renewal gaps of mean one, mapped to seconds through the integral of the rate.

A process is drawn in *operational time*, in which one arrival is expected per unit, and then mapped to seconds by the
inverse of the integrated rate. With exponential gaps the result is exactly the Poisson process of that rate, be it
constant, stepped (piecewise, Markov-modulated, recorded) or sinusoidal [cinlar1975]_. Draws come in chunks whose size
does not change them.

References
----------
.. [cinlar1975] E. Çinlar, "Introduction to Stochastic Processes", Prentice-Hall 1975, ch. 4 section 7.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt
from numpy.random import Generator

from fleetsim.scenario import schema

Floats = npt.NDArray[np.float64]
Gaps = Callable[[Generator, int], Floats]
"""Draws of a renewal process's gaps, of mean one."""

CHUNK = 8192
"""Arrivals drawn at a time."""
_BISECTIONS = 60


class Clock(Protocol):
    """Inverse of the integrated rate."""

    def seconds(self, expected: Floats) -> Floats:
        """Times by which so many arrivals are expected; calls must not go back."""
        ...


class SteadyClock:
    """A constant rate."""

    def __init__(self, rate: float) -> None:
        self._rate = rate

    def seconds(self, expected: Floats) -> Floats:
        """Times by which so many arrivals are expected."""
        return expected / self._rate


class SteppedClock:
    """A rate that is constant by pieces, each ``(duration_s, rate)``, without end."""

    def __init__(self, pieces: Iterator[tuple[float, float]]) -> None:
        self._pieces = pieces
        self._times = [0.0]
        self._expected = [0.0]

    def seconds(self, expected: Floats) -> Floats:
        """Times by which so many arrivals are expected; forgets the pieces that are over."""
        times, counts = self._times, self._expected
        while counts[-1] < expected[-1]:
            duration_s, rate = next(self._pieces)
            times.append(times[-1] + duration_s)
            counts.append(counts[-1] + duration_s * rate)
        found: Floats = np.interp(expected, counts, times)
        over = int(np.searchsorted(counts, expected[-1])) - 1
        if over > 0:
            del times[:over], counts[:over]
        return found


class DiurnalClock:
    """A sinusoidal rate: mean x (1 + amplitude x sin(2 pi (t - phase) / period))."""

    def __init__(self, config: schema.DiurnalArrivals) -> None:
        self._rate = config.rate
        self._angular = 2 * math.pi / config.period
        self._phase_s = config.phase
        self._swing_s = config.amplitude / self._angular

    def seconds(self, expected: Floats) -> Floats:
        """Times by which so many arrivals are expected, by bisection."""
        steady = expected / self._rate
        start = self._swing_s * math.cos(self._angular * self._phase_s)
        low, high = np.maximum(steady - start - self._swing_s, 0.0), steady - start + self._swing_s
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            passed = middle + start - self._swing_s * np.cos(self._angular * (middle - self._phase_s))
            late = passed > steady
            high = np.where(late, middle, high)
            low = np.where(late, low, middle)
        return (low + high) / 2


def exponential_gaps(rng: Generator, count: int) -> Floats:
    """Gaps of a Poisson process."""
    return rng.standard_exponential(count)


def gamma_gaps(shape: float) -> Gaps:
    """Gamma-distributed gaps."""
    return lambda rng, count: rng.standard_gamma(shape, count) / shape


def _weibull_gaps(shape: float) -> Gaps:
    mean = math.gamma(1 + 1 / shape)
    return lambda rng, count: rng.weibull(shape, count) / mean


def _equal_gaps(_rng: Generator, count: int) -> Floats:
    return np.ones(count)


def _mmpp_pieces(config: schema.MmppArrivals, rng: Generator) -> Iterator[tuple[float, float]]:
    for rate, holding_s in itertools.cycle(zip(config.rates, config.holding, strict=True)):
        yield holding_s * float(rng.standard_exponential()), rate


class Arrivals:
    """An arrival process, drawn from a named stream."""

    def __init__(self, gaps: Gaps, clock: Clock, rng: Generator, fill: int | None = None) -> None:
        """Make a process.

        Parameters
        ----------
        gaps
            Draws of mean one.
        clock
            From expected arrivals to seconds.
        rng
            Source of the draws.
        fill
            If given, the gaps are rescaled so that arrival number `fill` falls on its expected time exactly.
        """
        self._gaps, self._clock, self._rng = gaps, clock, rng
        self._scale = 1.0 if fill is None else fill / _total(gaps, copy.deepcopy(rng), fill)

    def chunks(self, size: int = CHUNK) -> Iterator[Floats]:
        """Arrival times without end, `size` at a time [s]."""
        last = 0.0
        while True:
            gaps = self._gaps(self._rng, size)
            gaps[0] += last
            operational = np.cumsum(gaps)
            last = float(operational[-1])
            yield self._clock.seconds(operational * self._scale)


def _total(gaps: Gaps, rng: Generator, count: int) -> float:
    """Sum of the next `count` gaps, in the order of addition that the process itself will use."""
    last = 0.0
    for start in range(0, count, CHUNK):
        chunk = gaps(rng, min(CHUNK, count - start))
        chunk[0] += last
        last = float(np.cumsum(chunk)[-1])
    return last


class _Streams(Protocol):
    def get(self, name: str) -> Generator:
        """The generator called `name`."""
        ...


def arrival_process(config: schema.Arrivals, requests: int | None, streams: _Streams) -> Arrivals:
    """The process that a scenario asks for (closed loops aside: there arrivals follow from ends)."""
    rng = streams.get("workload.arrivals")
    match config:
        case schema.PoissonArrivals():
            return Arrivals(exponential_gaps, SteadyClock(config.rate), rng)
        case schema.GammaArrivals():
            fill = requests if config.normalise else None
            return Arrivals(gamma_gaps(config.burstiness), SteadyClock(config.rate), rng, fill)
        case schema.WeibullArrivals():
            return Arrivals(_weibull_gaps(config.shape), SteadyClock(config.rate), rng)
        case schema.DeterministicArrivals():
            return Arrivals(_equal_gaps, SteadyClock(config.rate), rng)
        case schema.MmppArrivals():
            pieces = _mmpp_pieces(config, streams.get("workload.arrivals.states"))
            return Arrivals(exponential_gaps, SteppedClock(pieces), rng)
        case schema.DiurnalArrivals():
            return Arrivals(exponential_gaps, DiurnalClock(config), rng)
        case schema.PiecewiseArrivals():
            pieces = itertools.cycle([(step.duration, step.rate) for step in config.steps])
            return Arrivals(exponential_gaps, SteppedClock(pieces), rng)
    raise TypeError(f"{type(config).__name__} is not an open arrival process")
