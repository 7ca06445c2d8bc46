"""What happens to requests between their arrival and their end: put off, sent twice, taken back, moved, computed in two places.

Everywhere the laws are on (`check=True`), and leaps must give what single steps give.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fleetsim
from fleetsim.kernel.clock import Clock
from fleetsim.network.flows import Network
from fleetsim.network.topology import build_graph
from fleetsim.scenario.merge import Overrides
from fleetsim.scenario.schema import Scenario

HERE = "tests.fleet.policies"
TIMES = ("arrival_s", "queued_s", "first_scheduled_s", "first_token_s", "end_s", "itl_max_s")
COUNTS = ("request_id", "replica", "status", "output_tokens", "cached_tokens", "preemptions", "migrations")
MANY = settings(
    max_examples=int(os.environ.get("FLEETSIM_EXAMPLES", "12")),
    derandomize="FLEETSIM_EXAMPLES" not in os.environ,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
"""The same few each time; FLEETSIM_EXAMPLES=200 explores."""


def scenario(**changes: Any) -> dict[str, Any]:
    """Four small replicas under a load that fills their caches now and then."""
    return {
        "schema": 1,
        "name": "moves",
        "seed": 5,
        "workload": {
            "kind": "synthetic",
            "requests": 120,
            "arrivals": {"process": "gamma", "rate": "40 req/s", "burstiness": 0.3},
            "prompt_tokens": {"distribution": "lognormal", "mean": 300, "cv": 1.0, "min": 1, "max": 900},
            "output_tokens": {"distribution": "lognormal", "mean": 120, "cv": 1.0, "min": 1, "max": 400},
            "prefixes": {"groups": 3, "tokens": 100, "zipf": 1.0},
        },
        "pools": [pool("main", 4)],
        **changes,
    }


def pool(name: str, replicas: int, role: str = "mixed", **engine: Any) -> dict[str, Any]:
    return {
        "name": name,
        "llm": "llama-3.1-8b",
        "accelerator": "rtx-4090",
        "replicas": replicas,
        "role": role,
        "engine": {
            "scheduler": {"policy": "vllm-v1", "max_batched_tokens": 256, "max_seqs": 32},
            "kv": {"block_tokens": 16, "capacity_tokens": 3200},
            **engine,
        },
    }


def run(given: dict[str, Any], out: Path, overrides: Overrides = ()) -> fleetsim.Result:
    return fleetsim.run(given, out=out, check=True, allow_import=True, overrides=overrides)


def same_in_single_steps(given: dict[str, Any], out: Path) -> fleetsim.Result:
    """Run with leaps and step by step, compare, return the first."""
    slow_pools = [{**p, "engine": {**p["engine"], "step_by_step": True}} for p in given["pools"]]
    fast, slow = run(given, out / "leaps"), run({**given, "pools": slow_pools}, out / "steps")
    a, b = (result.requests().sort_by("request_id") for result in (fast, slow))
    for column in COUNTS:
        assert a[column].to_pylist() == b[column].to_pylist(), column
    for column in (*TIMES, "energy_j", "cost_usd"):
        x, y = (np.array(t[column].to_pylist(), dtype=float) for t in (a, b))
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12, err_msg=column)
    return fast


def column(result: fleetsim.Result, name: str) -> list[Any]:
    values: list[Any] = result.requests().sort_by("request_id")[name].to_pylist()
    return values


# --- prompts and answers computed apart --------------------------------------------------------------------------------


APART = {"pools": [pool("prefill", 2, "prefill"), pool("decode", 2, "decode")]}


def test_answers_are_computed_where_prompts_are_not(tmp_path: Path) -> None:
    result = same_in_single_steps(scenario(**APART), tmp_path)
    assert result.summary["finished"] == 120
    long = np.array(column(result, "output_tokens")) > 1
    assert set(np.array(column(result, "pool"))[long]) == {"decode"}
    assert set(np.array(column(result, "prefill_replica"))[long]) == {0, 1}


def test_the_gap_after_the_first_token_holds_the_transfer(tmp_path: Path) -> None:
    """At one request at a time the second token comes after the transfer of the prompt's cache and a step of one token."""
    lonely = scenario(**APART)
    lonely["workload"] = {
        "kind": "synthetic",
        "requests": 20,
        "arrivals": {"process": "deterministic", "rate": "1 req/s"},
        "prompt_tokens": {"distribution": "fixed", "value": 1000},
        "output_tokens": {"distribution": "fixed", "value": 2},
    }
    result = run(lonely, tmp_path / "apart")
    together = run({**lonely, "pools": [pool("main", 4)]}, tmp_path / "together")
    extra = np.array(column(result, "tpot_s")) - np.array(column(together, "tpot_s"))
    cache_bytes = 1000 * 32 * 2 * 8 * 128 * 2
    network = Network(Clock(), build_graph(Scenario.model_validate(lonely)))
    np.testing.assert_allclose(extra, network.estimate_s("gpu:0", "gpu:2", cache_bytes), rtol=0.02)
    assert np.all(extra > cache_bytes / 32e9)  # no PCIe 4 x16 is faster
    assert result.summary["network_bytes"] == 20 * cache_bytes
    np.testing.assert_allclose(column(result, "ttft_s"), column(together, "ttft_s"), rtol=1e-9)


