"""M/M/c/K: a router turns requests away while K are in the system; M/M/c/c is Erlang's loss system.

16 replications of 2,000 requests (24 of 20,000 in the long version), t-interval at 99.9 %, the first tenth as warm-up. The short
interval of the share that is rejected must not reach that of service 5 % slower; in the long version service 3 % slower is run.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.theory.formulas import erlang_b, loss_station
from tests.theory.intervals import Observed, assert_theory
from tests.theory.stations import STEP_S, Station, controls, poisson, settled, written


def test_loss_station_without_places_to_wait_is_erlang_b() -> None:
    """Two ways to the same number."""
    assert loss_station(10, 10, 8.0) == (pytest.approx(erlang_b(10, 8.0), rel=1e-12), 0.0)


CASES = {"M/M/1/5": (1, 5, 0.9), "M/M/4/8": (4, 8, 4.0), "M/M/10/10": (10, 10, 8.0)}


@pytest.mark.parametrize(
    ("case", "replications", "requests"),
    [
        *(pytest.param(case, 16, 2000, id=case) for case in ("M/M/1/5", "M/M/10/10")),
        *(pytest.param(case, 24, 20_000, id=f"{case}-long", marks=pytest.mark.slow) for case in CASES),
    ],
)
def test_blocking_and_wait_of_a_loss_station(case: str, replications: int, requests: int, tmp_path: Path) -> None:
    """Share of requests that are rejected, and mean wait of the others; with slower service more are rejected."""
    servers, places, load = CASES[case]

    def theory(slower: float) -> tuple[float, ...]:
        blocked, wait = loss_station(servers, places, load * slower)
        # without places to wait, the wait is that for the end of the step under way
        return (blocked, slower * wait) if places > servers else (blocked,)

    def measure(seed: int, slower: float) -> Observed:
        rng = np.random.default_rng([servers, seed])
        arrivals, service = poisson(rng, load, requests), rng.standard_exponential(requests)
        router = {"policy": "tests.theory.stations:AtMost", "limit": places}
        station = Station(servers, router=router, step_s=STEP_S * slower)
        served = station.serve(written(tmp_path, arrivals, service), tmp_path, seed, check=True)
        rejected = ~settled(served.finished)
        assert served.result.summary["rejected"] == (~served.finished).sum() > 0
        wait_s = settled(served.wait_s)[~rejected]
        assert served.most_in_system() == places
        return Observed((float(rejected.mean()), float(wait_s.mean())), controls(arrivals, service, load))

    assert_theory(measure, theory, replications, calculated=replications < 24)
