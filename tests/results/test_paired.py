"""Intervals of differences: equal to the textbook's tests where these apply, and covering what they should."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from fleetsim.metrics.statistics import BATCHES, batch_means_interval
from fleetsim.results.paired import between_seeds, holm, of_batches, welch, within_runs

RANDOM = np.random.default_rng
mean = partial(np.mean)


def p99(values: np.ndarray) -> float:
    return float(np.quantile(values, 0.99))


def test_seed_by_seed_is_the_paired_t_test() -> None:
    base = RANDOM(1).normal(10, 3, 8)
    other = base + RANDOM(2).normal(0.5, 0.4, 8)
    found = between_seeds(base, other)
    test = stats.ttest_rel(other, base)
    assert found.p == pytest.approx(test.pvalue, rel=1e-9)
    interval = test.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_independent_seeds_are_welchs_t_test() -> None:
    base, other = RANDOM(1).normal(10, 3, 8), RANDOM(2).normal(12, 1, 5)
    found = welch(base, other)
    test = stats.ttest_ind(other, base, equal_var=False)
    assert found.p == pytest.approx(test.pvalue, rel=1e-9)
    interval = test.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_holms_adjustment_is_that_of_statsmodels() -> None:
    ps = [0.01, 0.04, 0.03, 0.005, 0.6]
    assert holm(ps) == pytest.approx(multipletests(ps, method="holm")[1])
    assert holm([None, 0.02, None, 0.03]) == [None, pytest.approx(0.04), None, pytest.approx(0.04)]


def test_of_a_mean_it_is_the_method_of_batch_means() -> None:
    base = RANDOM(1).exponential(1, 200 * BATCHES)
    other = base * 1.1 + RANDOM(2).normal(0, 0.2, len(base))
    found = within_runs(float((other - base).mean()), (base, other), mean, paired=True)
    assert (found.low, found.high) == pytest.approx(batch_means_interval(other - base), rel=1e-9)


def correlated(rng: np.random.Generator, count: int) -> np.ndarray:
    """Waits of a busy queue: correlated over hundreds of requests (Lindley's recursion)."""
    steps = rng.exponential(0.7, count) - rng.exponential(1.0, count)
    sums = np.cumsum(steps)
    return sums - np.minimum.accumulate(np.minimum(sums, 0.0))


@pytest.mark.parametrize(("statistic", "least"), [(mean, 0.88), (p99, 0.85)])
def test_intervals_cover_the_true_difference(statistic: object, least: float) -> None:
    """95 % are told; waits of a queue at 70 % load are correlated and skewed, which costs some coverage at this length."""
    long = correlated(RANDOM(0), 4_000_000)
    noise = RANDOM(99).normal(0, 0.1, len(long))
    truth = statistic(1.2 * long + noise) - statistic(long)
    covered = []
    for seed in range(200):
        rng = RANDOM(1000 + seed)
        base = correlated(rng, 20_000)
        other = 1.2 * base + rng.normal(0, 0.1, len(base))
        found = within_runs(statistic(other) - statistic(base), (base, other), statistic, paired=True)
        covered.append(found.low <= truth <= found.high)
    assert least <= np.mean(covered) <= 0.99


def test_pairing_makes_small_differences_visible() -> None:
    rng = RANDOM(5)
    base = correlated(rng, 20_000)
    other = 1.02 * base + rng.normal(0, 0.01, len(base))
    difference = float(other.mean() - base.mean())
    paired = within_runs(difference, (base, other), mean, paired=True)
    alone = within_runs(difference, (base, other), mean, paired=False)
    assert paired.p < 1e-6 < 0.05 < alone.p


def test_no_difference_is_found_where_there_is_none() -> None:
    found = []
    for seed in range(200):
        rng = RANDOM(seed)
        pair = correlated(rng, 4000), correlated(rng, 4000)
        found.append(within_runs(float(pair[1].mean() - pair[0].mean()), pair, mean, paired=False).p < 0.05)
    assert np.mean(found) < 0.12


def test_equal_figures_are_equal_however_they_were_summed() -> None:
    assert between_seeds([0.3, 0.6], [0.1 + 0.2, 0.6]).p == 1.0
    assert between_seeds([0.3, 0.6], [0.1 + 0.2, 0.6]).difference == 0.0
    values = RANDOM(1).exponential(1, 1000)
    same = within_runs(0.0, (values, values), mean, paired=True)
    assert (same.difference, same.p) == (0.0, 1.0)


def test_the_same_difference_each_time_is_certain() -> None:
    assert between_seeds([1.0, 2.0, 3.0], [2.0, 3.0, 4.0]).p == 0.0
    assert of_batches(20.0, (np.ones(20), np.full(20, 2.0))).p == 0.0


def test_a_tail_alone_is_not_significant() -> None:
    longer = np.ones(20)
    longer[-1] = 3.0
    found = of_batches(2.0, (np.ones(20), longer))
    assert found.p > 0.3
    assert found.low < 0 < found.high


def test_too_little_gives_no_interval() -> None:
    few = np.ones(2 * BATCHES - 1)
    assert within_runs(1.0, (few, few + 1), mean, paired=True).p is None
    assert of_batches(1.0, (np.ones(9), np.ones(9))).low is None
    holes = np.full(100, np.nan)
    assert within_runs(1.0, (holes, holes), mean, paired=True).p is None