@MANY
@given(
    seed=st.integers(0, 1000),
    tokens=st.sampled_from([800, 1600, 3200]),
    prefix_cache=st.booleans(),
    scheduler=st.sampled_from(["vllm-v1", "sarathi", "vllm-v0", "sglang"]),
    mixed=st.integers(0, 1),
)
def test_apart_in_leaps_and_steps(
    seed: int, tokens: int, prefix_cache: bool, scheduler: str, mixed: int, tmp_path: Path
) -> None:
    engine = {
        "scheduler": {"policy": scheduler},
        "kv": {"capacity_tokens": tokens, "block_tokens": 16},
        "prefix_cache": prefix_cache,
    }
    pools = [pool("prefill", 2, "prefill", **engine), pool("decode", 1, "decode", **engine)]
    if mixed:
        pools.append(pool("both", 1, "mixed", **engine))
    same_in_single_steps(scenario(seed=seed, pools=pools), tmp_path)


# --- moves ---------------------------------------------------------------------------------------------------------------


def test_requests_migrate_while_they_decode(tmp_path: Path) -> None:
    restless = scenario(gateway={"rebalancer": {"policy": f"{HERE}:Restless"}})
    result = same_in_single_steps(restless, tmp_path)
    moved = np.array(column(result, "migrations"))
    assert (moved > 0).sum() > 20
    assert result.summary["finished"] == 120


@MANY
@given(
    seed=st.integers(0, 1000),
    tokens=st.sampled_from([1000, 1600, 6400]),
    period_s=st.sampled_from([0.01, 0.07, 0.5]),
    scheduler=st.sampled_from(["vllm-v1", "sarathi", "vllm-v0", "sglang"]),
    data_parallel=st.booleans(),
)
def test_moves_in_leaps_and_steps(
    seed: int, tokens: int, period_s: float, scheduler: str, data_parallel: bool, tmp_path: Path
) -> None:
    one = pool("main", 3, scheduler={"policy": scheduler}, kv={"capacity_tokens": tokens, "block_tokens": 16})
    if data_parallel:
        one["parallelism"] = {"dp": 2}
    rebalancer = {"policy": f"{HERE}:Restless", "period_s": period_s}
    same_in_single_steps(scenario(seed=seed, pools=[one], gateway={"rebalancer": rebalancer}), tmp_path)


