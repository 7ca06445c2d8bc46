"""Failures beside replicas that change their LLM: what they hold, load and keep is lost, and is there again when they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetsim.errors import InputError
from tests.fleet.test_moves import MANY, column, run, same_in_single_steps
from tests.placement.test_swapping import MODELS, events, lonely, scenario, squeezed

START = {"weights": "host", "init": "0.3 s"}


def falls(at_s: float, for_s: float | None = 1.0, replicas: tuple[int, ...] = (0,), **more: Any) -> dict[str, Any]:
    incident = {"at_s": at_s, "pool": "main", "replicas": list(replicas), **more}
    if for_s is not None:
        incident["for_s"] = for_s
    return {"policy": "scheduled", "incidents": [incident]}


def with_start(made: dict[str, Any]) -> dict[str, Any]:
    made["pools"][0]["startup"] = START
    return made


def test_a_replica_comes_back_with_the_llm_that_it_held(tmp_path: Path) -> None:
    """A static partition would serve half of the LLMs no more otherwise."""
    made = with_start(scenario("static-partition", 2, faults=[falls(2.0, replicas=(1,))], run={"interval": "100 ms"}))
    result = same_in_single_steps(made, tmp_path)
    assert set(column(result, "status")) == {"finished"}
    rows = [row for row in result.table("replicas").to_pylist() if row["replica"] == 1]
    assert {row["state"] for row in rows} >= {"ready", "down", "starting"}
    assert {row["model"] for row in rows} == {MODELS[1], None}
    assert rows[-1]["model"] == MODELS[1]


def test_a_load_under_way_is_lost(tmp_path: Path) -> None:
    """It fails while weights come; when it is back it has the LLM that it was changing to."""
    calm = run(lonely(), tmp_path / "calm")
    begun = events(calm, "model_load_begun")[0]["time_s"]
    result = same_in_single_steps(with_start(lonely() | {"faults": [falls(begun + 0.1)]}), tmp_path / "struck")
    assert set(column(result, "status")) == {"finished"}
    assert len(events(result, "model_load_begun")) == len(events(result, "model_loaded")) + 1
    first = result.requests().sort_by("arrival_s").to_pylist()[0]
    assert first["model"] == MODELS[1]
    assert first["first_token_s"] > begun + 0.1 + 1.3


@pytest.mark.parametrize("policy", ["on-demand", "qlm"])
def test_others_serve_both_llms_meanwhile(policy: str, tmp_path: Path) -> None:
    made = with_start(scenario(policy, 2, faults=[falls(2.0, None)]))
    result = same_in_single_steps(made, tmp_path)
    assert set(column(result, "status")) == {"finished"}
    late = [r for r, t in zip(column(result, "replica"), column(result, "first_token_s"), strict=True) if t > 2.0]
    assert set(late) == {1}
    served = {m for m, t in zip(column(result, "model"), column(result, "first_token_s"), strict=True) if t > 2.0}
    assert served == set(MODELS)


@pytest.mark.parametrize("policy", ["on-demand", "qlm", "static-partition"])
def test_who_waits_for_nobody_fails(policy: str, tmp_path: Path) -> None:
    made = with_start(scenario(policy, 2, faults=[falls(2.0, None, (0, 1))]))
    result = same_in_single_steps(made, tmp_path)
    assert set(column(result, "status")) == {"finished", "failed"}
    assert {r for r in column(result, "reason") if r is not None} == {"no replica is left that could take it"}


def test_a_copy_that_was_not_whole_is_none(tmp_path: Path) -> None:
    """The replica that keeps keys and values of who gave way fails while they are copied: they are computed again."""
    calm = run(squeezed("host"), tmp_path / "calm")
    taken = min(t for t in (row["time_s"] for row in events(calm, "model_load_begun")))
    made = with_start(squeezed("host") | {"faults": [falls(taken - 0.005)]})
    result = same_in_single_steps(made, tmp_path / "struck")
    assert set(column(result, "status")) == {"finished"}


def test_one_that_is_back_before_anybody_noticed(tmp_path: Path) -> None:
    made = with_start(scenario("on-demand", 1, faults=[falls(1.0, 0.1)]))
    made["gateway"]["on_failure"] = {"detect": "3 s"}
    result = same_in_single_steps(made, tmp_path)
    assert set(column(result, "status")) == {"finished"}


def test_weights_come_from_a_peer_only_if_it_holds_them(tmp_path: Path) -> None:
    """The other replica of a static partition holds the other LLM: weights come from the drives as if there were no peer."""
    ready = {}
    for weights in ("ssd", "peer"):
        made = scenario("static-partition", 2, faults=[falls(2.0, replicas=(1,))])
        made["pools"][0]["startup"] = {"weights": weights, "init": "0.3 s"}
        back = [row for row in events(run(made, tmp_path / weights), "replica_ready") if row["replica"] == 1]
        ready[weights] = back[-1]["time_s"]
    assert ready["peer"] == ready["ssd"] > 3.3


def test_cuts_are_refused(tmp_path: Path) -> None:
    made = with_start(scenario(faults=[falls(1.0, what="cut")]))
    with pytest.raises(InputError, match="change their LLM"):
        run(made, tmp_path / "out")


@MANY
@given(
    placement=st.sampled_from(
        [
            "on-demand",
            {"policy": "on-demand", "spread": 2},
            "static-partition",
            {"policy": "qlm", "group_requests": 4, "output_mean_tokens": 120, "solver": "50 ms", "check": "300 ms"},
            {"policy": "qlm", "group_requests": 8, "output_mean_tokens": 400, "evict": True},
            {"policy": "clover", "check": "1 s", "output_tokens": 120, "accuracy": {MODELS[1]: 0.9}},
        ]
    ),
    seed=st.integers(0, 1000),
    replicas=st.integers(2, 3),
    kv=st.sampled_from(["drop", "host"]),
    prefix_cache=st.booleans(),
    detect_s=st.sampled_from([0.0, 0.1, 1.0]),
    storm=st.booleans(),
    drill=st.sampled_from(["none", "slow", "lose-gateway", "warned"]),
    timeout=st.sampled_from([None, "4 s"]),
)
def test_failures_in_leaps_and_steps(
    placement: Any,
    seed: int,
    replicas: int,
    kv: str,
    prefix_cache: bool,
    detect_s: float,
    storm: bool,
    drill: str,
    timeout: str | None,
    tmp_path: Path,
) -> None:
    made = with_start(scenario(placement, replicas, {"kv": kv}, seed=seed))
    made["pools"][0]["engine"]["prefix_cache"] = prefix_cache
    made["gateway"]["on_failure"] = {"detect": f"{detect_s} s", "max_retries": 100}
    if timeout is not None:
        made["gateway"]["timeout"] = timeout
    mtbf_h = 0.0004 if storm else 0.002
    made["faults"] = [{"policy": "crashes", "scope": "replica", "mtbf_h": mtbf_h, "repair_h": 0.0001}]
    if drill == "lose-gateway":
        incident = {"at_s": 1.3, "for_s": 1.0, "what": drill, "share": 0.5}
        made["faults"].append({"policy": "scheduled", "incidents": [incident]})
    elif drill == "slow":
        made["faults"].append(falls(0.7, 3.0, what="slow", factor=3.0))
    elif drill == "warned":
        made["faults"].append(falls(2.5, 1.0, notice_s=1.5))
    result = same_in_single_steps(made, tmp_path)
    assert set(column(result, "status")) <= {"finished", "timed_out", "failed"}
