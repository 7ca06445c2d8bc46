"""Little's law on every kind of station, and the law of scale: time-averages that two parts of the program count apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.theory.intervals import Observed, assert_within_interval, replicate
from tests.theory.stations import STEP_S, Station, hyperexponential, poisson, settled, written

EVERY = {"run": {"interval": "1 s"}}
STATIONS = {
    "M/G/1": (Station(1, **EVERY), 0.7),
    "M/G/10": (Station(10, **EVERY), 8.0),
    "sharing": (Station(4096, sharing=True, **EVERY), 0.7),
    "loss": (Station(3, router={"policy": "tests.theory.stations:AtMost", "limit": 6}, **EVERY), 3.0),
    "fleet": (Station(2, replicas=5, router="power-of-two-choices", **EVERY), 8.0),
}


@pytest.mark.parametrize("name", STATIONS)
def test_littles_law(name: str, tmp_path: Path) -> None:
    """Mean number in the system, as the meters sample it every second, is rate x mean sojourn of those that enter.

    5 replications of 2,000 requests with hyperexponential service. Each sample must be the number that the request table implies
    at that instant, and the difference of the two averages, sampling noise and edges, has mean zero at 99.9 %. With sojourns 5 %
    longer it has not.
    """
    station, load = STATIONS[name]

    def measure(seed: int) -> Observed:
        rng = np.random.default_rng([seed, 11])
        arrivals, service = poisson(rng, load, 2000), hyperexponential(rng, 2000)
        served = station.serve(written(tmp_path, arrivals, service), tmp_path, seed, check=True)
        rows = served.result.table("replicas")
        times_s = np.unique(rows["end_s"].to_numpy())
        sampled = (rows["running"].to_numpy() + rows["waiting"].to_numpy()).reshape(len(times_s), -1).sum(axis=1)
        entered = served.finished
        assert (sampled == served.in_system(times_s)).all()
        assert sampled.max() >= 4
        window_s = served.arrival_s[-1]
        mean_number = sampled[times_s <= window_s].mean()
        rate = entered.sum() / window_s
        flow = rate * served.sojourn_s[entered].mean()
        return Observed((mean_number / flow - 1.0, mean_number / (1.05 * flow) - 1.0), ())

    right, wrong = replicate(measure, 5)[0].T
    assert_within_interval(right, 0.0)
    with pytest.raises(AssertionError, match="is outside"):
        assert_within_interval(wrong, 0.0)


@pytest.mark.parametrize("name", STATIONS)
def test_doubling_all_rates_halves_all_times(name: str, tmp_path: Path) -> None:
    """Arrivals twice as fast and steps half as long: the same bits in every time but for the exponent, the same choices."""
    station, load = STATIONS[name]
    rng = np.random.default_rng(3)
    arrivals, service = poisson(rng, load, 1500), hyperexponential(rng, 1500)
    slow = station.serve(written(tmp_path, arrivals, service), tmp_path)
    fast_station = Station(station.servers, station.replicas, station.sharing, station.router, STEP_S / 2, station.run)
    workload = {**written(tmp_path, arrivals, service), "rate_scale": 2.0}
    fast = fast_station.serve(workload, tmp_path, check=True)
    assert (slow.tokens == fast.tokens).all()
    assert (slow.replica == fast.replica).all()
    for column in ("arrival_s", "start_s", "first_token_s", "end_s"):
        np.testing.assert_array_equal(getattr(slow, column), 2.0 * getattr(fast, column), err_msg=column)
    assert settled(slow.sojourn_s)[slow.finished[-len(settled(slow.sojourn_s)) :]].max() > 2.0
