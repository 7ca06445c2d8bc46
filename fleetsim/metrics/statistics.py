"""Statistics of one run: percentiles, confidence intervals by batch means, trend of a queue."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]

BATCHES = 20
"""Batches of equal size, in order of arrival, for batch means; few enough that each is long."""
LEVEL = 0.95
"""Level of the confidence intervals."""
T_QUANTILE = 2.0930240544082634
"""Student's t for LEVEL and BATCHES, stated so that a run need not wait for scipy; a test compares."""


def percentiles(values: Floats, ratios: list[float], in_place: bool = False) -> list[float]:
    """Exact percentiles by linear interpolation (NumPy's default, as vLLM's benchmark uses); NaN if there are no values.

    With `in_place`, no copy is made and the values are in another order afterwards.
    """
    if not len(values):
        return [float("nan")] * len(ratios)
    found: list[float] = np.quantile(values, ratios, overwrite_input=in_place).tolist()
    return found


def batch_means_interval(values: Floats, level: float = LEVEL) -> tuple[float, float]:
    """Confidence interval of the mean of a stationary, correlated sequence, by non-overlapping batch means.

    Parameters
    ----------
    values : float array, shape (n,)
        In order of time.
    level : float
        0 to 1.

    Returns
    -------
    tuple of float
        Low and high end; NaN below two values per batch.

    References
    ----------
    A. M. Law, "Simulation Modeling and Analysis", 5th ed., section 9.5.3.
    """
    if len(values) < 2 * BATCHES:
        return float("nan"), float("nan")
    means = np.array([batch.mean() for batch in np.array_split(values, BATCHES)])
    centre, error = float(means.mean()), float(means.std(ddof=1)) / BATCHES**0.5
    half = student_t(level, BATCHES - 1) * error
    return centre - half, centre + half


def mean_interval(values: Sequence[float] | Floats, level: float = LEVEL) -> tuple[float, float, float]:
    """Mean of independent values, and its confidence interval by Student's t.

    Returns
    -------
    tuple of float
        Mean, low and high end; the ends are NaN below two values.
    """
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if len(array) < 2:
        return mean, float("nan"), float("nan")
    half = student_t(level, len(array) - 1) * float(array.std(ddof=1)) / len(array) ** 0.5
    return mean, mean - half, mean + half


def student_t(level: float, degrees: int) -> float:
    """Two-sided quantile of Student's t."""
    if (level, degrees) == (LEVEL, BATCHES - 1):
        return T_QUANTILE
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.5 + level / 2))


def rising(values: Floats) -> float:
    """One-sided p-value that a sequence has no upward trend (Mann-Kendall test, normal approximation, ties corrected)."""
    count = len(values)
    if count < 4:
        return 1.0
    signs = np.sign(values[None, :] - values[:, None])
    score = float(np.triu(signs, 1).sum())
    _, ties = np.unique(values, return_counts=True)
    variance = (count * (count - 1) * (2 * count + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18
    if variance <= 0 or score <= 0:
        return 1.0
    return NormalDist().cdf(-(score - 1) / variance**0.5)
