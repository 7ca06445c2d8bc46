"""With tiers below, leaps over step boundaries give what the step-by-step run gives, and all books balance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fleetsim
from fleetsim.scenario.schema import Scenario

TIMES = ("arrival_s", "queued_s", "first_scheduled_s", "first_token_s", "end_s", "itl_max_s", "load_s")
COUNTS = ("request_id", "replica", "prompt_tokens", "output_tokens", "cached_tokens", "loaded_tokens", "preemptions")


def lengths(mean: int, high: int) -> dict[str, Any]:
    return {"distribution": "lognormal", "mean": mean, "cv": 1.0, "min": 1, "max": high}


@st.composite
def tiers(draw: st.DrawFn) -> dict[str, Any]:
    host = draw(st.sampled_from([{}, {"capacity": "300 MB"}, None]))
    ssd = draw(st.sampled_from([None, {"capacity": "2 GB"}]))
    prefetch = draw(st.sampled_from(["best_effort", "wait_complete", "timeout"])) if host is not None else "never"
    store = {"prefetch": prefetch, "min_tokens": 32, "timeout_base": "5 ms", "timeout_per_1024_tokens": "1 ms"}
    write = draw(st.sampled_from(["write_through", "selective", "write_back"]))
    content = {
        "host": host,
        "ssd": ssd,
        "store": store if draw(st.booleans()) or (host is None and ssd is None) else None,
        "write": write,
        "inclusive": write != "write_back" or draw(st.booleans()),
        "overlap": draw(st.booleans()),
        "page_tokens": draw(st.sampled_from([None, 64])),
        "min_load_tokens": draw(st.sampled_from([0, 64])),
    }
    return {key: value for key, value in content.items() if value is not None}


@st.composite
def scenarios(draw: st.DrawFn) -> dict[str, Any]:
    workload: dict[str, Any] = {
        "kind": "synthetic",
        "requests": draw(st.integers(30, 120)),
        "arrivals": {"process": "gamma", "rate": f"{draw(st.sampled_from([3, 20, 60]))} req/s", "burstiness": 0.3},
        "prompt_tokens": lengths(draw(st.sampled_from([60, 200])), 700),
        "output_tokens": lengths(draw(st.sampled_from([20, 120])), 300),
        "prefixes": {"groups": draw(st.integers(2, 12)), "tokens": draw(st.sampled_from([100, 320])), "zipf": 0.5},
    }
    if draw(st.booleans()):
        turns = {"distribution": "fixed", "value": 4}
        workload["sessions"] = {"turns": turns, "think_time": "500 ms", "max_context_tokens": 1500}
    return {
        "schema": 1,
        "name": "tiers",
        "seed": draw(st.integers(0, 10_000)),
        "workload": workload,
        "network": {"store": {"bandwidth": draw(st.sampled_from(["0.2 GB/s", "20 GB/s"])), "capacity": "5 GB"}},
        "pools": [
            {
                "name": "main",
                "llm": "llama-3.1-8b",
                "accelerator": "rtx-4090",
                "replicas": 2,
                "engine": {
                    "order": draw(st.sampled_from(["fcfs", "fcfs", "srpt", "mlfq", "vtc"])),
                    "scheduler": {
                        "policy": "vllm-v1",
                        "max_batched_tokens": draw(st.sampled_from([256, 2048])),
                        "max_seqs": draw(st.sampled_from([4, 32])),
                        "reserve_whole_prompt": draw(st.booleans()),
                    },
                    "kv": {
                        "block_tokens": draw(st.sampled_from([16, 32])),
                        "capacity_tokens": draw(st.sampled_from([2048, 3200, 50_000])),
                        "tiers": draw(tiers()),
                    },
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
    for column in (*TIMES, "energy_j", "cost_usd"):
        x, y = (np.array(t[column].to_pylist(), dtype=float) for t in (a, b))
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9, err_msg=column)


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
