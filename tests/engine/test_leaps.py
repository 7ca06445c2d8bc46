"""Leaps over step boundaries give what the step-by-step run gives."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fleetsim
from fleetsim.plugins import names
from fleetsim.scenario.schema import Scenario

TIMES = ("arrival_s", "queued_s", "first_scheduled_s", "first_token_s", "end_s", "itl_max_s")
COUNTS = ("request_id", "replica", "prompt_tokens", "output_tokens", "cached_tokens", "preemptions")


def lengths(high: int) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(
        lambda mean, cv: {"distribution": "lognormal", "mean": mean, "cv": cv, "min": 1, "max": high},
        st.integers(2, high // 3),
        st.sampled_from([0.3, 1.0, 2.0]),
    )


arrivals = st.one_of(
    st.builds(
        lambda r, b: {"process": "gamma", "rate": f"{r} req/s", "burstiness": b},
        st.integers(2, 200),
        st.sampled_from([0.1, 1, 5]),
    ),
    st.builds(lambda r: {"process": "deterministic", "rate": f"{r} req/s"}, st.sampled_from([7, 31, 150])),
)
closed = st.builds(
    lambda c, t: {"process": "closed-loop", "concurrency": c, "think_time": f"{t} ms"},
    st.integers(1, 40),
    st.sampled_from([0, 13, 400]),
)


@st.composite
def workloads(draw: st.DrawFn) -> dict[str, Any]:
    workload: dict[str, Any] = {
        "kind": "synthetic",
        "requests": draw(st.integers(20, 120)),
        "prompt_tokens": draw(lengths(900)),
        "output_tokens": draw(lengths(300)),
    }
    sessions = draw(st.booleans())
    workload["arrivals"] = draw(arrivals if sessions else st.one_of(arrivals, closed))
    if sessions:
        workload["sessions"] = {
            "turns": {"distribution": "lognormal", "mean": 3, "cv": 0.7, "min": 1, "max": 6},
            "think_time": draw(st.sampled_from(["0 s", "300 ms", "2 s"])),
            "max_context_tokens": 1500,
        }
    if draw(st.booleans()):
        workload["prefixes"] = {"groups": draw(st.integers(1, 6)), "tokens": draw(st.integers(5, 400)), "zipf": 1.0}
    return workload


evictions = st.one_of(
    st.just("lru"),
    st.sampled_from(names("evictions")),
    st.just({"policy": "ttl", "keep": "2 s"}),
    st.just({"policy": "retention", "directives": [{"tokens": 200, "duration": "1 s"}]}),
)


@st.composite
def pools(draw: st.DrawFn, name: str) -> dict[str, Any]:
    moe = draw(st.integers(0, 4)) == 0
    block = draw(st.sampled_from([1, 8, 16, 64]))
    budget = draw(st.sampled_from([64, 256, 2048]))
    return {
        "name": name,
        "llm": "qwen3-30b-a3b" if moe else "llama-3.1-8b",
        "accelerator": "rtx-pro-6000" if moe else draw(st.sampled_from(["rtx-4090", "h100-sxm"])),
        "parallelism": {"dp": 2, "ep": 2} if moe else {},
        "replicas": draw(st.integers(1, 3)),
        "engine": {
            "scheduler": {
                "policy": "vllm-v1",
                "max_batched_tokens": budget,
                "max_seqs": draw(st.sampled_from([2, 16, 64])),
                "long_prefill_tokens": draw(st.sampled_from([0, 0, 40])),
                "watermark_ratio": draw(st.sampled_from([0.0, 0.05])),
                "reserve_whole_prompt": draw(st.booleans()),
            },
            "kv": {
                "retain_unmatched": draw(st.booleans()),
                "eviction": draw(evictions),
                "block_tokens": block,
                "capacity_tokens": draw(st.sampled_from([1600, 2560, 6400, 100_000])),
            },
            "prefix_cache": draw(st.integers(0, 3)) > 0,
        },
    }


@st.composite
def scenarios(draw: st.DrawFn) -> dict[str, Any]:
    router = draw(
        st.sampled_from(
            [
                "random",
                "round-robin",
                "least-outstanding",
                "join-shortest-queue",
                "power-of-two-choices",
                "session-affinity",
            ]
        )
    )
    return {
        "schema": 1,
        "name": "generated",
        "seed": draw(st.integers(0, 10_000)),
        "workload": draw(workloads()),
        "gateway": {"router": {"policy": router}},
        "pools": [draw(pools(f"pool-{i}")) for i in range(draw(st.integers(1, 2)))],
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
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12, err_msg=column)
    for key, value in fast.summary.items():
        other = slow.summary[key]
        if isinstance(value, float):
            assert other is not None
            assert math.isclose(value, other, rel_tol=1e-6, abs_tol=1e-9), key
    gaps = [result.table("gaps")["count"].to_numpy() for result in (fast, slow)]
    assert gaps[0].sum() == gaps[1].sum()


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(scenario=scenarios())
def test_leaps_equal_step_by_step(scenario: dict[str, Any], tmp_path: Any) -> None:
    """Every timestamp of every request agrees to 1e-9, and every count exactly, over random scenarios."""
    assert_same(*run_both(scenario, tmp_path))


@pytest.mark.slow
@settings(
    max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(scenario=scenarios())
def test_leaps_equal_step_by_step_at_length(scenario: dict[str, Any], tmp_path: Any) -> None:
    """The same over many more scenarios."""
    assert_same(*run_both(scenario, tmp_path))


def test_the_comparison_is_not_vacuous(tmp_path: Any) -> None:
    """A scenario with KV shortage, chunks, hits and long decodes: leaps skip most steps, requests are preempted, both agree."""
    scenario = {
        "schema": 1,
        "name": "pressure",
        "seed": 3,
        "workload": {
            "kind": "synthetic",
            "requests": 150,
            "arrivals": {"process": "gamma", "rate": "30 req/s", "burstiness": 0.3},
            "prompt_tokens": {"distribution": "lognormal", "mean": 300, "cv": 1.0, "min": 1, "max": 900},
            "output_tokens": {"distribution": "lognormal", "mean": 150, "cv": 1.0, "min": 1, "max": 500},
            "prefixes": {"groups": 3, "tokens": 100, "zipf": 1.0},
        },
        "pools": [
            {
                "name": "main",
                "llm": "llama-3.1-8b",
                "accelerator": "rtx-4090",
                "engine": {
                    "scheduler": {"policy": "vllm-v1", "max_batched_tokens": 256, "max_seqs": 32},
                    "kv": {"block_tokens": 16, "capacity_tokens": 3200},
                },
            }
        ],
    }
    fast, slow = run_both(scenario, tmp_path)
    assert fast.summary["preemptions"] > 10
    assert fast.summary["prefix_hit_ratio"] > 0.05
    assert fast.summary["queue_wait_mean_s"] > 0.1
    assert fast.events < 0.5 * slow.events
    assert_same(fast, slow)
