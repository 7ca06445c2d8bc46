"""Law 6: the same scenario and seed give the same bytes, whatever else happens; random streams do not touch each other."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.random import Generator

import fleetsim
from fleetsim.kernel.streams import Streams
from fleetsim.plugins import PolicyConfig, allowing_imports
from fleetsim.routing.api import FleetView, RequestView
from fleetsim.scenario.schema import Scenario

ROOT = Path(__file__).parents[1]
TABLES = ("requests", "replicas", "fleet", "events", "gaps", "summary", "groups")


def busy_scenario(router: Any = "power-of-two-choices", seed: int = 7, sessions: bool = True) -> Scenario:
    """Sessions with shared prefixes on two pools, one of them with attention data parallelism, and too little KV cache."""
    lengths = {"distribution": "lognormal", "cv": 1.0, "min": 1, "max": 1500}
    pools = [
        {
            "name": "small",
            "llm": "llama-3.1-8b",
            "accelerator": "rtx-4090",
            "replicas": 2,
            "engine": {"kv": {"capacity_tokens": 6400}, "scheduler": {"max_seqs": 24}},
        },
        {
            "name": "wide",
            "llm": "qwen3-30b-a3b",
            "accelerator": "rtx-pro-6000",
            "parallelism": {"dp": 2, "ep": 2},
            "engine": {"kv": {"capacity_tokens": 6400, "block_tokens": 32}},
        },
    ]
    with allowing_imports(True):
        return Scenario.model_validate(
            {
                "schema": 1,
                "name": "busy",
                "seed": seed,
                "workload": {
                    "kind": "synthetic",
                    "requests": 700,
                    "arrivals": {"process": "gamma", "rate": "20 req/s", "burstiness": 0.4},
                    "prompt_tokens": {**lengths, "mean": 250},
                    "output_tokens": {**lengths, "mean": 200},
                    "prefixes": {"groups": 5, "tokens": 100, "zipf": 1.0},
                    "sessions": {
                        "turns": {"distribution": "lognormal", "mean": 3, "cv": 1.0, "min": 1, "max": 9},
                        "think_time": "800 ms",
                        "max_context_tokens": 3000,
                    }
                    if sessions
                    else None,
                },
                "slo": {"ttft": "2 s", "tpot": "100 ms", "attainment": 0.5},
                "gateway": {"router": router},
                "pools": pools,
                "run": {"interval": "5 s"},
            }
        )


def digests(folder: Path) -> dict[str, str]:
    """Digest of the bytes of each table."""
    return {name: hashlib.sha256((folder / f"{name}.parquet").read_bytes()).hexdigest() for name in TABLES}


SCRIPT = """
import sys
import fleetsim
from tests.test_determinism import busy_scenario
fleetsim.run(busy_scenario(), sys.argv[1], check=len(sys.argv) > 2)
"""


def test_bytes_do_not_depend_on_process_hash_seed_checks_or_what_ran_before(tmp_path: Path) -> None:
    """Three other processes at once, with other hash seeds and one with checks; then here, before and after another run."""
    variants = [("0", []), ("1", []), ("4242", ["check"])]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path / f"hash-{seed}"), *extra],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
        )
        for seed, extra in variants
    ]
    first = fleetsim.run(busy_scenario(), tmp_path / "first")
    fleetsim.run(busy_scenario("round-robin", seed=8), tmp_path / "other")
    fleetsim.run(busy_scenario(), tmp_path / "again", check=True)
    assert [process.wait(timeout=300) for process in processes] == [0, 0, 0]
    expected = digests(tmp_path / "first")
    for folder in ("again", *(f"hash-{seed}" for seed, _ in variants)):
        assert digests(tmp_path / folder) == expected, folder
    # the digests could tell
    assert digests(tmp_path / "other")["requests"] != expected["requests"]
    assert first.summary["preemptions"] > 10
    assert first.summary["prefix_hit_ratio"] > 0.1
    assert first.summary["requests"] == 700
    sizes = {name: first.table(name).num_rows for name in TABLES}
    assert min(sizes.values()) >= 1
    assert sizes["replicas"] > 10


def test_another_seed_gives_other_requests(tmp_path: Path) -> None:
    one, two = (fleetsim.run(busy_scenario(seed=seed), tmp_path / "out").requests() for seed in (1, 2))
    assert one["prompt_tokens"].to_pylist() != two["prompt_tokens"].to_pylist()


# --- streams ----------------------------------------------------------------------------------------------------------


def test_streams_do_not_depend_on_each_other() -> None:
    """What a stream gives depends on the seed and its name, not on which others exist or how far they are."""
    alone = Streams(5).get("workload.arrivals").random(1000)
    crowd = Streams(5)
    crowd.get("something new").random(123)
    arrivals = crowd.get("workload.arrivals")
    together = np.concatenate([arrivals.random(400), _between(crowd), crowd.get("workload.arrivals").random(600)])
    np.testing.assert_array_equal(alone, together)
    assert abs(np.corrcoef(alone, Streams(5).get("workload.lengths").random(1000))[0, 1]) < 0.15
    assert not np.array_equal(alone, Streams(6).get("workload.arrivals").random(1000))


def _between(streams: Streams) -> Any:
    """Draw from others; nothing to add."""
    streams.get("router.").random(77)
    return np.zeros(0)


class RestlessConfig(PolicyConfig):
    """No parameters."""


class Restless:
    """Round robin that draws from its stream at each request and does not use it."""

    Config = RestlessConfig

    def __init__(self, config: RestlessConfig, rng: Generator, fleet: FleetView) -> None:
        self._rng = rng
        self._count = fleet.count
        self._sent = 0

    def route(self, request: RequestView) -> int:
        self._rng.random(1 + self._sent % 5)
        self._sent += 1
        return (self._sent - 1) % self._count


def test_a_stream_more_changes_nothing(tmp_path: Path) -> None:
    """A router that draws random numbers gives the same tables as the one that draws none and chooses the same."""
    plain = fleetsim.run(busy_scenario("round-robin"), tmp_path / "plain")
    restless = busy_scenario("tests.test_determinism:Restless")
    drawing = fleetsim.run(restless, tmp_path / "restless", allow_import=True)
    for name in ("requests", "replicas", "fleet", "events", "gaps", "groups"):
        assert drawing.table(name).equals(plain.table(name)), name


ROUTERS = ("random", "round-robin", "least-outstanding", "join-shortest-queue", "session-affinity")


@pytest.mark.parametrize("router", ROUTERS)
def test_requests_are_the_same_whatever_the_router(router: str, tmp_path: Path) -> None:
    """Common random numbers: who comes, with which lengths and in which session; without sessions also when."""
    columns = ["request_id", "session_id", "turn", "prompt_tokens", "output_tokens"]
    reference = drawn(busy_scenario(), tmp_path, columns)
    assert drawn(busy_scenario(router), tmp_path, columns).equals(reference)
    columns.append("arrival_s")
    reference = drawn(busy_scenario(sessions=False), tmp_path, columns)
    assert drawn(busy_scenario(router, sessions=False), tmp_path, columns).equals(reference)


def drawn(scenario: Scenario, folder: Path, columns: list[str]) -> pa.Table:
    """Columns that come from the workload, by request."""
    result = fleetsim.run(scenario, folder / "out")
    return result.requests().select(columns).sort_by("request_id")
