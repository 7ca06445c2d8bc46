"""Requests that a router holds at the gateway: in line, given up, and beside failures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fleetsim
from fleetsim.errors import PolicyError
from tests.elasticity.test_leaps import START, two_kinds
from tests.fleet.test_moves import MANY, column, pool, run, same_in_single_steps, scenario

HERE = "tests.elasticity.routers"


def held(seats: int, **changes: Any) -> dict[str, Any]:
    """Batch requests alone, on one replica that runs a few at a time."""
    one = pool("mixed", 1, scheduler={"policy": "vllm-v1", "max_batched_tokens": 256, "max_seqs": seats})
    given = scenario(pools=[one], gateway={"router": "chiron"}, **changes)
    given["workload"] |= {"requests": 40, "class": "batch"}
    return given


def test_who_is_held_goes_in_the_order_of_arrival_and_never_waits_in_a_queue(tmp_path: Path) -> None:
    result = same_in_single_steps(held(3), tmp_path)
    rows = zip(*(column(result, name) for name in ("arrival_s", "queued_s", "first_scheduled_s")), strict=True)
    by_arrival = sorted(rows)
    begun = [start_s for _, _, start_s in by_arrival]
    assert begun == sorted(begun)
    assert max(start_s - queued_s for _, queued_s, start_s in by_arrival) < 0.05  # the step under way
    assert max(queued_s - arrival_s for arrival_s, queued_s, _ in by_arrival) > 1.0  # but at the gateway
    states = result.table("replicas")["running"].to_pylist()
    assert max(states) <= 3


def test_who_is_held_may_give_up(tmp_path: Path) -> None:
    given = held(1)
    given["gateway"]["timeout"] = "6 s"
    result = same_in_single_steps(given, tmp_path)
    status = column(result, "status")
    assert status.count("timed_out") > 10
    assert status.count("finished") > 1
    assert len(status) == 40


def test_who_is_held_at_the_horizon_is_unfinished(tmp_path: Path) -> None:
    result = run(held(1, run={"horizon": "2 s"}), tmp_path)
    assert column(result, "status").count("unfinished") > 10


def test_a_router_that_holds_says_so(tmp_path: Path) -> None:
    given = held(1)
    given["gateway"]["router"] = f"{HERE}:Silent"
    with pytest.raises(PolicyError, match="says `holds = True`"):
        run(given, tmp_path)


def test_explain_says_who_was_held(tmp_path: Path) -> None:
    result = fleetsim.run(held(1), out=tmp_path, explain=[20])
    outcomes = result.table("decisions")["outcome"].to_pylist()
    assert outcomes[0] == "held"
    assert outcomes[-1] == "sent"


@MANY
@given(
    seed=st.integers(0, 1000),
    drain=st.sampled_from(["wait", "kill"]),
    batch=st.sampled_from([10, 40]),
    repair_h=st.sampled_from([0.0002, 0.001]),
)
def test_chiron_beside_failures_in_leaps_and_steps(
    seed: int, drain: str, batch: float, repair_h: float, tmp_path: Path
) -> None:
    pools = [
        pool("interactive", 1) | {"max_replicas": 2},
        pool("mixed", 1) | {"max_replicas": 3},
        pool("batch", 0) | {"min_replicas": 0, "max_replicas": 2},
    ]
    given = scenario(
        seed=seed,
        workload=two_kinds(8, batch),
        pools=[each | {"startup": START, "drain": drain} for each in pools],
        slo={"ttft": "1 s", "tpot": "40 ms", "classes": {"batch": {"ttft": "5 s"}}},
        autoscaler={"policy": "chiron", "period_s": 0.5, "start_seqs": 8},
        gateway={"router": "chiron", "on_failure": {"detect": "0.1 s", "max_retries": 100}},
        faults=[{"policy": "crashes", "scope": "replica", "mtbf_h": 0.001, "repair_h": repair_h}],
    )
    assert set(column(same_in_single_steps(given, tmp_path), "status")) == {"finished"}
