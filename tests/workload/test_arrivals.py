"""Statistics with tolerances of four standard errors or more, at fixed seeds."""

import numpy as np
import pytest

from tests.workload.conftest import synthetic

N = 40_000


def times(arrivals, seed=7, **block):
    block.setdefault("requests", N)
    return np.array([r.arrival_s for r in synthetic(seed, arrivals=arrivals, **block).requests()])


def gap_moments(found):
    gaps = np.diff(found, prepend=0.0)
    return gaps.mean(), gaps.std() / gaps.mean()


@pytest.mark.parametrize(
    ("arrivals", "cv"),
    [
        ({"process": "poisson", "rate": "5 req/s"}, 1.0),
        ({"process": "gamma", "rate": "5 req/s", "burstiness": 0.25}, 2.0),
        ({"process": "gamma", "rate": "5 req/s", "burstiness": 4}, 0.5),
        ({"process": "weibull", "rate": "5 req/s", "shape": 0.5}, 5**0.5),
        ({"process": "weibull", "rate": "5 req/s", "shape": 2}, (4 / np.pi - 1) ** 0.5),
        ({"process": "deterministic", "rate": "5 req/s"}, 0.0),
    ],
)
def test_renewal_processes_have_their_rate_and_burstiness(arrivals, cv):
    mean, found_cv = gap_moments(times(arrivals))
    assert mean == pytest.approx(0.2, rel=4 * max(cv, 1e-9) / N**0.5)
    assert found_cv == pytest.approx(cv, rel=0.06, abs=1e-9)


def test_normalised_gamma_ends_on_time():
    found = times({"process": "gamma", "rate": "5 req/s", "burstiness": 0.1, "normalise": True}, requests=20_000)
    assert found[-1] == pytest.approx(4000.0, rel=1e-12)


def test_modulated_poisson_has_the_mean_of_its_states():
    arrivals = {"process": "mmpp", "rates": ["1 req/s", "20 req/s"], "holding": ["30 s", "10 s"]}
    found = times(arrivals)
    assert N / found[-1] == pytest.approx(5.75, rel=0.12)
    counts = np.histogram(found, bins=int(found[-1] / 5))[0]
    assert counts.var() / counts.mean() > 10


def test_diurnal_rate_follows_the_sine():
    arrivals = {"process": "diurnal", "rate": "10 req/s", "amplitude": 1, "period": "100 s", "phase": "25 s"}
    phase = times(arrivals) % 100
    counts = np.histogram(phase, bins=10, range=(0, 100))[0] / len(phase)
    edges = np.linspace(0, 100, 11)
    covered = (edges - 100 / (2 * np.pi) * np.cos(2 * np.pi * (edges - 25) / 100)) / 100
    assert counts == pytest.approx(np.diff(covered), abs=4 * (0.2 * 0.8 / N) ** 0.5)


def test_diurnal_mean_rate():
    arrivals = {"process": "diurnal", "rate": "10 req/s", "amplitude": 0.5, "period": "1 h", "phase": "10 min"}
    assert len(times(arrivals, requests=None, duration="4 h")) == pytest.approx(144_000, abs=4 * 144_000**0.5)


def test_piecewise_rate_repeats_and_can_be_silent():
    steps = [
        {"duration": "10 s", "rate": "0"},
        {"duration": "10 s", "rate": "9 req/s"},
        {"duration": "5 s", "rate": "1 req/s"},
    ]
    found = times({"process": "piecewise", "steps": steps}) % 25
    assert not (found < 10).any()
    assert (found > 20).mean() == pytest.approx(5 / 95, abs=4 * (0.05 / N) ** 0.5)


def test_duration_and_requests_stop_whichever_is_first():
    arrivals = {"process": "deterministic", "rate": "2 req/s"}
    assert len(times(arrivals, requests=None, duration="10 s")) == 20
    assert len(times(arrivals, requests=7, duration="10 s")) == 7
    assert len(times(arrivals, requests=7, duration="1 s")) == 2


def test_bad_normalisation_is_refused():
    with pytest.raises(ValueError, match="normalise needs the number of arrivals"):
        times({"process": "gamma", "rate": "1 req/s", "normalise": True}, requests=None, duration="1 s")
