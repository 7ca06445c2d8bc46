"""Fleets that change their shape: nothing is lost, all laws hold, and leaps give what single steps give."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fleet.test_moves import HERE, MANY, column, pool, same_in_single_steps, scenario

FEW = settings(MANY, max_examples=int(os.environ.get("FLEETSIM_EXAMPLES", "5")))
LENGTHS = {
    "prompt_tokens": {"distribution": "lognormal", "mean": 300, "cv": 1.0, "min": 1, "max": 900},
    "output_tokens": {"distribution": "lognormal", "mean": 120, "cv": 1.0, "min": 1, "max": 400},
    "prefixes": {"groups": 3, "tokens": 100, "zipf": 1.0},
}
START = {"weights": "none", "init": "0.4 s"}


def two_kinds(chat: float, batch: float) -> dict[str, Any]:
    """Interactive requests in bursts, and batch requests."""
    part = {"kind": "synthetic", "requests": 70, **LENGTHS}
    bursts = {"process": "gamma", "rate": f"{chat} req/s", "burstiness": 0.3}
    steady = {"process": "poisson", "rate": f"{batch} req/s"}
    return {
        "kind": "mix",
        "parts": {
            "chat": {**part, "class": "chat", "arrivals": bursts},
            "batch": {**part, "class": "batch", "arrivals": steady},
        },
    }


@FEW
@given(
    seed=st.integers(0, 1000),
    chat=st.sampled_from([4, 12]),
    batch=st.sampled_from([10, 40]),
    order=st.sampled_from(["fcfs", "priority", "preemptive-priority"]),
    tokens=st.sampled_from([1600, 3200]),
    start_seqs=st.sampled_from([1, 8, None]),
    deadline_s=st.sampled_from([3, 60]),
    drain=st.sampled_from(["wait", "migrate"]),
    patience=st.booleans(),
)
def test_chiron_in_leaps_and_steps(
    seed: int,
    chat: float,
    batch: float,
    order: str,
    tokens: int,
    start_seqs: int | None,
    deadline_s: int,
    drain: str,
    patience: bool,
    tmp_path: Path,
) -> None:
    engine = {"order": order, "kv": {"capacity_tokens": tokens, "block_tokens": 16}}
    pools = [
        pool("interactive", 1, **engine) | {"max_replicas": 2},
        pool("mixed", 1, **engine) | {"max_replicas": 3},
        pool("batch", 0, **engine) | {"min_replicas": 0, "max_replicas": 2},
    ]
    given = scenario(
        seed=seed,
        workload=two_kinds(chat, batch),
        pools=[each | {"startup": START, "drain": drain} for each in pools],
        slo={"ttft": "1 s", "tpot": "40 ms", "classes": {"batch": {"ttft": f"{deadline_s} s"}}},
        classes={"chat": {"priority": 1}},
        autoscaler={"policy": "chiron", "period_s": 0.5} | ({} if start_seqs is None else {"start_seqs": start_seqs}),
        gateway={"router": "chiron"} | ({"timeout": "6 s"} if patience else {}),
    )
    result = same_in_single_steps(given, tmp_path)
    assert set(column(result, "status")) <= ({"finished", "timed_out"} if patience else {"finished"})


SHAPES: dict[str, dict[str, int]] = {"one": {}, "dp2": {"dp": 2}, "dp3": {"dp": 3}, "tp2": {"tp": 2}}


@FEW
@given(
    seed=st.integers(0, 1000),
    small=st.sampled_from(sorted(SHAPES)),
    large=st.sampled_from(sorted(SHAPES)),
    requests=st.sampled_from(["hand-over", "wait", "restart"]),
    weights=st.sampled_from(["none", "peer", "host"]),
    accelerators=st.sampled_from(["shared", "new"]),
    tokens=st.sampled_from([1600, 3200]),
    prefix_cache=st.booleans(),
    scheduler=st.sampled_from(["vllm-v1", "sarathi", "vllm-v0", "sglang", "orca"]),
    swap=st.booleans(),
    gateway=st.sampled_from(
        [
            {},
            {"router": {"policy": f"{HERE}:Impatient", "hedge_after_s": 0.1}},
            {"rebalancer": {"policy": f"{HERE}:Restless"}},
            {"timeout": "3 s"},
        ]
    ),
    order=st.sampled_from(["fcfs", "vtc", "preemptive-priority"]),
)
def test_shapes_in_leaps_and_steps(
    seed: int,
    small: str,
    large: str,
    requests: str,
    weights: str,
    accelerators: str,
    tokens: int,
    prefix_cache: bool,
    scheduler: str,
    swap: bool,
    gateway: dict[str, Any],
    order: str,
    tmp_path: Path,
) -> None:
    if weights == "host" and requests == "hand-over":
        accelerators = "new"  # two copies of the weights do not fit on one of these
    engine = {
        "scheduler": {"policy": scheduler},
        "order": order,
        "prefix_cache": prefix_cache,
        "kv": {
            "capacity_tokens": tokens,
            "block_tokens": 16,
            "preemption": {"mode": "swap" if swap else "recompute"},
        },
    }
    pools = [
        pool("small", 2, **engine) | {"min_replicas": 0, "max_replicas": 3, "parallelism": SHAPES[small]},
        pool("large", 0, **engine) | {"min_replicas": 0, "max_replicas": 2, "parallelism": SHAPES[large]},
    ]
    ways = [("small", "large"), ("large", "small")]
    changes = [(0.5, *ways[0]), (1.1, *ways[0]), (1.9, *ways[1]), (2.7, *ways[0])]
    given = scenario(
        seed=seed,
        pools=[each | {"startup": START} for each in pools],
        gateway={**gateway, "on_failure": {"max_retries": 100}},  # stops and hedges are many here
        conversions=[
            {
                "source": source,
                "target": target,
                "requests": requests,
                "weights": weights,
                "accelerators": accelerators,
                "bandwidth": "100 GB/s",
                "plan": "50 ms",
                "init": "0.2 s",
            }
            for source, target in ways
        ],
        autoscaler={
            "policy": "timetable",
            "period_s": 0.1,
            "changes": [{"at_s": t, "source": s, "target": d, "replicas": 1} for t, s, d in changes],
        },
    )
    if order == "preemptive-priority":
        given["workload"] |= {"class": "urgent"}
        given["classes"] = {"urgent": {"priority": 1}}
    result = same_in_single_steps(given, tmp_path)
    assert set(column(result, "status")) <= {"finished", "timed_out"}
    assert "conversion_begun" in result.table("events")["kind"].to_pylist()


@FEW
@given(
    seed=st.integers(0, 1000),
    rate=st.sampled_from([10, 40]),
    tokens=st.sampled_from([1600, 3200]),
    prefix_cache=st.booleans(),
    init_s=st.sampled_from([0.0, 0.3]),
    requests=st.sampled_from(["wait", "restart"]),
    policy=st.sampled_from(["role-flips", "dynamo-sla"]),
    router=st.sampled_from(["least-outstanding", "distserve"]),
)
def test_role_flips_in_leaps_and_steps(
    seed: int,
    rate: float,
    tokens: int,
    prefix_cache: bool,
    init_s: float,
    requests: str,
    policy: str,
    router: str,
    tmp_path: Path,
) -> None:
    engine = {"kv": {"capacity_tokens": tokens, "block_tokens": 16}, "prefix_cache": prefix_cache}
    pools = [pool(name, 2, name, **engine) | {"max_replicas": 4, "startup": START} for name in ("prefill", "decode")]
    own = {"role-flips": {"period_s": 0.5, "dwell_s": 1.0, "least_decode": 1}, "dynamo-sla": {"interval_s": 1.0}}
    given = scenario(
        seed=seed,
        pools=pools,
        slo={"ttft": "200 ms", "tpot": "25 ms"},
        gateway={"router": router},
        conversions=[
            {"source": a, "target": b, "requests": requests, "init": f"{init_s} s"}
            for a, b in (("prefill", "decode"), ("decode", "prefill"))
        ],
        autoscaler={"policy": policy, **own[policy]},
    )
    given["workload"]["arrivals"] = {"process": "gamma", "rate": f"{rate} req/s", "burstiness": 0.1}
    assert set(column(same_in_single_steps(given, tmp_path), "status")) == {"finished"}
