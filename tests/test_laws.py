"""The laws hold where they are hard to keep, and each one is found broken when it is broken on purpose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.random import Generator

import fleetsim
from fleetsim.catalog.accelerator import load_accelerator
from fleetsim.engine.batch import Batch
from fleetsim.engine.schedulers.vllm_v1 import VllmV1, VllmV1Config
from fleetsim.errors import LawError, PolicyError
from fleetsim.fleet.fleet import Fleet
from fleetsim.kernel.clock import Clock
from fleetsim.kernel.streams import Streams
from fleetsim.plugins import PolicyConfig, allowing_imports
from fleetsim.routing.api import FleetView, RequestView
from fleetsim.scenario.schema import Scenario
from fleetsim.workload.request import FINISHED, REJECTED, Request
from tests.theory.stations import ConstantStep, StepConfig

HERE = "tests.test_laws"


def pressed(engine: dict[str, Any] | None = None, replicas: int = 2, **parts: Any) -> Scenario:
    """Shared prefixes, chunked prompts and too little KV cache: preemptions, hits and evictions."""
    lengths = {"distribution": "lognormal", "cv": 1.0, "min": 1, "max": 500}
    engine = {
        "kv": {"capacity_tokens": 3200},
        "scheduler": {"max_batched_tokens": 256, "max_seqs": 32},
        **(engine or {}),
    }
    scenario = {
        "schema": 1,
        "name": "pressed",
        "seed": 3,
        "workload": {
            "kind": "synthetic",
            "requests": 300,
            "arrivals": {"process": "gamma", "rate": "40 req/s", "burstiness": 0.3},
            "prompt_tokens": {**lengths, "mean": 300},
            "output_tokens": {**lengths, "mean": 120},
            "prefixes": {"groups": 4, "tokens": 120, "zipf": 1.0},
        },
        "pools": [
            {"name": "main", "llm": "llama-3.1-8b", "accelerator": "rtx-4090", "replicas": replicas, "engine": engine}
        ],
        **parts,
    }
    with allowing_imports(True):
        return Scenario.model_validate(scenario)


def run(scenario: Scenario, folder: Path, check: bool = True) -> fleetsim.Result:
    return fleetsim.run(scenario, folder / "out", check=check, allow_import=True)


# --- each law broken on purpose ---------------------------------------------------------------------------------------


def _forget(batch: Batch) -> bool:
    return len(batch.waiting) > 1 and batch.waiting.pop() is not None


def _keep_a_prefix_in_use(batch: Batch) -> bool:
    for node in batch.cache.nodes():
        if node.users:
            current = node
            while current.length:
                current.users += 1
                assert current.parent is not None
                current = current.parent
            return True
    return False


def _change(attribute: str, change: float) -> Callable[[Batch], bool]:
    """Tamper with a count of the batch or its cache."""

    def fault(batch: Batch) -> bool:
        owner: Any = batch
        *path, name = attribute.split(".")
        for part in path:
            owner = getattr(owner, part)
        setattr(owner, name, getattr(owner, name) + change)
        return True

    return fault


def _shift_a_phase(batch: Batch) -> bool:
    batch.phases[3] += 1
    return True


def _charge_twice(batch: Batch) -> bool:
    for request in batch.running:
        request.energy_j += 5.0
    return bool(batch.running)


def _give_tokens_away(batch: Batch) -> bool:
    for request in batch.prefilling:
        if request.generated:  # it was preempted
            request.generated += request.output_tokens
            return True
    return False


FAULTS: dict[str, tuple[Callable[[Batch], bool], str]] = {
    "forgets a request": (_forget, r"law 1 \(conservation\): 300 requests arrived, 29\d ended"),
    "gives tokens away": (_give_tokens_away, r"law 2 \(tokens\): request \d+ got \d+ of \d+ tokens"),
    "counts a block too many": (_change("cache.used", 1), r"law 3 .*used KV blocks kept"),
    "loses a block": (_change("cache.used", -1), r"law 3 .*used KV blocks kept"),
    "miscounts cached blocks": (_change("cache.cached", -1), r"law 3 .*cached (KV blocks kept|-1)"),
    "miscounts the context": (_change("ctx_tokens", 1), r"law 3 .*context tokens kept"),
    "miscounts who needs a block": (_shift_a_phase, r"law 3 .*block phases kept"),
    "caches more than there is": (_change("cache.cached", 10_000), r"law 3 \(KV blocks\): used \d+, cached 10\d+"),
    "keeps a prefix in use": (_keep_a_prefix_in_use, r"law 3 \(KV blocks\): replica \d leaks \d+ blocks"),
    "charges twice": (_charge_twice, r"law 5 \(energy\): meter"),
}
"""What a faulty scheduler does once, and the law that must object."""


class FaultyConfig(PolicyConfig):
    max_batched_tokens: int = 2048
    max_seqs: int = 256
    fault: str
    """Name in `FAULTS`."""
    after: int = 40
    """Calls before it happens."""


class Faulty:
    """vLLM's scheduler, which breaks something once."""

    Config = FaultyConfig

    def __init__(self, config: FaultyConfig) -> None:
        seats, budget = config.max_seqs, config.max_batched_tokens
        self._inner = VllmV1(VllmV1Config(max_seqs=seats, max_batched_tokens=budget))
        self._fault, _ = FAULTS[config.fault]
        self._left = config.after

    def schedule(self, batch: Batch) -> None:
        self._inner.schedule(batch)
        self._left -= 1
        if self._left < 0 and self._fault(batch):
            self._left = 1 << 60

    def admits(self, batch: Batch) -> bool:
        return self._inner.admits(batch)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_scheduler_that_breaks_a_law_is_found(fault: str, tmp_path: Path) -> None:
    """And leaves no results behind."""
    block = {"policy": f"{HERE}:Faulty", "fault": fault, "max_batched_tokens": 256, "max_seqs": 32}
    with pytest.raises(LawError, match=FAULTS[fault][1]):
        run(pressed({"scheduler": block}), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_same_scheduler_without_its_fault_keeps_all_laws(tmp_path: Path) -> None:
    """Under pressure: preemptions, hits and evictions do happen."""
    block = {"policy": f"{HERE}:Faulty", "fault": "charges twice", "after": 1 << 30, "max_batched_tokens": 256}
    result = run(pressed({"scheduler": block}), tmp_path)
    assert result.summary["finished"] == 300
    assert result.summary["preemptions"] > 10
    assert result.summary["prefix_hit_ratio"] > 0.02
    assert "kv_evictions" in result.table("events")["kind"].to_pylist()


def test_laws_are_checked_only_when_asked(tmp_path: Path) -> None:
    """A broken account goes unseen without `check`, which is why tests run with it."""
    block = {"policy": f"{HERE}:Faulty", "fault": "charges twice", "max_batched_tokens": 256, "max_seqs": 32}
    result = run(pressed({"scheduler": block}), tmp_path, check=False)
    charged = result.summary["energy_requests_j"] + result.summary["energy_idle_j"]
    assert charged > result.summary["energy_j"] + 4.0


class EarlyQueue(ConstantStep):
    """Lets requests join the queue before they arrive."""

    Config = StepConfig
    frontend_s = -1e-3


def test_times_out_of_order_are_found(tmp_path: Path) -> None:
    scenario = pressed({"step_time": {"model": f"{HERE}:EarlyQueue", "step_s": 0.01}})
    with pytest.raises(LawError, match=r"law 2 \(order of times\): request \d+ has \("):
        run(scenario, tmp_path)


class Undated:
    """vLLM's scheduler, which wipes the start of one request."""

    Config = VllmV1Config

    def __init__(self, config: VllmV1Config) -> None:
        self._inner = VllmV1(config)

    def schedule(self, batch: Batch) -> None:
        self._inner.schedule(batch)
        for request in batch.running:
            if request.id == 7:
                request.first_scheduled_s = float("nan")

    def admits(self, batch: Batch) -> bool:
        return self._inner.admits(batch)


def test_a_finished_request_without_a_start_is_found(tmp_path: Path) -> None:
    with pytest.raises(LawError, match=r"law 2 \(order of times\): request 7 has .*nan"):
        run(pressed({"scheduler": {"policy": f"{HERE}:Undated"}}), tmp_path)


# --- a fleet in the hand --------------------------------------------------------------------------------------------


class Given:
    """A workload of requests that are there already."""

    skipped_rows = 0

    def __init__(self, *requests: Request) -> None:
        self._requests = requests

    def requests(self) -> Iterator[Request]:
        yield from self._requests

    def released_by(self, request: Request, now_s: float) -> Request | None:
        return None


def served(*requests: Request, scenario: Scenario | None = None) -> tuple[Fleet, list[Request], Clock]:
    """A fleet after it served these requests, and in which order they ended."""
    clock, ended = Clock(), list[Request]()
    scenario = scenario or pressed()
    fleet = Fleet(scenario, Path(), clock, Streams(0), ended.append, verify_every=1)
    fleet.feed(Given(*requests))
    clock.run()
    return fleet, ended, clock


@pytest.mark.parametrize("change_s", [1000.0, -1000.0])
def test_busy_time_beyond_the_clock_is_found(change_s: float) -> None:
    """Law 4: no replica is busy for longer than the run lasted, nor for less than no time."""
    fleet, ended, clock = served(*(Request(i, 0.1 * i, 50, 20) for i in range(20)))
    assert len(ended) == 20
    fleet.verify(clock.now_s)
    fleet.replicas[0].busy_s += change_s
    with pytest.raises(LawError, match=r"law 4 \(busy time\): replica 0 busy"):
        fleet.verify(clock.now_s)


def test_a_request_that_ended_twice_is_found() -> None:
    fleet, ended, clock = served(Request(0, 0.0, 50, 20))
    fleet.on_end(ended[0])
    fleet.ended += 1
    with pytest.raises(LawError, match=r"law 1 \(conservation\): 1 requests arrived, 2 ended"):
        fleet.verify(clock.now_s)


def test_what_no_pool_serves_is_rejected_with_the_reason() -> None:
    """It is told apart from what fits, and ends at its arrival."""
    known, unknown = Request(0, 0.0, 50, 20, model="llama-3.1-8b"), Request(1, 0.5, 50, 20, model="gpt-x")
    fleet, ended, clock = served(known, unknown)
    fleet.verify(clock.now_s)
    assert {r.id: (r.status, r.reason) for r in ended} == {
        0: (FINISHED, None),
        1: (REJECTED, "no pool serves this model"),
    }
    assert unknown.end_s == 0.5


# --- decisions that cannot be done ------------------------------------------------------------------------------------


class WrongConfig(PolicyConfig):
    answer: Any = None


class Wrong:
    """Always gives the same answer."""

    Config = WrongConfig

    def __init__(self, config: WrongConfig, rng: Generator, fleet: FleetView) -> None:
        self._answer = config.answer

    def route(self, request: RequestView) -> Any:
        return self._answer


@pytest.mark.parametrize("answer", [2, -1, None, "main", 0.0, True])
def test_a_router_must_name_a_replica(answer: Any, tmp_path: Path) -> None:
    scenario = pressed(gateway={"router": {"policy": f"{HERE}:Wrong", "answer": answer}})
    with pytest.raises(PolicyError, match=r"router answered .* for request 0; there are 2 replicas"):
        run(scenario, tmp_path, check=False)


class Idle:
    """Admits nobody."""

    Config = VllmV1Config

    def __init__(self, config: VllmV1Config) -> None:
        pass

    def schedule(self, batch: Batch) -> None:
        pass

    def admits(self, batch: Batch) -> bool:
        return False


class Careless(Idle):
    """Admits everybody and never preempts."""

    def schedule(self, batch: Batch) -> None:
        for request in batch.prefilling:
            batch.extend(request, request.target - request.computed)
        while batch.waiting and batch.admit(batch.waiting[0], 1 << 20, whole=False):
            pass

    def admits(self, batch: Batch) -> bool:
        return True


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [("Idle", "Idle admits nothing on an empty rank although request 0 waits"), ("Careless", "without KV blocks")],
)
def test_a_scheduler_must_keep_the_engine_going(scheduler: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=message):
        run(pressed({"scheduler": {"policy": f"{HERE}:{scheduler}"}}), tmp_path, check=False)


