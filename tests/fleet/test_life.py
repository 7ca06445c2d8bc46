"""Replicas that start, drain, stop and fail: nothing is lost, and leaps give what single steps give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fleet.test_moves import HERE, MANY, column, pool, same_in_single_steps, scenario


def elastic(seed: int = 5, drain: str = "wait", gateway: dict[str, Any] | None = None, **engine: Any) -> dict[str, Any]:
    """Four of at most six replicas; a restless autoscaler."""
    one = pool("main", 4, **engine) | {
        "max_replicas": 6,
        "min_replicas": 1,
        "autoscaler": {"policy": f"{HERE}:Fidgety"},
        "startup": {"weights": "none", "init": "0.3 s"},
        "drain": drain,
    }
    return scenario(seed=seed, pools=[one], gateway=gateway or {})


@pytest.mark.parametrize("drain", ["wait", "migrate", "kill"])
def test_replicas_come_and_go(drain: str, tmp_path: Path) -> None:
    result = same_in_single_steps(elastic(drain=drain), tmp_path)
    assert set(column(result, "status")) == {"finished"}
    kinds = result.table("events")["kind"].to_pylist()
    assert kinds.count("replica_draining") > 3
    assert kinds.count("replica_off") > 0


def test_requests_wait_at_the_gateway_while_nobody_is_there(tmp_path: Path) -> None:
    given = scenario(
        pools=[pool("main", 2)],
        faults=[{"policy": "scheduled", "incidents": [{"at_s": 1.5, "for_s": 3.0, "replicas": [0, 1]}]}],
        run={"interval": "1 s"},
    )
    given["pools"][0]["startup"] = {"weights": "none", "init": "1 s"}
    result = same_in_single_steps(given, tmp_path)
    assert set(column(result, "status")) == {"finished"}
    arrival, start = (np.array(column(result, name)) for name in ("arrival_s", "first_scheduled_s"))
    during = (arrival > 1.5) & (arrival < 5.4)
    assert during.sum() > 10
    assert (start[during] >= 5.5).all()  # repaired at 4.5, ready a second later
    states = result.table("replicas")["state"].to_pylist()
    assert states[0:10:2] == ["ready", "down", "down", "down", "starting"]
    # paid for and powered while up or starting: three seconds down each
    on_s = 2 * (result.summary["simulated_s"] - 3.0)
    assert result.summary["accelerator_hours"] == pytest.approx(on_s / 3600.0)
    # there at 0 to 1.5 s and from 5.5 s on
    simulated_s = result.summary["simulated_s"]
    assert result.summary["availability_ratio"] == pytest.approx(1.0 - 4.0 / simulated_s)
    rows = result.table("fleet")["availability_ratio"].to_pylist()
    assert rows[:6] == pytest.approx([1.0, 0.5, 0.0, 0.0, 0.0, 0.5])


def test_what_nobody_notices_is_lost_and_sent_again(tmp_path: Path) -> None:
    given = scenario(
        gateway={"router": "round-robin", "on_failure": {"detect": "0.5 s"}},
        faults=[{"policy": "scheduled", "incidents": [{"at_s": 1.0, "replicas": [2]}]}],
    )
    result = same_in_single_steps(given, tmp_path)
    assert set(column(result, "status")) == {"finished"}
    attempts = result.summary["recoveries"]
    assert attempts > 3
    assert result.summary["lost_tokens"] > 0
    events = result.table("events").to_pylist()
    assert [e["replica"] for e in events if e["kind"] == "lost_tokens"] == [2]


def test_requests_fail_where_nobody_retries(tmp_path: Path) -> None:
    given = scenario(
        gateway={"on_failure": {"retry": False}},
        faults=[{"policy": "scheduled", "incidents": [{"at_s": 1.0, "replicas": [2]}]}],
    )
    result = same_in_single_steps(given, tmp_path)
    status, reason = column(result, "status"), column(result, "reason")
    assert status.count("failed") > 2
    assert {r for s, r in zip(status, reason, strict=True) if s == "failed"} == {"its replica failed"}


@MANY
@given(
    seed=st.integers(0, 1000),
    drain=st.sampled_from(["wait", "migrate", "kill"]),
    tokens=st.sampled_from([1600, 3200]),
    prefix_cache=st.booleans(),
    scheduler=st.sampled_from(["vllm-v1", "sarathi", "vllm-v0", "sglang", "flow-prefill"]),
    swap=st.booleans(),
    more=st.sampled_from(
        [{}, {"rebalancer": {"policy": f"{HERE}:Lavish"}}, {"rebalancer": {"policy": f"{HERE}:Restless"}}]
    ),
    crashes=st.booleans(),
    patience=st.booleans(),
)
def test_life_in_leaps_and_steps(
    seed: int,
    drain: str,
    tokens: int,
    prefix_cache: bool,
    scheduler: str,
    swap: bool,
    more: dict[str, Any],
    crashes: bool,
    patience: bool,
    tmp_path: Path,
) -> None:
    gateway = {"on_failure": {"detect": "0.1 s"}, **more}
    if patience:
        gateway["router"] = {"policy": f"{HERE}:Impatient", "hedge_after_s": 0.1}
    given = elastic(
        seed,
        drain,
        gateway,
        scheduler={"policy": scheduler},
        prefix_cache=prefix_cache,
        kv={"capacity_tokens": tokens, "block_tokens": 16, "preemption": {"mode": "swap" if swap else "recompute"}},
    )
    if crashes:
        given["faults"] = [{"policy": "crashes", "scope": "replica", "mtbf_h": 0.001, "repair_h": 0.0002}]
    result = same_in_single_steps(given, tmp_path)
    assert set(column(result, "status")) <= {"finished", "failed"}


@MANY
@given(
    seed=st.integers(0, 1000),
    tokens=st.sampled_from([1600, 3200]),
    prefix_cache=st.booleans(),
    mixed=st.integers(0, 1),
    router=st.sampled_from(["least-outstanding", "round-robin", "distserve", "selective"]),
)
def test_failures_of_pools_apart_in_leaps_and_steps(
    seed: int, tokens: int, prefix_cache: bool, mixed: int, router: str, tmp_path: Path
) -> None:
    engine = {"kv": {"capacity_tokens": tokens, "block_tokens": 16}, "prefix_cache": prefix_cache}
    pools = [pool("prefill", 2, "prefill", **engine), pool("decode", 2, "decode", **engine)]
    if mixed:
        pools.append(pool("both", 1, "mixed", **engine))
    for each in pools:
        each["startup"] = {"weights": "none", "init": "0.2 s"}
    given = scenario(seed=seed, pools=pools, gateway={"router": router})
    given["faults"] = [{"policy": "crashes", "scope": "replica", "mtbf_h": 0.001, "repair_h": 0.0001}]
    result = same_in_single_steps(given, tmp_path)
    assert set(column(result, "status")) <= {"finished", "failed"}
