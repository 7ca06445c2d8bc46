"""Stations whose mean wait is known exactly: M/M/1, M/M/c (Erlang C), M/D/1 and M/G/1 (Pollaczek-Khinchine).

Every figure is the mean over independent replications of a whole run of the real engine, and must lie within Student's t-interval
at 99.9 %. Slower service must be told: in the long versions the same replications with service 3 % slower must miss it, by every
mean wait; in the short ones the interval of the share of requests that wait must not reach what service 5 % slower would give. The
first tenth of each run's requests is warm-up. Short versions are 16 replications of 2,000 requests
(M/M/100: 6,000), long ones 24 of 20,000.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heapreplace
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.theory.formulas import erlang_c, pollaczek_khinchine, wait_exceeded
from tests.theory.intervals import Observed, assert_theory
from tests.theory.stations import (
    STEP_S,
    STEPS,
    Served,
    Station,
    controls,
    hyperexponential,
    poisson,
    settled,
    written,
)

SHORT, LONG = (16, 2000), (24, 20_000)
"""Replications and requests of each."""
SIZES = [pytest.param(*SHORT, id="short"), pytest.param(*LONG, id="long", marks=pytest.mark.slow)]


def power(replications: int) -> dict[str, Any]:
    """Which figures must tell slower service, and how: the second, and the first one too where there are runs enough."""
    short = replications < LONG[0]
    return {"power": (1,) if short else (0, 1), "calculated": short}


# the values of card E2
ERLANG = {(10, 8.0): (0.4092, 0.20459, 1.8558), (50, 42.5): (0.1897, 0.02529, 0.3924)} | {
    (100, 90.0): (0.2169, 0.02169, 0.3077),
    (4, 3.0): (0.5094, 0.50943, 3.9307),
}


@pytest.mark.parametrize(("servers", "load"), ERLANG)
def test_erlang_c_gives_the_published_values(servers: int, load: float) -> None:
    """Published to four digits: probability of waiting, mean wait, and the wait that one request in 100 exceeds."""
    chance = erlang_c(servers, load)
    ours = (chance, chance / (servers - load), wait_exceeded(servers, load, 0.01))
    assert ours == pytest.approx(ERLANG[servers, load], rel=3e-4)


@pytest.mark.parametrize("servers", [1, 3, 20])
def test_every_start_is_that_of_a_first_come_first_served_queue(servers: int, tmp_path: Path) -> None:
    """Each of 5,000 requests starts when the recursion of Kiefer and Wolfowitz says: at its arrival, or when a server is free.

    With one server it agrees to rounding. With more, a request that comes in mid-step starts at the step's end; the accumulated
    difference stays below 30 steps, 0.3 % of a service.
    """
    rng = np.random.default_rng(servers)
    arrivals = poisson(rng, 0.9 * servers, 5000)
    service = np.maximum(np.rint(hyperexponential(rng, 5000) * STEPS), 1) * STEP_S
    served = Station(servers).serve(written(tmp_path, arrivals, service), tmp_path, check=True)
    free = [0.0] * servers
    starts = []
    for arrival, busy in zip((arrivals - arrivals[0]).tolist(), service.tolist(), strict=True):
        starts.append(max(arrival, free[0]))
        heapreplace(free, starts[-1] + busy)
    difference = np.abs(served.start_s - np.array(starts))
    assert difference.max() < (1e-6 if servers == 1 else 30 * STEP_S)
    assert (served.wait_s > 0.1).sum() > 1000


@pytest.mark.parametrize(
    ("servers", "load", "replications", "requests"),
    [
        pytest.param(1, 0.8, *SHORT, id="M/M/1"),
        pytest.param(10, 8.0, *SHORT, id="M/M/10"),
        pytest.param(100, 90.0, 16, 6000, id="M/M/100"),
        *(
            pytest.param(c, a, *LONG, id=f"M/M/{c}-{a:g}-long", marks=pytest.mark.slow)
            for c, a in [(1, 0.5), (1, 0.9), *ERLANG]
        ),
    ],
)
def test_wait_before_many_servers_is_erlang_c(
    servers: int, load: float, replications: int, requests: int, tmp_path: Path
) -> None:
    """M/M/c: mean wait C/(c - a), share C that waits at all, and 1 % that wait beyond ln(C/0.01)/(c - a).

    One replica with `max_seqs` = c.
    """
    late_s = wait_exceeded(servers, load, 0.01)

    def theory(slower: float) -> tuple[float, ...]:
        chance = erlang_c(servers, load * slower)
        spare = servers / slower - load
        return chance / spare, chance, chance * exp(-spare * late_s)

    def measure(seed: int, slower: float) -> Observed:
        rng = np.random.default_rng([servers, seed])
        arrivals, service = poisson(rng, load, requests), rng.standard_exponential(requests)
        step_s = STEP_S * slower
        served = Station(servers, step_s=step_s).serve(written(tmp_path, arrivals, service), tmp_path, seed)
        wait_s = settled(served.wait_s)
        assert wait_s.max() > 0.1
        figures = float(wait_s.mean()), float((wait_s > step_s).mean()), float((wait_s > late_s).mean())
        return Observed(figures, controls(arrivals, service, load))

    assert theory(1.0)[2] == pytest.approx(0.01)
    assert_theory(measure, theory, replications, **power(replications))


@pytest.mark.parametrize(
    ("load", "replications", "requests"),
    [
        pytest.param(0.8, *SHORT, id="0.8"),
        *(pytest.param(a, *LONG, id=f"{a}-long", marks=pytest.mark.slow) for a in (0.5, 0.8, 0.9)),
    ],
)
def test_wait_before_constant_service_is_half(load: float, replications: int, requests: int, tmp_path: Path) -> None:
    """M/D/1: mean wait load/(2(1 - load)), from the scenario's own Poisson arrivals and fixed lengths."""

    def measure(seed: int, slower: float) -> Observed:
        workload = synthetic(load, requests, {"distribution": "fixed", "value": STEPS})
        served = Station(step_s=STEP_S * slower).serve(workload, tmp_path, seed)
        assert set(served.tokens) == {STEPS}
        gap, _ = controls(served.arrival_s, served.tokens * STEP_S, load)
        return Observed(mean_and_share(served), [gap])

    assert_theory(measure, wait_and_share(load, 0.0), replications, **power(replications))