# --- accounts that must balance ---------------------------------------------------------------------------------------

SLO = {"ttft": "30 s", "tpot": "200 ms", "attainment": 0.9}


@pytest.mark.parametrize("horizon_s", [0.9, 2.5, 4.0, 5.25])
@pytest.mark.parametrize("step_by_step", [False, True])
def test_a_run_cut_at_its_horizon_counts_everything(horizon_s: float, step_by_step: bool, tmp_path: Path) -> None:
    """Laws 1 and 5: who arrived is finished or unfinished; tokens and energy of half-served requests are counted."""
    whole = run(pressed(slo=SLO), tmp_path).requests()
    cut = pressed({"step_by_step": step_by_step}, slo=SLO, run={"horizon": f"{horizon_s} s", "interval": "300 ms"})
    result = run(cut, tmp_path)
    summary, requests = result.summary, result.requests()
    status = np.array(requests["status"].cast(pa.string()).to_pylist())
    arrived = int((whole["arrival_s"].to_numpy() <= horizon_s).sum())
    ended = int((whole["end_s"].to_numpy() <= horizon_s).sum())
    assert summary["requests"] == len(requests) == arrived
    assert summary["finished"] == (status == "finished").sum() == ended > 0
    assert summary["unfinished"] == (status == "unfinished").sum() == arrived - ended > 0
    assert summary["simulated_s"] == horizon_s
    assert not np.array(requests["slo_met"].to_pylist())[status == "unfinished"].any()
    assert summary["slo_attainment_ratio"] <= ended / arrived
    assert requests["end_s"].null_count == summary["unfinished"]
    assert_balanced(result)
    started = requests["output_tokens"].to_numpy()[status == "unfinished"]
    assert started.max() > 0


