"""Fleets whose clocks, caps, batches, sleep and heat change: leaps give what single steps give, in every table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

import fleetsim
from fleetsim.plugins import names
from tests.fleet.test_moves import MANY, column, pool, run, same_in_single_steps, scenario

QUICK: dict[str, dict[str, Any]] = {
    "grid-flex": {"calls": [{"start_s": 0.9, "duration_s": 2.0, "curtail_ratio": 0.25}], "baseline_s": 1.0},
    "polca": {"patience_s": 0.5, "first_ratio": 0.6, "second_ratio": 0.7, "brake_ratio": 0.95},
    "schedule": {
        "stages": [
            {"at_s": 0.5, "clock_ratio": 0.5},
            {"at_s": 1.3, "cap_w": 210.0, "max_seqs": 3},
            {"at_s": 2.2, "uncap": True, "clock_ratio": 1.0, "max_seqs": 32},
        ]
    },
    "sleep": {"idle_s": 0.3, "wake_above_ratio": 0.3},
    "slo-clock": {"emergency_s": 0.7},
}
"""Parameters with which they decide often in a short run."""
HOT = {"ambient": "30 C", "resistance": 0.15, "capacity": 10, "throttle": "75 C", "resume": "70 C",
       "throttled_clock": 0.4, "period": "100 ms"}  # fmt: skip
"""Chips that are hot within seconds."""


def rows_are_alike(fast: fleetsim.Result, slow: fleetsim.Result) -> None:
    """Compare what replicas drew and were set to, and what happened to them."""
    for name in ("replicas", "events", "fleet"):
        a, b = fast.table(name), slow.table(name)
        assert a.num_rows == b.num_rows, name
        for field in a.schema:
            x, y = a[field.name].to_pylist(), b[field.name].to_pylist()
            if pa.types.is_floating(field.type):
                x, y = (np.array(values, dtype=float) for values in (x, y))
                np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9, err_msg=f"{name}.{field.name}")
            else:
                assert x == y, f"{name}.{field.name}"
    for key, value in fast.summary.items():
        if isinstance(value, float):
            np.testing.assert_allclose(value, slow.summary[key], rtol=1e-9, atol=1e-12, err_msg=key)


def changing(folder: Path) -> dict[str, Any]:
    """A carbon intensity that changes while managers act."""
    (folder / "grams.csv").write_text("time,value\n" + "".join(f"{k * 0.41},{100 + 90 * (k % 3)}\n" for k in range(40)))
    return {"pue": 1.2, "carbon_intensity": {"file": str(folder / "grams.csv"), "repeat": True}}


@MANY
@given(
    seed=st.integers(0, 1000),
    policy=st.sampled_from(names("power_managers")),
    period_s=st.sampled_from([0.2, 0.7]),
    stall_ms=st.sampled_from([0, 30]),
    telemetry_ms=st.sampled_from([0, 150, 900]),
    actuation_ms=st.sampled_from([0, 10, 600]),
    hot=st.booleans(),
    apart=st.booleans(),
    priced=st.booleans(),
    rate=st.sampled_from([15, 40]),
)
def test_managers_in_leaps_and_steps(
    seed: int,
    policy: str,
    period_s: float,
    stall_ms: int,
    telemetry_ms: int,
    actuation_ms: int,
    hot: bool,
    apart: bool,
    priced: bool,
    rate: int,
    tmp_path: Path,
) -> None:
    power = {
        "sleep": {"power": "5 W", "wake": "400 ms", "keeps_cache": seed % 2 == 0},
        "host_busy": "60 W",
        "host_idle": "30 W",
        "thermal": HOT if hot else None,
    }
    pools = [pool("prefill", 2, "prefill"), pool("decode", 2, "decode")] if apart else [pool("main", 3), pool("b", 1)]
    row = {
        "manager": {"policy": policy, "period_s": period_s, **QUICK.get(policy, {})},
        "low_priority": [pools[0]["name"]],
        "budget": "1.6 kW",
        "telemetry": f"{telemetry_ms} ms",
        "actuation": f"{actuation_ms} ms",
        "stall": f"{stall_ms} ms",
    }
    given = scenario(seed=seed, pools=[p | {"power": power} for p in pools], power=[row])
    given |= {"slo": {"ttft": "500 ms", "tpot": "30 ms"}, "run": {"interval": "370 ms"}}
    given["workload"] |= {"requests": 80, "arrivals": {"process": "gamma", "rate": f"{rate} req/s", "burstiness": 0.2}}
    if priced:
        given["energy"] = changing(tmp_path)
    fast = same_in_single_steps(given, tmp_path)
    assert set(column(fast, "status")) == {"finished"}
    slow_pools = [{**p, "engine": {**p["engine"], "step_by_step": True}} for p in given["pools"]]
    rows_are_alike(fast, run({**given, "pools": slow_pools}, tmp_path / "again"))


@MANY
@given(
    seed=st.integers(0, 1000),
    policy=st.sampled_from(["sleep", "slo-clock", "schedule"]),
    drain=st.sampled_from(["wait", "migrate", "kill"]),
    scheduler=st.sampled_from(["vllm-v1", "sarathi", "sglang", "vllm-v0"]),
    swap=st.booleans(),
)
def test_beside_autoscalers_and_failures(
    seed: int, policy: str, drain: str, scheduler: str, swap: bool, tmp_path: Path
) -> None:
    one = pool("main", 2) | {
        "min_replicas": 0,
        "max_replicas": 4,
        "autoscaler": {"policy": "hpa", "target": 6.0, "period_s": 1.0, "down_window_s": 2.0},
        "startup": {"weights": "none", "init": "300 ms"},
        "drain": drain,
        "power": {"sleep": {"power": "5 W", "wake": "200 ms"}, "thermal": HOT},
    }
    one["engine"] = {**one["engine"], "scheduler": {"policy": scheduler, "max_seqs": 16}}
    if swap:
        one["engine"]["kv"] = {**one["engine"]["kv"], "preemption": {"mode": "swap", "capacity": "4 GB"}}
    incidents = [{"at_s": 1.1, "replicas": [0], "for_s": 1.5}, {"at_s": 2.3, "replicas": [1], "for_s": 0.4}]
    given = scenario(
        seed=seed,
        pools=[one],
        power=[{"manager": {"policy": policy, "period_s": 0.3, **QUICK[policy]}, "actuation": "100 ms"}],
        faults=[{"policy": "scheduled", "incidents": incidents}],
        slo={"ttft": "500 ms", "tpot": "30 ms"},
        gateway={"on_failure": {"max_retries": 20}},
        energy=changing(tmp_path),
    )
    given["workload"] |= {"requests": 80}
    assert set(column(same_in_single_steps(given, tmp_path), "status")) == {"finished"}
