"""Inter-token gaps in segments against gaps one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fleetsim.engine.gaps import BUCKETS, FLOOR_S, PER_E, GapHistogram, RunningMaximum, edge_s

firsts = st.one_of(
    st.floats(1e-7, 5e4),
    st.integers(0, BUCKETS - 1).map(edge_s),
    st.integers(1, BUCKETS - 1).map(lambda bucket: math.nextafter(edge_s(bucket), 0.0)),
)
slopes = st.one_of(st.just(0.0), st.floats(1e-12, 1e-2), st.floats(1e-2, 30.0))


@given(first_s=firsts, slope_s=slopes, steps=st.integers(1, 400), batch=st.integers(1, 512))
@example(first_s=edge_s(5), slope_s=0.0, steps=3, batch=1)
@example(first_s=edge_s(BUCKETS - 2), slope_s=500.0, steps=50, batch=2)
@example(first_s=1e-7, slope_s=1e-6, steps=400, batch=1)
def test_a_run_counts_like_its_gaps_one_by_one(first_s: float, slope_s: float, steps: int, batch: int) -> None:
    """The same buckets exactly, and the same sum to rounding."""
    run, single = GapHistogram(), GapHistogram()
    run.add_run(first_s, slope_s, steps, batch)
    for k in range(steps):
        single.add(first_s + slope_s * k, batch)
    assert run.counts == single.counts
    assert sum(run.counts) == steps * batch
    assert run.total_s == pytest.approx(single.total_s, rel=1e-12)


@given(gap_s=firsts)
def test_a_gap_lies_between_the_edges_of_its_bucket(gap_s: float) -> None:
    """Lower edge included, upper one not; the first and the last bucket are open."""
    histogram = GapHistogram()
    histogram.add(gap_s, 1)
    bucket = histogram.counts.index(1)
    assert bucket == 0 or edge_s(bucket) <= gap_s
    assert bucket == BUCKETS - 1 or gap_s < edge_s(bucket + 1)


def test_buckets_are_one_per_cent_wide() -> None:
    """From 10 microseconds to beyond three hours."""
    edges = np.array([edge_s(bucket) for bucket in range(BUCKETS + 1)])
    assert edges[0] == FLOOR_S
    assert edges[-1] > 3 * 3600
    np.testing.assert_allclose(edges[1:] / edges[:-1], math.exp(1 / PER_E), rtol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_percentiles_from_buckets_are_within_half_a_bucket(seed: int) -> None:
    """Of gaps that spread over four decades, added in runs: the geometric middle of the bucket at the rank asked for."""
    rng = np.random.default_rng(seed)
    histogram, gaps = GapHistogram(), []
    for _ in range(300):
        first_s, slope_s = float(10 ** rng.uniform(-3, 0)), float(10 ** rng.uniform(-6, -2))
        steps, batch = int(rng.integers(1, 60)), int(rng.integers(1, 9))
        histogram.add_run(first_s, slope_s, steps, batch)
        gaps += [first_s + slope_s * k for k in range(steps) for _ in range(batch)]
    reached, values = np.cumsum(histogram.counts), np.array(gaps)
    assert reached[-1] == len(values)
    for ratio in (0.01, 0.5, 0.9, 0.95, 0.99, 0.999):
        bucket = int(np.searchsorted(reached, ratio * len(values)))
        estimate = (edge_s(bucket) * edge_s(bucket + 1)) ** 0.5
        assert estimate == pytest.approx(np.quantile(values, ratio, method="inverted_cdf"), rel=0.00502)
    assert histogram.total_s == pytest.approx(values.sum(), rel=1e-9)


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(0, 3)), min_size=1, max_size=60))
def test_running_maximum_is_the_largest_since_any_mark(pushes: list[tuple[float, int]]) -> None:
    """Against a plain list, after every push and for every mark not yet forgotten."""
    running, values, oldest = RunningMaximum(), [], 0
    for value, forget in pushes:
        running.push(value)
        values.append(value)
        assert running.number == len(values)
        if forget == 3:
            oldest = len(values) // 2
            running.forget_before(oldest)
        for mark in range(oldest, len(values) + 1):
            assert running.since(mark) == max(values[mark:], default=0.0)
    assert len(running.maxima) == len(running.numbers) <= len(values)


def test_running_maximum_keeps_only_what_can_be_asked_for() -> None:
    """Rising values leave one entry, falling ones all, whatever the number of pushes."""
    rising, falling = RunningMaximum(), RunningMaximum()
    for k in range(100):
        rising.push(float(k))
        falling.push(float(-k))
    assert (len(rising.maxima), len(falling.maxima)) == (1, 100)
    falling.forget_before(99)
    assert len(falling.maxima) == 1
