import numpy as np
import pytest

from fleetsim.workload.lengths import RecordedLengths
from tests.workload.conftest import synthetic

POISSON = {"process": "poisson", "rate": "1 req/s"}


def prompts(**lengths):
    workload = synthetic(requests=50_000, arrivals=POISSON, prompt_tokens=lengths)
    return np.array([r.prompt_tokens for r in workload.requests()])


def test_fixed():
    assert set(prompts(distribution="fixed", value=17)) == {17}


def test_lognormal_mean_and_cv_are_those_of_the_lognormal_itself():
    found = prompts(distribution="lognormal", mean=1000, cv=0.5)
    assert found.mean() == pytest.approx(1000, rel=4 * 0.5 / 50_000**0.5)
    assert found.std() / found.mean() == pytest.approx(0.5, rel=0.03)
    assert prompts(distribution="lognormal", mean=300, cv=0).tolist() == [300] * 50_000


def test_lognormal_is_cut_not_drawn_again():
    found = prompts(distribution="lognormal", mean=1000, cv=1.2, min=500, max=2000)
    assert (found.min(), found.max()) == (500, 2000)
    assert (found == 500).mean() > 0.3


def test_quantiles_are_interpolated():
    found = prompts(distribution="quantiles", values=[1, 100, 1000])
    assert np.quantile(found, [0.25, 0.5, 0.75]) == pytest.approx([50.5, 100, 550], rel=0.05)


def test_huge_lengths_stay_in_bounds():
    assert prompts(distribution="quantiles", values=[1e300, 1e300]).max() == 2**31 - 1
    assert prompts(distribution="lognormal", mean=1e6, cv=20).max() <= 1_000_000


def recorded(requests=10_000):
    levels, values = (0.0, 0.5, 0.99, 1.0), (1, 100, 1000, 50_000)
    return RecordedLengths(levels, values, requests, np.random.default_rng(3))


def test_recorded_lengths_keep_their_quantiles_in_short_samples():
    found = recorded()(20_000)
    assert np.quantile(found, [0.5, 0.99]) == pytest.approx([100, 1000], rel=0.01)
    assert found.max() <= 50_000


def test_recorded_tail_reaches_the_maximum_once_in_as_many_requests_as_were_recorded():
    found = recorded()(1_000_000)
    assert (found == 50_000).sum() == pytest.approx(100, abs=40)


def test_recorded_lengths_do_not_depend_on_how_many_are_asked_at_once():
    whole, parts = recorded()(5000), recorded()
    assert np.concatenate([parts(n) for n in (1, 999, 1, 2500, 1499)]).tolist() == whole.tolist()