def test_a_run_to_the_end_balances(tmp_path: Path) -> None:
    assert_balanced(run(pressed(run={"interval": "700 ms"}), tmp_path))


def assert_balanced(result: fleetsim.Result) -> None:
    """Meters, request table and interval rows tell the same tokens, energy and time."""
    summary, rows, requests = result.summary, result.table("replicas"), result.requests()
    length_s = rows["end_s"].to_numpy() - rows["start_s"].to_numpy()
    idle_w = load_accelerator("rtx-4090").power.idle_w
    busy_s = float((rows["busy_ratio"].to_numpy() * length_s).sum())
    assert length_s.sum() == pytest.approx(2 * summary["simulated_s"])
    assert busy_s == pytest.approx(summary["busy_ratio"] * 2 * summary["simulated_s"])
    assert summary["energy_idle_j"] == pytest.approx(idle_w * (2 * summary["simulated_s"] - busy_s))
    assert float((rows["power_w"].to_numpy() * length_s).sum()) == pytest.approx(summary["energy_j"])
    assert requests["energy_j"].to_numpy().sum() == pytest.approx(summary["energy_j"] - summary["energy_idle_j"])
    assert summary["energy_idle_j"] > 0
    assert rows["output_tokens"].to_numpy().sum() == requests["output_tokens"].to_numpy().sum()
    gaps = int(result.table("gaps")["count"].to_numpy().sum())
    first_tokens = len(requests) - requests["first_token_s"].null_count
    assert gaps == requests["output_tokens"].to_numpy().sum() - first_tokens
    full = rows["kv_used_ratio"].to_numpy() + rows["kv_cached_ratio"].to_numpy()
    assert full.max() <= 1 + 1e-12
    fleet = result.table("fleet")
    assert fleet["arrivals"].to_numpy().sum() == len(requests)
    assert fleet["finished"].to_numpy().sum() == summary["finished"]


