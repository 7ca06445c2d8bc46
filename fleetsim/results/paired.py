"""Differences of two systems that met the same randomness, with confidence intervals.

Runs with the same seed meet the same arrivals and lengths, so their differences vary far less than they do themselves (common
random numbers; A. M. Law, "Simulation Modeling and Analysis", 5th ed., section 11.2). What is told of a difference depends on what
there is:

- Several seeds in common: Student's t of the differences seed by seed.
- Several seeds on either side, none in common: Welch's t.
- One run of each: within the runs. Requests in order of arrival are cut into `BATCHES` batches, long enough to be nearly
  independent; leaving out one batch after the other in both runs tells how much the difference depends on each (delete-a-group
  jackknife; J. Shao, C. F. J. Wu, "A general theory for jackknife variance estimation", Ann. Statist. 17, 1989: consistent for
  percentiles as well, where the groups grow with the run). For means this is the method of batch means. Totals of the fleet are
  cut into stretches of time. Where the runs sent different requests, the two are treated as independent.

Several figures at a time make chance findings likelier, so p-values are adjusted by Holm's step-down method over all figures and
systems that are compared with the same baseline; the intervals are those of each figure alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fleetsim.metrics.statistics import BATCHES, LEVEL, Floats, mean_interval, student_t

Bools = np.ndarray[Any, np.dtype[np.bool_]]
Pair = tuple[Floats, Floats]
Statistic = Callable[[Floats], float]
EQUAL = 1e-9
"""Relative difference below which two figures are the same: sums in another order."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A difference, and how sure it is."""

    difference: float
    low: float | None
    """Ends of the confidence interval; None where there is too little to tell."""
    high: float | None
    p: float | None
    """Probability of a difference at least as large if there were none."""


def between_seeds(base: Sequence[float], other: Sequence[float], level: float = LEVEL) -> Spread:
    """Difference of the means of two systems whose values stand in pairs, one for each seed."""
    differences = np.asarray(other, dtype=np.float64) - np.asarray(base, dtype=np.float64)
    mean, low, high = mean_interval(differences, level)
    error = float(differences.std(ddof=1)) / len(differences) ** 0.5
    return _spread(mean, error, len(differences) - 1, low, high, scale=_scale(base, other))


def welch(base: Sequence[float], other: Sequence[float], level: float = LEVEL) -> Spread:
    """Difference of the means of two systems whose values are independent."""
    parts = [np.asarray(values, dtype=np.float64) for values in (base, other)]
    errors = [float(part.var(ddof=1)) / len(part) for part in parts]
    mean, error = float(parts[1].mean() - parts[0].mean()), sum(errors) ** 0.5
    spread = sum(each**2 / (len(part) - 1) for each, part in zip(errors, parts, strict=True))
    degrees = sum(errors) ** 2 / spread if spread else float(len(parts[0]) + len(parts[1]) - 2)
    half = _t_quantile(level, degrees) * error
    return _spread(mean, error, degrees, mean - half, mean + half, scale=_scale(base, other))


def within_runs(difference: float, runs: Pair, statistic: Statistic, paired: bool, level: float = LEVEL) -> Spread:
    """Difference of a statistic of two runs from their own requests, in order of arrival.

    Parameters
    ----------
    difference : float
        The difference to tell the spread of.
    runs : pair of float arrays
        Of the baseline and of the other, one value per request; NaN where it has none.
    statistic : callable
        Of an array without NaN.
    paired : bool
        Whether the arrays stand for the same requests.
    """
    if min(map(len, runs)) < 2 * BATCHES:
        return Spread(difference, None, None, None)
    left = [_leaving_out(values, statistic) for values in runs]
    if not all(np.isfinite(values).all() for values in left):
        return Spread(difference, None, None, None)
    if paired:
        error, degrees = _jackknife_error(left[1] - left[0]), float(BATCHES - 1)
    else:
        errors = [_jackknife_error(values) for values in left]
        error = float(np.hypot(errors[0], errors[1]))
        degrees = (BATCHES - 1) * error**4 / (errors[0] ** 4 + errors[1] ** 4) if error else float(BATCHES - 1)
    half = _t_quantile(level, degrees) * error
    scale = max(abs(statistic(values[~np.isnan(values)])) for values in runs)
    return _spread(difference, error, degrees, difference - half, difference + half, scale)


def of_batches(difference: float, runs: Pair, level: float = LEVEL) -> Spread:
    """Difference of two totals, from their parts in stretches of time of equal length, the same for both."""
    base, other = runs
    if len(base) < BATCHES // 2:
        return Spread(difference, None, None, None)
    differences = other - base
    error = float(differences.std(ddof=1)) * len(differences) ** 0.5
    degrees = len(differences) - 1
    half = student_t(level, degrees) * error
    scale = max(abs(float(base.sum())), abs(float(other.sum())))
    return _spread(difference, error, degrees, difference - half, difference + half, scale)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """P-values adjusted for their number by Holm's method; those that are None do not count."""
    order = sorted((p, place) for place, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[place] = largest
    return adjusted


def _leaving_out(values: Floats, statistic: Statistic) -> Floats:
    """The statistic without each batch in turn."""
    ends = np.linspace(0, len(values), BATCHES + 1).astype(int)
    found = np.full(BATCHES, np.nan)
    for batch in range(BATCHES):
        rest = np.concatenate((values[: ends[batch]], values[ends[batch + 1] :]))
        rest = rest[~np.isnan(rest)]
        if len(rest):
            found[batch] = statistic(rest)
    return found


def _jackknife_error(left: Floats) -> float:
    return float(((BATCHES - 1) / BATCHES * ((left - left.mean()) ** 2).sum()) ** 0.5)


def _spread(difference: float, error: float, degrees: float, low: float, high: float, scale: float) -> Spread:
    if abs(difference) <= EQUAL * scale:
        return Spread(0.0, min(low, 0.0), max(high, 0.0), 1.0)
    if error <= EQUAL * abs(difference):  # the same difference each time: nothing random in it
        return Spread(difference, low, high, 0.0)
    return Spread(difference, low, high, _p_value(abs(difference) / error, degrees))


def _scale(base: Sequence[float], other: Sequence[float]) -> float:
    return max(abs(value) for value in (*base, *other))


def _t_quantile(level: float, degrees: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.5 + level / 2))


def _p_value(t: float, degrees: float) -> float:
    from scipy.special import stdtr

    return float(2 * stdtr(degrees, -t))
