"""Failures beside replicas that change their pool: a change is called off, and what can go on goes on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fleetsim.errors import InputError
from tests.elasticity.test_conversions import grows, times
from tests.elasticity.test_leaps import SHAPES, START
from tests.fleet.test_moves import MANY, column, pool, run, same_in_single_steps, scenario

FEW = settings(MANY, max_examples=int(os.environ.get("FLEETSIM_EXAMPLES", "8")))


def falls(at_s: float, pool_name: str, **more: Any) -> list[dict[str, Any]]:
    incident = {"at_s": at_s, "for_s": 1.0, "pool": pool_name, "replicas": [0], **more}
    return [{"policy": "scheduled", "incidents": [incident]}]


def growing(requests: str = "hand-over", **changes: Any) -> dict[str, Any]:
    """A change from two ranks to three that is asked for at 2 s and takes 1.5 s."""
    given = grows(requests, plan="0.5 s", init="1 s") | changes
    given["pools"] = [each | {"startup": START} for each in given["pools"]]
    return given


def test_accelerators_that_join_and_fail_leave_the_old_replica_as_it_was(tmp_path: Path) -> None:
    result = same_in_single_steps(growing(faults=falls(2.7, "large")), tmp_path)
    assert set(column(result, "status")) == {"finished"}
    assert set(column(result, "pool")) == {"small"}
    assert times(result, "conversion_called_off") == [2.7]
    assert not times(result, "replica_converted")
    assert result.summary["recoveries"] == 0


def test_a_replica_that_fails_while_it_turns_is_replaced_by_one_of_the_new_pool(tmp_path: Path) -> None:
    result = same_in_single_steps(growing(faults=falls(2.7, "small")), tmp_path)
    assert set(column(result, "status")) == {"finished"}
    assert times(result, "conversion_called_off") == [2.7]
    late = [p for p, t in zip(column(result, "pool"), column(result, "first_scheduled_s"), strict=True) if t > 2.7]
    assert set(late) == {"large"}
    assert 2.7 + 0.4 in map(pytest.approx, times(result, "replica_ready"))  # a start-up, not the change's time


def test_one_that_waits_to_be_empty_stays(tmp_path: Path) -> None:
    """Its stand-in fails before anything was made: it serves again."""
    result = same_in_single_steps(growing("wait", faults=falls(2.05, "large")), tmp_path)
    assert set(column(result, "pool")) == {"small"}
    assert times(result, "drain_cancelled") == [2.05]


def test_cuts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="change their pool"):
        run(growing(faults=falls(1.0, "small", what="cut")), tmp_path / "out")


@FEW
@given(
    seed=st.integers(0, 1000),
    small=st.sampled_from(sorted(SHAPES)),
    large=st.sampled_from(sorted(SHAPES)),
    requests=st.sampled_from(["hand-over", "wait", "restart"]),
    weights=st.sampled_from(["none", "peer", "host"]),
    drain=st.sampled_from(["wait", "migrate"]),
    detect_s=st.sampled_from([0.0, 0.3]),
    storm=st.booleans(),
    drill=st.sampled_from(["none", "slow", "warned", "lose-gateway"]),
    timeout=st.booleans(),
)
@example(  # an old replica becomes another change's stand-in before the first change is called off
    seed=998,
    small="dp2",
    large="dp2",
    requests="restart",
    weights="none",
    drain="wait",
    detect_s=0.0,
    storm=True,
    drill="none",
    timeout=False,
)
def test_failures_in_leaps_and_steps(
    seed: int,
    small: str,
    large: str,
    requests: str,
    weights: str,
    drain: str,
    detect_s: float,
    storm: bool,
    drill: str,
    timeout: bool,
    tmp_path: Path,
) -> None:
    way = {"requests": requests, "weights": weights, "plan": "0.1 s", "init": "0.3 s"}
    if weights == "host" and requests == "hand-over":
        way["accelerators"] = "new"  # two copies of the weights do not fit on one of these
    pools = [
        pool("small", 2) | {"min_replicas": 0, "max_replicas": 3, "parallelism": SHAPES[small]},
        pool("large", 0) | {"min_replicas": 0, "max_replicas": 2, "parallelism": SHAPES[large]},
    ]
    ways = [("small", "large"), ("large", "small")]
    changes = [(0.5, *ways[0]), (1.1, *ways[0]), (1.9, *ways[1]), (2.7, *ways[0]), (3.5, *ways[1])]
    mtbf_h = 0.0006 if storm else 0.003
    faults: list[dict[str, Any]] = [
        {"policy": "crashes", "scope": "replica", "mtbf_h": mtbf_h, "repair_h": 0.0001},
    ]
    if drill == "slow":
        faults += falls(0.7, "small", what="slow", factor=2.0)
    elif drill == "warned":
        faults += falls(1.5, "small", notice_s=0.8)
    elif drill == "lose-gateway":
        incident = {"at_s": 1.0, "for_s": 1.0, "what": "lose-gateway", "share": 0.5}
        faults.append({"policy": "scheduled", "incidents": [incident]})
    gateway: dict[str, Any] = {"on_failure": {"detect": f"{detect_s} s", "max_retries": 100}}
    if timeout:
        gateway["timeout"] = "4 s"
    given = scenario(
        seed=seed,
        pools=[each | {"startup": START, "drain": drain} for each in pools],
        conversions=[{"source": a, "target": b, **way} for a, b in ways],
        autoscaler={
            "policy": "timetable",
            "changes": [{"at_s": t, "source": a, "target": b, "replicas": 1} for t, a, b in changes],
        },
        gateway=gateway,
        faults=faults,
    )
    result = same_in_single_steps(given, tmp_path)
    assert set(column(result, "status")) <= {"finished", "timed_out"}