def test_idle_replicas_steal_waiting_requests(tmp_path: Path) -> None:
    """Sessions bind a burst to one replica; with stealing the others help."""
    bound = scenario(gateway={"router": "session-affinity"})
    bound["workload"]["sessions"] = {"turns": {"distribution": "fixed", "value": 3}, "think_time": "0 s"}
    bound["workload"]["requests"] = 60
    alone = run(bound, tmp_path / "alone")
    helped = run({**bound, "gateway": {**bound["gateway"], "rebalancer": "work-stealing"}}, tmp_path / "helped")
    assert sum(column(helped, "migrations")) > 3
    assert helped.summary["queue_wait_mean_s"] < alone.summary["queue_wait_mean_s"]


# --- patience --------------------------------------------------------------------------------------------------------------


def impatient(**config: Any) -> dict[str, Any]:
    return {"router": {"policy": f"{HERE}:Impatient", **config}}


@pytest.mark.parametrize(
    "config", [{"hedge_after_s": 0.15}, {"retry_after_s": 0.3}, {"hedge_after_s": 0.1, "retry_after_s": 0.4}]
)
@pytest.mark.parametrize("apart", [False, True])
def test_hedges_and_retries_keep_the_laws(config: dict[str, float], apart: bool, tmp_path: Path) -> None:
    result = same_in_single_steps(scenario(gateway=impatient(**config), **(APART if apart else {})), tmp_path)
    assert result.summary["finished"] == 120
    assert column(result, "request_id") == list(range(120))


def test_a_hedge_helps_against_a_slow_replica_and_costs_work(tmp_path: Path) -> None:
    slow = {**pool("slow", 1), "power": {"clock_ratio": 0.2}}
    pools = [pool("main", 3), slow]
    given = scenario(pools=pools)
    given["workload"]["arrivals"] = {"process": "poisson", "rate": "4 req/s"}
    plain = run({**given, "gateway": {"router": "round-robin"}}, tmp_path / "plain")
    hedged = run({**given, "gateway": impatient(hedge_after_s=0.08)}, tmp_path / "hedged")
    assert hedged.summary["ttft_p99_s"] < plain.summary["ttft_p99_s"]
    twice, once = (np.sum(r.table("replicas")["prompt_tokens"].to_numpy()) for r in (hedged, plain))
    assert twice > once


def test_clients_give_up(tmp_path: Path) -> None:
    given = scenario(gateway={"timeout": "2 s", "first_token_timeout": "300 ms"})
    given["workload"]["arrivals"] = {"process": "gamma", "rate": "120 req/s", "burstiness": 0.3}
    result = same_in_single_steps(given, tmp_path)
    status, reason = column(result, "status"), column(result, "reason")
    assert result.summary["timed_out"] == status.count("timed_out") > 5
    assert {r for s, r in zip(status, reason, strict=True) if s == "timed_out"} == {
        "no first token in time",
        "not finished in time",
    }
    for state, first, end, arrival in zip(
        status, column(result, "first_token_s"), column(result, "end_s"), column(result, "arrival_s"), strict=True
    ):
        if state == "finished":
            assert first - arrival <= 0.3 + 1e-9
            assert end - arrival <= 2.0 + 0.2  # the step under way is not torn


@pytest.mark.parametrize("gateway", [impatient(hedge_after_s=0.1), {"rebalancer": f"{HERE}:Restless"}, {}])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("horizon", ["700 ms", "1.31 s"])
def test_a_run_may_end_in_the_middle(gateway: dict[str, Any], apart: bool, horizon: str, tmp_path: Path) -> None:
    given = scenario(gateway=gateway, run={"horizon": horizon}, **(APART if apart else {}))
    result = same_in_single_steps(given, tmp_path)
    assert result.summary["unfinished"] > 0
    assert len(set(column(result, "request_id"))) == result.summary["requests"]


# --- admission and decisions -----------------------------------------------------------------------------------------------


