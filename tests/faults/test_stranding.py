"""A loss of replicas for good: the run ends, and who waited for them has failed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fleet.test_moves import MANY, column, pool, run, same_in_single_steps, scenario

START = {"startup": {"weights": "none", "init": "0.3 s"}}


def lost(at_s: float, replicas: list[int], pool_name: str = "main") -> dict[str, Any]:
    """A failure without an end."""
    return {"policy": "scheduled", "incidents": [{"at_s": at_s, "pool": pool_name, "replicas": replicas}]}


def fleet(**changes: Any) -> dict[str, Any]:
    return scenario(pools=[pool("main", 2) | START | changes])


SCALERS: dict[str, dict[str, Any]] = {
    "none": {},
    "hpa": {"autoscaler": {"policy": "hpa"}, "max_replicas": 2},
    "keda": {"autoscaler": {"policy": "keda"}, "max_replicas": 2},
}


@pytest.mark.parametrize("scaler", sorted(SCALERS))
def test_the_run_ends_and_who_waits_fails(scaler: str, tmp_path: Path) -> None:
    given = fleet(**SCALERS[scaler]) | {"faults": [lost(1.0, [0, 1])]}
    result = same_in_single_steps(given, tmp_path)
    statuses = column(result, "status")
    assert set(statuses) == {"finished", "failed"}
    assert statuses.count("failed") > 50
    reasons = {r for r in column(result, "reason") if r is not None}
    assert reasons == {"no replica is left that could take it"}
    assert any("none comes back" in warning for warning in result.warnings)


def test_power_and_prices_that_go_on_changing_do_not_keep_it_alive(tmp_path: Path) -> None:
    (tmp_path / "grams.csv").write_text("time,value\n0,300\n2,100\n4,200\n")
    given = fleet(**SCALERS["hpa"]) | {
        "faults": [lost(1.0, [0, 1])],
        "energy": {"carbon_intensity": {"file": str(tmp_path / "grams.csv"), "repeat": True}},
        "power": [{"manager": {"policy": "slo-clock", "period_s": 1.0}}],
    }
    assert column(same_in_single_steps(given, tmp_path), "status").count("failed") > 50


def test_a_repair_that_is_still_to_come_is_waited_for(tmp_path: Path) -> None:
    given = fleet(**SCALERS["hpa"])
    faults = lost(1.0, [0, 1])
    faults["incidents"][0]["for_s"] = 60.0
    result = run(given | {"faults": [faults]}, tmp_path / "out")
    assert set(column(result, "status")) == {"finished"}
    assert max(column(result, "end_s")) > 61.0


def test_answers_that_nobody_can_compute_fail_too(tmp_path: Path) -> None:
    pools = [pool("prefill", 1, "prefill") | START, pool("decode", 1, "decode") | START]
    pools[0] |= SCALERS["hpa"] | {"max_replicas": 1}
    given = scenario(pools=pools) | {"faults": [lost(1.0, [0], pool_name="decode")]}
    result = same_in_single_steps(given, tmp_path)
    assert column(result, "status").count("failed") > 50


@MANY
@given(
    seed=st.integers(0, 1000),
    scaler=st.sampled_from(sorted(SCALERS)),
    at_s=st.sampled_from([0.5, 1.7131]),
    both=st.booleans(),
    cut=st.booleans(),
    unreachable=st.sampled_from(["wait", "retry"]),
    sessions=st.booleans(),
)
def test_in_leaps_and_steps(
    seed: int, scaler: str, at_s: float, both: bool, cut: bool, unreachable: str, sessions: bool, tmp_path: Path
) -> None:
    given = fleet(**SCALERS[scaler], server={"accelerators": 1})
    given |= {"seed": seed, "faults": [lost(at_s, [0, 1] if both else [0])]}
    if cut:  # and while it lasts
        given["faults"][0]["incidents"].append(
            {"at_s": at_s - 0.2, "for_s": 1.0, "what": "cut", "pool": "main", "replicas": [0]}
        )
    given["gateway"] = {"on_failure": {"detect": "0.1 s", "unreachable": unreachable, "max_retries": 5}}
    if sessions:
        given["workload"] |= {"requests": 40, "sessions": {"turns": {"distribution": "fixed", "value": 2}}}
        del given["workload"]["prefixes"]
    result = same_in_single_steps(given, tmp_path)
    assert set(column(result, "status")) <= {"finished", "failed"}
