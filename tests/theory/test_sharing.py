"""M/G/1 with processor sharing: a step that lasts in proportion to its batch gives every request an equal share.

Mean sojourn 1/(1 - load) whatever the distribution of service (insensitivity), x/(1 - load) for a request of service x, and a
share 1 - load of the requests that find the station empty, by which the short versions must tell service 5 % slower.
16 replications of 2,000 requests at load 0.7 (24 of 20,000 in the long version), t-interval at 99.9 %, the first tenth as warm-up.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.random import Generator

from tests.theory.formulas import pollaczek_khinchine
from tests.theory.intervals import Observed, assert_theory
from tests.theory.stations import STEP_S, Floats, Station, controls, hyperexponential, poisson, settled, written

LOAD = 0.7
SERVICES: dict[str, Callable[[Generator, int], Floats]] = {
    "constant": lambda rng, count: np.ones(count),
    "exponential": lambda rng, count: rng.standard_exponential(count),
    "hyperexponential": hyperexponential,
}


@pytest.mark.parametrize(
    ("service", "replications", "requests"),
    [
        *(pytest.param(service, 16, 2000, id=service) for service in ("constant", "hyperexponential")),
        *(pytest.param(service, 24, 20_000, id=f"{service}-long", marks=pytest.mark.slow) for service in SERVICES),
    ],
)
def test_sojourn_under_processor_sharing_depends_on_the_mean_only(
    service: str, replications: int, requests: int, tmp_path: Path
) -> None:
    """The same mean sojourn and mean slowdown for all three; a first come, first served queue would tell them apart."""
    fifo = [pollaczek_khinchine(LOAD, cv2) + 1.0 for cv2 in (0.0, 1.0, 4.0)]
    assert max(fifo) > 2 * min(fifo)

    def measure(seed: int, slower: float) -> Observed:
        rng = np.random.default_rng([7, seed])
        arrivals = poisson(rng, LOAD, requests)
        need = SERVICES[service](rng, requests)
        station = Station(4096, sharing=True, step_s=STEP_S * slower)
        served = station.serve(written(tmp_path, arrivals, need), tmp_path, seed)
        sojourn_s = settled(served.sojourn_s)
        assert served.most_in_system() > 5
        slowdown = float((sojourn_s / settled(served.tokens * STEP_S)).mean())
        drawn = controls(arrivals, need, LOAD)
        empty = float((settled(served.in_system(served.arrival_s)) == 1).mean())
        return Observed((slowdown, float(sojourn_s.mean()), empty), drawn if service != "constant" else drawn[:1])

    def theory(slower: float) -> tuple[float, ...]:
        load = LOAD * slower
        return slower / (1 - load), slower / (1 - load), 1 - load

    short = replications < 24
    assert_theory(measure, theory, replications, power=(2,) if short else (0, 2), calculated=short)