@pytest.mark.parametrize(("replications", "requests"), SIZES)
def test_wait_grows_with_the_variance_of_service(replications: int, requests: int, tmp_path: Path) -> None:
    """M/G/1 with service of two exponentials, squared coefficient of variation 4, load 0.6: Pollaczek-Khinchine."""

    def measure(seed: int, slower: float) -> Observed:
        rng = np.random.default_rng([4, seed])
        arrivals, service = poisson(rng, 0.6, requests), hyperexponential(rng, requests)
        served = Station(step_s=STEP_S * slower).serve(written(tmp_path, arrivals, service), tmp_path, seed)
        square = float((service**2).mean()) / 5.0 - 1.0
        return Observed(mean_and_share(served), [*controls(arrivals, service, 0.6), square])

    assert_theory(measure, wait_and_share(0.6, 4.0), replications, **power(replications))


@pytest.mark.parametrize(("replications", "requests"), SIZES)
def test_wait_before_the_scenarios_own_lognormal_lengths(replications: int, requests: int, tmp_path: Path) -> None:
    """M/G/1 with lognormal service drawn by the scenario itself, coefficient of variation 1, load 0.7: Pollaczek-Khinchine."""
    lengths = {"distribution": "lognormal", "mean": STEPS, "cv": 1.0, "min": 1, "max": 1_000_000}

    def measure(seed: int, slower: float) -> Observed:
        served = Station(step_s=STEP_S * slower).serve(synthetic(0.7, requests, lengths), tmp_path, seed)
        service = served.tokens * STEP_S
        assert service.std() > 0.5
        drawn = *controls(served.arrival_s, service, 0.7), float((service**2).mean()) / 2.0 - 1.0
        return Observed(mean_and_share(served), drawn)

    assert_theory(measure, wait_and_share(0.7, 1.0), replications, **power(replications))


def wait_and_share(load: float, cv2: float) -> Callable[[float], Sequence[float]]:
    """What `mean_and_share` gives for M/G/1, by factor on the service time."""
    return lambda slower: (slower * pollaczek_khinchine(load * slower, cv2), load * slower)


def mean_and_share(served: Served) -> tuple[float, float]:
    """Mean wait, and share of requests that wait: the load, as Poisson arrivals see it."""
    wait_s = settled(served.wait_s)
    return float(wait_s.mean()), float((wait_s > 0).mean())


def synthetic(load: float, requests: int, lengths: dict[str, Any]) -> dict[str, Any]:
    """Poisson arrivals and one-token prompts."""
    return {
        "kind": "synthetic",
        "requests": requests,
        "arrivals": {"process": "poisson", "rate": f"{load} req/s"},
        "prompt_tokens": {"distribution": "fixed", "value": 1},
        "output_tokens": lengths,
    }
