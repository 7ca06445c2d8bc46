"""Percentiles, intervals, trend and verdict, against definitions and known cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fleetsim.metrics.slo import slo_met
from fleetsim.metrics.statistics import (
    BATCHES,
    LEVEL,
    T_QUANTILE,
    batch_means_interval,
    percentiles,
    rising,
    student_t,
)
from fleetsim.metrics.summary import too_short
from fleetsim.metrics.verdict import BACKLOGGED, OVERLOADED, STABLE, verdict
from fleetsim.scenario.schema import Slo, SloLimits


def test_the_stated_quantile_is_students() -> None:
    assert pytest.approx(stats.t.ppf(0.5 + LEVEL / 2, BATCHES - 1), rel=1e-14) == T_QUANTILE
    assert student_t(0.999, 7) == pytest.approx(stats.t.ppf(0.9995, 7), rel=1e-12)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200), st.floats(0, 1))
def test_percentiles_are_exact(values: list[float], ratio: float) -> None:
    """Linear interpolation between order statistics, and never outside the values."""
    (found,) = percentiles(np.array(values), [ratio])
    ordered = sorted(values)
    place = ratio * (len(values) - 1)
    low, high = ordered[int(place)], ordered[min(int(place) + 1, len(values) - 1)]
    assert low - 1e-9 * (1 + low) <= found <= high + 1e-9 * (1 + high)


def test_batch_means_interval_covers_the_mean() -> None:
    """95 % intervals of 400 independent AR(1) sequences of 4,000 values (coefficient 0.8) cover 0 in 90 to 98 % of the cases;
    those that ignore the correlation cover far less."""
    rng = np.random.default_rng(5)
    noise = rng.normal(size=(400, 4000))
    values = np.zeros_like(noise)
    for i in range(1, 4000):
        values[:, i] = 0.8 * values[:, i - 1] + noise[:, i]
    intervals = [batch_means_interval(row) for row in values]
    covered = np.mean([low <= 0 <= high for low, high in intervals])
    assert 0.90 <= covered <= 0.98
    naive = [1.96 * row.std(ddof=1) / 4000**0.5 for row in values]
    assert np.mean([abs(row.mean()) <= half for row, half in zip(values, naive, strict=True)]) < 0.7


def test_too_few_values_give_no_interval() -> None:
    assert np.isnan(batch_means_interval(np.arange(2.0 * BATCHES - 1))).all()


@pytest.mark.parametrize("ties", [False, True])
def test_trend_equals_mann_kendall(ties: bool) -> None:
    """The one-sided p-value agrees with Kendall's tau against time (asymptotic, continuity apart) on random sequences."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        values = rng.normal(size=30) + np.arange(30) * 0.05
        if ties:
            values = np.round(values)
        reference = stats.kendalltau(np.arange(30), values, alternative="greater", method="asymptotic")
        assert rising(values) == pytest.approx(max(reference.pvalue, 0) if reference.statistic > 0 else 1.0, abs=0.03)


def test_a_level_queue_has_no_trend() -> None:
    rng = np.random.default_rng(2)
    p_values = [rising(rng.poisson(5, 20).astype(float)) for _ in range(400)]
    assert np.mean(np.array(p_values) < 0.05) < 0.09


def times(growth: float, wait_s: float, service_s: float = 10.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    arrival = np.arange(1000.0)
    start = arrival + wait_s + growth * arrival
    return arrival, start, start + service_s


def test_verdicts() -> None:
    """No wait; a wait that grows by 0.2 s per second; a constant wait of 5 % of the time; every
    second request waits for long, in the mean for twice its service; a third rejected; nothing at all."""
    nothing = (np.zeros(0),) * 3
    assert verdict(*times(0, 0.0), rejected=0).word == STABLE
    assert verdict(*times(0.2, 0.0), rejected=0).word == OVERLOADED
    assert verdict(*times(0, 50.0), rejected=0).word == BACKLOGGED
    half = np.arange(1000) % 2 * 40.0
    arrival = np.arange(1000.0) * 10
    assert verdict(arrival, arrival + half, arrival + half + 10, rejected=0).word == BACKLOGGED
    assert verdict(*times(0, 0.0), rejected=500).word == OVERLOADED
    assert verdict(*nothing, rejected=3).word == OVERLOADED
    assert verdict(*nothing, rejected=0).word == STABLE


def test_a_run_of_a_moment_is_not_an_overload() -> None:
    """A hundred requests within 70 ms, each waiting 20 ms for a step to end and served for 3 s: more and more wait, but none for
    long. With waits as long as the service the same course is an overload."""
    arrival = np.linspace(0, 0.07, 100)
    assert verdict(arrival, arrival + 0.02, arrival + 3, rejected=0).word == STABLE
    assert verdict(arrival, arrival + 2 + arrival * 30, arrival + 7, rejected=0).word == OVERLOADED


def test_a_run_that_was_cut_is_judged_by_what_was_seen() -> None:
    """The last three requests had no step yet when the run was cut: still stable. Had half of them waited so long: not."""
    arrival, start, end = times(0, 0.01)
    start[-3:] = end[-3:] = np.nan
    assert verdict(arrival, start, end, rejected=0).word == STABLE
    start[500:] = end[500:] = np.nan
    assert verdict(arrival, start, end, rejected=0).word == OVERLOADED


def test_a_batch_that_fills_without_a_queue_is_an_overload() -> None:
    """Nobody waits for a seat, but service lasts ever longer and a tenth fewer end than come; steady service is stable."""
    arrival = np.linspace(0, 10_000, 5000)
    assert verdict(arrival, arrival, arrival * 1.12 + 5, rejected=0).word == OVERLOADED
    assert verdict(arrival, arrival, arrival + 300, rejected=0).word == STABLE


def test_slo_by_class() -> None:
    """A class has its own limits; no TPOT keeps its limit; what did not finish misses."""
    slo = Slo(ttft="1 s", tpot="100 ms", classes={"batch": SloLimits(e2el="60 s")})  # type: ignore[arg-type]
    finished = np.array([True, True, True, True, False])
    ttft = np.array([0.5, 1.5, 0.5, 30.0, 0.1])
    tpot = np.array([np.nan, 0.05, 0.2, 0.5, 0.01])
    e2el = np.array([1.0, 2.0, 3.0, 50.0, np.nan])
    met = slo_met(slo, ["chat", None, "chat", "batch", "batch"], finished, ttft, tpot, e2el)
    assert met.tolist() == [True, False, False, True, False]


def test_a_short_run_is_said_to_be_short() -> None:
    assert too_short({"measured_requests": 300}, 0.99) is not None
    assert too_short({"measured_requests": 30_000}, 0.99) is None


def test_chance_is_not_called_overload() -> None:
    """Sound systems without a queue whose numbers go up and down as chance will: none of 300 short runs counts as piling up.

    Service takes a tenth of a run, so that successive counts are alike and a test of ranks alone sees trends (in 9 of the 300).
    """
    words = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        arrival = np.cumsum(rng.exponential(1 / 20, 600))
        words.append(verdict(arrival, arrival, arrival + rng.lognormal(0.68, 0.83, 600), rejected=0).word)
    assert OVERLOADED not in words


def test_a_batch_that_slows_down_for_good_is_overloaded() -> None:
    """Each is served longer than the one before, in the mean: nobody waits, and fewer end than come."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        arrival = np.cumsum(rng.exponential(1 / 280, 8000))
        service = rng.exponential(1.0, 8000) + 0.08 * arrival
        assert verdict(arrival, arrival, arrival + service, rejected=0).word == OVERLOADED
