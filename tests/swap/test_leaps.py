"""With preemption by swapping, leaps over step boundaries give what the step-by-step run gives, and all books balance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fleetsim
from fleetsim.scenario.schema import Scenario

TIMES = ("arrival_s", "queued_s", "first_scheduled_s", "first_token_s", "end_s", "itl_max_s")
COUNTS = ("request_id", "replica", "status", "prompt_tokens", "output_tokens", "cached_tokens", "preemptions")


def lengths(mean: int, high: int) -> dict[str, Any]:
    return {"distribution": "lognormal", "mean": mean, "cv": 1.0, "min": 1, "max": high}


def orders() -> st.SearchStrategy[Any]:
    return st.sampled_from(["fcfs", "fcfs", "srpt", "mlfq", "vtc", "ltr", "priority", "priority-epochs"])


@st.composite
def scenarios(draw: st.DrawFn) -> dict[str, Any]:
    workload: dict[str, Any] = {
        "kind": "synthetic",
        "requests": draw(st.integers(30, 100)),
        "arrivals": {"process": "gamma", "rate": f"{draw(st.sampled_from([10, 40, 100]))} req/s", "burstiness": 0.3},
        "prompt_tokens": lengths(draw(st.sampled_from([60, 200])), 700),
        "output_tokens": lengths(draw(st.sampled_from([40, 150])), 300),
        "prefixes": {"groups": 4, "tokens": draw(st.sampled_from([0, 100])), "zipf": 0.5},
    }
    if not workload["prefixes"]["tokens"]:
        del workload["prefixes"]
    if draw(st.booleans()):
        turns = {"distribution": "fixed", "value": 4}
        workload["sessions"] = {"turns": turns, "think_time": "500 ms", "max_context_tokens": 1500}
    prefix_cache = draw(st.booleans())
    moe = draw(st.integers(0, 4)) == 0
    kv = {
        "block_tokens": draw(st.sampled_from([1, 16, 32])),
        "capacity_tokens": draw(st.sampled_from([1600, 2560, 6400])),
        "preemption": {
            "mode": "swap",
            "capacity": draw(st.sampled_from(["0.1 GB", "4 GB"])),
            "group_blocks": draw(st.sampled_from([1, 20])),
            "call_time": draw(st.sampled_from(["0 s", "10 us", "100 us"])),
            "asynchronous": draw(st.booleans()),
            "reuse": draw(st.booleans()),
        },
    }
    if prefix_cache and draw(st.integers(0, 3)) == 0:
        kv["tiers"] = {"host": {"capacity": "300 MB"}, "write": draw(st.sampled_from(["write_through", "write_back"]))}
    scheduler = draw(st.sampled_from(["vllm-v1", "vllm-v1", "vllm-v0", "sarathi", "sglang", "orca", "flow-prefill"]))
    if scheduler == "flow-prefill":
        moe = False
    return {
        "schema": 1,
        "name": "swap",
        "seed": draw(st.integers(0, 10_000)),
        "workload": workload,
        "gateway": {"predictor": "oracle"},
        "pools": [
            {
                "name": "main",
                "llm": "qwen3-30b-a3b" if moe else "llama-3.1-8b",
                "accelerator": "rtx-pro-6000" if moe else "rtx-4090",
                "parallelism": {"dp": 2, "ep": 2} if moe else {},
                "replicas": draw(st.integers(1, 2)),
                "engine": {
                    "order": "fcfs" if scheduler == "flow-prefill" else draw(orders()),
                    "scheduler": {"policy": scheduler, "max_seqs": draw(st.sampled_from([4, 32]))},
                    "kv": kv,
                    "prefix_cache": prefix_cache,
                },
            }
        ],
    }


def run_both(scenario: dict[str, Any], tmp_path: Any) -> tuple[fleetsim.Result, fleetsim.Result]:
    slow = {**scenario, "pools": [{**p, "engine": {**p["engine"], "step_by_step": True}} for p in scenario["pools"]]}
    return tuple(  # type: ignore[return-value]
        fleetsim.run(Scenario.model_validate(s), out=tmp_path / name, check=True)
        for s, name in ((scenario, "leaps"), (slow, "steps"))
    )


def assert_same(fast: fleetsim.Result, slow: fleetsim.Result) -> None:
    a, b = (result.requests().sort_by("request_id") for result in (fast, slow))
    for column in COUNTS:
        assert a[column].to_pylist() == b[column].to_pylist(), column
    assert set(a["status"].to_pylist()) == {"finished"}
    for column in (*TIMES, "energy_j", "cost_usd"):
        x, y = (np.array(t[column].to_pylist(), dtype=float) for t in (a, b))
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9, err_msg=column)
    gaps = [result.table("gaps")["count"].to_numpy() for result in (fast, slow)]
    assert gaps[0].sum() == gaps[1].sum() == sum(a["output_tokens"].to_pylist()) - len(a)
    assert gaps[0].min() >= 0


_SLOW = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


@settings(max_examples=40, deadline=None, suppress_health_check=_SLOW)
@given(scenario=scenarios())
def test_leaps_equal_step_by_step(scenario: dict[str, Any], tmp_path: Any) -> None:
    assert_same(*run_both(scenario, tmp_path))


@pytest.mark.slow
@settings(max_examples=500, deadline=None, suppress_health_check=_SLOW)
@given(scenario=scenarios())
def test_leaps_equal_step_by_step_at_length(scenario: dict[str, Any], tmp_path: Any) -> None:
    assert_same(*run_both(scenario, tmp_path))


def test_the_comparison_is_not_vacuous(tmp_path: Any) -> None:
    """Priorities drawn every ten steps: requests are swapped out and come back many times, leaps skip steps, and both agree."""
    lengths_ = {"distribution": "lognormal", "cv": 1.0, "min": 1, "max": 600}
    scenario = {
        "schema": 1,
        "name": "pressure",
        "seed": 3,
        "workload": {
            "kind": "synthetic",
            "requests": 100,
            "arrivals": {"process": "gamma", "rate": "20 req/s", "burstiness": 0.3},
            "prompt_tokens": {**lengths_, "mean": 200},
            "output_tokens": {**lengths_, "mean": 150},
        },
        "pools": [
            {
                "name": "main",
                "llm": "llama-3.1-8b",
                "accelerator": "rtx-4090",
                "engine": {
                    "order": {"policy": "priority-epochs", "frequency": 0.1},
                    "scheduler": {"policy": "vllm-v0", "max_seqs": 16},
                    "kv": {
                        "capacity_tokens": 3200,
                        "preemption": {"mode": "swap", "group_blocks": 20, "asynchronous": True, "reuse": True},
                    },
                    "prefix_cache": False,
                },
            }
        ],
    }
    fast, slow = run_both(scenario, tmp_path)
    assert fast.summary["preemptions"] > 100
    assert fast.summary["network_bytes"] > 10e9
    assert fast.events < 0.8 * slow.events
    assert_same(fast, slow)