def test_a_token_bucket_limits_the_rate(tmp_path: Path) -> None:
    bucket = {"policy": "token-bucket", "rate_per_s": 10.0, "burst": 5.0, "unit": "requests"}
    given = scenario(gateway={"admission": bucket})
    result = run(given, tmp_path / "reject")
    arrival = np.array(column(result, "arrival_s"))
    let_in = np.array([s == "finished" for s in column(result, "status")])
    level, since = 5.0, 0.0
    for time_s, ok in zip(arrival, let_in, strict=True):
        level, since = min(5.0, level + 10.0 * (time_s - since)), time_s
        assert ok == (level >= 1.0)
        level -= ok
    deferred = run(given, tmp_path / "defer", "gateway.admission.when_empty=defer")
    assert deferred.summary["finished"] == 120
    queued = np.sort(np.array(column(deferred, "queued_s")))
    for i in range(len(queued) - 16):
        assert queued[i + 15] - queued[i] >= (15 - 5) / 10.0 - 1e-9


def test_a_queue_cap_keeps_places_for_the_urgent(tmp_path: Path) -> None:
    part = {k: v for k, v in scenario()["workload"].items() if k != "prefixes"}
    given = scenario(
        workload={"kind": "mix", "parts": {"chat": {**part, "class": "chat"}, "batch": {**part, "class": "batch"}}},
        classes={"chat": {"priority": 1}},
        gateway={"admission": {"policy": "queue-cap", "per_replica": 24, "reserve_ratio": 0.5}},
    )
    result = run(given, tmp_path / "out")
    rejected = {k: 0 for k in ("chat", "batch")}
    for klass, status in zip(column(result, "class"), column(result, "status"), strict=True):
        rejected[klass] += status == "rejected"
    assert rejected["batch"] > 2 * rejected["chat"]


def test_decisions_take_time_and_energy(tmp_path: Path) -> None:
    given = scenario()
    plain = run(given, tmp_path / "plain")
    slow = run(given, tmp_path / "slow", ["gateway.decision.time=30 ms", "gateway.decision.energy=2 J"])
    waits = np.array(column(slow, "queued_s")) - np.array(column(plain, "queued_s"))
    np.testing.assert_allclose(waits, 0.03, rtol=1e-9)
    one = run(given, tmp_path / "one", ["gateway.decision.time=30 ms", "gateway.decision.workers=1"])
    gaps = np.diff(np.sort(np.array(column(one, "queued_s"))))
    assert gaps.min() >= 0.03 - 1e-9
    assert slow.summary["gateway_energy_j"] == pytest.approx(2.0 * 120)
    assert slow.summary["host_energy_j"] == pytest.approx(2.0 * 120)
    assert plain.summary["gateway_energy_j"] == 0.0


# --- rebalancers -------------------------------------------------------------------------------------------------------------


def crowded(**changes: Any) -> dict[str, Any]:
    """Long answers of very different lengths in caches that run full."""
    given = scenario(pools=[pool("main", 4, kv={"capacity_tokens": 3200, "block_tokens": 16}, prefix_cache=False)])
    given["workload"]["requests"] = 200
    given["workload"]["arrivals"] = {"process": "gamma", "rate": "8 req/s", "burstiness": 0.3}
    given["workload"]["output_tokens"] = {"distribution": "lognormal", "mean": 200, "cv": 2.0, "min": 1, "max": 1500}
    return {**given, **changes}


LLUMNIX = {"router": "llumnix", "rebalancer": "llumnix"}


