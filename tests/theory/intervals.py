"""Comparison of independent replications with an exact value: Student's t-interval, and a wrong model that must not pass.

The wrong model serves more slowly. Long versions run it. Short ones know what it would give, by the same theory, and ask that
the interval of the right one does not reach that: an error of this size would be told, at half the price.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest

from fleetsim.metrics.statistics import student_t

Floats = np.ndarray[Any, np.dtype[np.float64]]
LEVEL = 0.999
SLOWER = 1.03
"""Service of the wrong model that is run."""
SLOWER_SHORT = 1.05
"""Service of the wrong model that short versions calculate."""


class Observed(NamedTuple):
    """What one run says."""

    figures: Sequence[float]
    controls: Sequence[float]
    """How far what was drawn, not simulated, is from its expectation: mean gap and mean service, say."""


def replicate(measure: Callable[[int], Observed], replications: int) -> tuple[Floats, Floats]:
    """Figures and controls of independent runs with seeds 0, 1, …: one row each."""
    runs = [measure(seed) for seed in range(replications)]
    return np.array([run.figures for run in runs]), np.array([run.controls for run in runs])


def interval(values: Floats, controls: Floats | None = None, level: float = LEVEL) -> tuple[float, float]:
    """Confidence interval of the mean of independent values.

    Controls have mean zero; what values owe to them by linear regression is taken off (A. M. Law, "Simulation Modeling and
    Analysis", 5th ed., section 11.4).
    """
    count = len(values)
    design = np.ones((count, 1)) if controls is None else np.column_stack([np.ones(count), controls])
    inverse = np.linalg.inv(design.T @ design)
    fitted = inverse @ design.T @ values
    freedom = count - design.shape[1]
    variance = float(((values - design @ fitted) ** 2).sum()) / freedom
    half = student_t(level, freedom) * (variance * float(inverse[0, 0])) ** 0.5
    return float(fitted[0]) - half, float(fitted[0]) + half


def assert_within_interval(
    values: Floats, expected: float, controls: Floats | None = None, tolerance: float = 0.0, level: float = LEVEL
) -> None:
    """The interval of the mean reaches `expected`, itself known to a relative `tolerance`; the values do vary."""
    assert values.std() > 0, "replications do not differ"
    low, high = interval(values, controls, level)
    slack = tolerance * abs(expected)
    told = f"{expected:.6g} ± {slack:.2g} is outside [{low:.6g}, {high:.6g}] of {len(values)} replications"
    print(told.replace("is outside", "and"))
    assert low - slack <= expected <= high + slack, told


def assert_theory(
    measure: Callable[[int, float], Observed],
    theory: Callable[[float], Sequence[float]],
    replications: int,
    tolerance: float = 0.0,
    power: Sequence[int] = (0,),
    calculated: bool = False,
) -> None:
    """All figures agree with theory; those numbered `power` do not where service is slower.

    Parameters
    ----------
    measure
        What a run says, by seed and factor on the service time.
    theory
        Exact value of each figure, by factor on the service time.
    calculated
        Take what service slower by `SLOWER_SHORT` gives from theory; otherwise run it, slower by `SLOWER`.
    """
    figures, controls = replicate(lambda seed: measure(seed, 1.0), replications)
    expected = theory(1.0)
    for number, value in enumerate(expected):
        assert_within_interval(figures[:, number], value, controls, tolerance)
    wrong = expected
    if calculated:
        wrong = theory(SLOWER_SHORT)
    else:
        figures, controls = replicate(lambda seed: measure(seed, SLOWER), replications)
    for number in power:
        with pytest.raises(AssertionError, match="is outside"):
            assert_within_interval(figures[:, number], wrong[number], controls, tolerance)
