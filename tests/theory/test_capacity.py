"""More replicas help, and nothing is served faster than the servers can: what a simulator without queues gets wrong."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import fleetsim
from fleetsim.scenario.schema import Scenario
from tests.theory.stations import STEP_S, STEPS, Station, hyperexponential, poisson, written


@pytest.mark.parametrize(("servers", "sharing"), [(1, False), (8, False), (4096, True)])
def test_completions_never_exceed_capacity(servers: int, sharing: bool, tmp_path: Path) -> None:
    """At 1.3 times its capacity a station works off exactly its capacity, in the whole run and in each tenth of it."""
    capacity = 1 if sharing else servers
    rng = np.random.default_rng(servers)
    arrivals, service = poisson(rng, 1.3 * capacity, 4000), rng.standard_exponential(4000)
    served = Station(servers, sharing=sharing).serve(written(tmp_path, arrivals, service), tmp_path, check=True)
    assert sharing or served.result.verdict == "OVERLOADED"
    order = np.argsort(served.end_s, kind="stable")
    ends_s, work_s = served.end_s[order], served.tokens[order] * STEP_S
    done_s = np.cumsum(work_s)
    assert (done_s <= capacity * ends_s * (1 + 1e-9)).all()
    last_arrival = served.arrival_s[-1]
    busy = ends_s <= last_arrival
    assert done_s[busy][-1] > (0.6 if sharing else 0.98) * capacity * last_arrival
    assert served.result.summary["busy_ratio"] > 0.97
    if not sharing:  # a server ends at most what it began: windows of a tenth, but for the services cut by their edges
        for begin, end in pairwise(np.linspace(0.0, last_arrival, 11)):
            inside = (served.start_s >= begin) & (served.end_s <= end)
            assert (served.tokens[inside] * STEP_S).sum() <= capacity * (end - begin) * (1 + 1e-9)


def test_more_replicas_never_raise_the_mean_wait(tmp_path: Path) -> None:
    """Law 8: first come, first served behind the least outstanding, the same 2,000 requests on 1 to 7 replicas."""
    for seed, (servers, cv2) in enumerate([(1, 1.0), (1, 4.0), (3, 4.0)]):
        rng = np.random.default_rng(seed)
        arrivals = poisson(rng, 3.5 * servers, 2000)
        service = rng.standard_exponential(2000) if cv2 == 1 else hyperexponential(rng, 2000, cv2)
        waits = []
        for replicas in (1, 2, 3, 4, 5, 7):
            served = Station(servers, replicas).serve(written(tmp_path, arrivals, service), tmp_path)
            waits.append(float(served.wait_s.mean()))
        assert all(more <= fewer for fewer, more in pairwise(waits)), waits
        assert waits[0] > 100 * waits[4] > 0


@pytest.mark.parametrize("router", ["least-outstanding", "join-shortest-queue", "power-of-two-choices"])
def test_tail_latency_falls_when_replicas_are_added(router: str, tmp_path: Path) -> None:
    """P99 TTFT of a real fleet (roofline physics, 60 requests/s of lognormal lengths) on 1, 2, 4, 8 and 16 replicas.

    It falls by more than half until the queue is gone, and never rises. There are simulators whose P99 does not depend on
    the number of GPUs at all.
    """
    tails = []
    for replicas in (1, 2, 4, 8, 16):
        result = fleetsim.run(real_fleet(router, replicas), tmp_path / "out", check=True)
        assert result.summary["finished"] == 1500
        tails.append(result.summary["ttft_p99_s"])
    assert all(more < fewer for fewer, more in pairwise(tails)), tails
    assert tails[0] > 2 * tails[1] > 4 * tails[2]


def real_fleet(router: str, replicas: int) -> Scenario:
    lengths = {"distribution": "lognormal", "cv": 1.0, "min": 1, "max": 4000}
    return Scenario.model_validate(
        {
            "schema": 1,
            "name": "growing",
            "seed": 5,
            "workload": {
                "kind": "synthetic",
                "requests": 1500,
                "arrivals": {"process": "poisson", "rate": "60 req/s"},
                "prompt_tokens": {**lengths, "mean": 1500},
                "output_tokens": {**lengths, "mean": 200},
            },
            "gateway": {"router": router},
            "pools": [{"name": "main", "llm": "llama-3.1-8b", "accelerator": "l40s", "replicas": replicas}],
        }
    )


def test_seats_are_capacity(tmp_path: Path) -> None:
    """The same station with more seats serves an overload better, until there are enough."""
    rng = np.random.default_rng(2)
    arrivals, service = poisson(rng, 3.6, 2000), rng.standard_exponential(2000)
    waits = [
        float(Station(servers).serve(written(tmp_path, arrivals, service), tmp_path).wait_s.mean())
        for servers in (2, 3, 4, 5, 40)
    ]
    assert all(more < fewer for fewer, more in pairwise(waits)), waits
    assert waits[-1] < 1.0 / STEPS < waits[-2]