def test_rejected_requests_miss_the_objective(tmp_path: Path) -> None:
    """Ten of forty are longer than the KV cache: rejected at arrival, counted as misses, and nothing is charged to them."""
    prompts = [5000 if i % 4 == 0 else 50 for i in range(40)]
    columns = {"arrival_s": [0.2 * i for i in range(40)], "prompt_tokens": prompts, "output_tokens": [20] * 40}
    pq.write_table(pa.table(columns), tmp_path / "trace.parquet")
    workload = {"kind": "trace", "format": "parquet", "path": str(tmp_path / "trace.parquet")}
    result = run(pressed(workload=workload, slo=SLO), tmp_path)
    summary, requests = result.summary, result.requests().sort_by("request_id").to_pylist()
    assert (summary["requests"], summary["finished"], summary["rejected"]) == (40, 30, 10)
    assert summary["slo_attainment_ratio"] == 0.75
    assert result.slo_met is False
    for row in requests:
        rejected = row["request_id"] % 4 == 0
        assert row["status"] == ("rejected" if rejected else "finished")
        assert row["reason"] == ("longer than the KV cache" if rejected else None)
        assert row["slo_met"] is not rejected
        assert (row["energy_j"] == row["cost_usd"] == row["output_tokens"] == 0) is rejected
        assert (row["first_token_s"] is None) is rejected
    assert result.verdict == "OVERLOADED"  # a quarter was turned away