def test_llumnix_preempts_less_than_dispatch_alone(tmp_path: Path) -> None:
    moved = same_in_single_steps(crowded(gateway=LLUMNIX), tmp_path)
    alone = run(crowded(gateway={"router": "infaas"}), tmp_path / "alone")
    assert moved.summary["migrations"] > 20
    assert sum(column(moved, "preemptions")) < sum(column(alone, "preemptions"))
    assert moved.summary["ttft_p99_s"] < alone.summary["ttft_p99_s"]
    events = moved.table("events").to_pylist()
    count = {
        kind: sum(e["count"] for e in events if e["kind"] == kind) for kind in ("migrations", "migration_pause_us")
    }
    assert count["migrations"] == sum(column(moved, "migrations"))
    mean_s = moved.summary["migration_pause_mean_s"]
    assert mean_s == pytest.approx(count["migration_pause_us"] * 1e-6 / count["migrations"], abs=1e-6)
    assert alone.summary["migration_pause_mean_s"] is None
    longest_s = 17 * 16 * 131072 / 20e9 + 1e-3  # what the last stage copies, at less than PCIe 4 x16 gives
    assert 0.0 < mean_s < longest_s


@settings(MANY, max_examples=12)
@given(
    seed=st.integers(0, 1000),
    choice=st.sampled_from(["SR", "LR", "LCR", "FCW", "FCWSR"]),
    pairing=st.sampled_from(["defrag", "balanced"]),
    router=st.sampled_from([{"policy": "llumnix"}, {"policy": "llumnix", "queued": "all"}, {"policy": "infaas"}]),
)
def test_llumnix_in_leaps_and_steps(
    seed: int, choice: str, pairing: str, router: dict[str, Any], tmp_path: Path
) -> None:
    rebalancer = {"policy": "llumnix", "choice": choice, "pairing": pairing}
    same_in_single_steps(crowded(seed=seed, gateway={"router": router, "rebalancer": rebalancer}), tmp_path)


def test_headroom_keeps_others_away_from_the_urgent(tmp_path: Path) -> None:
    part = {k: v for k, v in crowded()["workload"].items() if k != "prefixes"}
    rare = {**part, "requests": 20, "arrivals": {"process": "poisson", "rate": "3 req/s"}, "class": "urgent"}
    given = crowded(
        workload={"kind": "mix", "parts": {"urgent": rare, "normal": {**part, "class": "normal"}}},
        classes={"urgent": {"priority": 1}},
    )
    steps = {"model": "affine", "step": "5 ms", "prompt_token": "0.1 ms", "prompt_pair": "0 s", "context_token": "0 s"}
    given["pools"][0]["engine"]["step_time"] = {**steps, "sequence": "2 ms"}
    decode_s = {}
    for name, ratio in (("without", 0.0), ("with", 0.9)):
        policies = {kind: {"policy": "llumnix", "headroom_ratio": ratio} for kind in ("router", "rebalancer")}
        result = run({**given, "gateway": policies}, tmp_path / name)
        rows = [r for r in result.requests().to_pylist() if r["class"] == "urgent"]
        decode_s[name] = np.mean([r["tpot_s"] for r in rows if r["tpot_s"] is not None])
    assert decode_s["with"] < 0.9 * decode_s["without"]


def test_who_comes_with_a_full_queue_before_it_does_not_block_the_replica(tmp_path: Path) -> None:
    """The head of a queue may need the room that is kept for migrated requests behind it; with all orders somebody goes on."""
    for order in ("fcfs", "sjf"):
        one = pool("main", 4, kv={"capacity_tokens": 3200, "block_tokens": 16}, prefix_cache=False, order=order)
        given = crowded(gateway=LLUMNIX, pools=[one])
        given["workload"]["arrivals"]["rate"] = "30 req/s"
        assert run(given, tmp_path / order).summary["finished"] == 200


def test_replicas_that_wait_for_each_others_room_go_on(tmp_path: Path) -> None:
    """Small mixed replicas that hand over to each other fill up with blocks that wait for the other one's room."""
    given = scenario(gateway={"router": f"{HERE}:Crosswise"}, pools=[pool("a", 1), pool("b", 1)])
    given["workload"]["arrivals"] = {"process": "deterministic", "rate": "500 req/s"}
    result = same_in_single_steps(given, tmp_path)
    assert result.summary["finished"] == 120
    assert any("waited for each other's room" in warning for warning in result.warnings)
