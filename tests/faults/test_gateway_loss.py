"""Gateways that are gone for a while."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetsim.errors import InputError
from tests.fleet.test_moves import HERE, MANY, column, pool, run, same_in_single_steps, scenario


def lost(at_s: float = 1.0, for_s: float = 1.5, share: float = 1.0) -> dict[str, Any]:
    incident = {"at_s": at_s, "for_s": for_s, "what": "lose-gateway", "share": share}
    return {"policy": "scheduled", "incidents": [incident]}


def test_clients_try_again_and_running_requests_go_on(tmp_path: Path) -> None:
    result = same_in_single_steps(scenario(faults=[lost()]), tmp_path)
    assert set(column(result, "status")) == {"finished"}
    arrival, queued, end = (np.array(column(result, name)) for name in ("arrival_s", "queued_s", "end_s"))
    during = (arrival >= 1.0) & (arrival < 2.5)
    assert during.sum() > 10
    assert (queued[during] >= 2.5).all()
    assert ((end > 1.0) & (end < 2.5)).sum() > 3
    tries = np.round(np.diff(np.sort(queued[during])), 9)
    assert (tries > 0).any()  # they do not come back all at once
    assert result.summary["failed_tries"] >= during.sum()


def test_waits_grow_as_they_are_said_to(tmp_path: Path) -> None:
    clients = {"first_wait": "0.1 s", "factor": 3, "longest_wait": "0.5 s", "jitter": 0}
    result = same_in_single_steps(scenario(faults=[lost()], gateway={"clients": clients}), tmp_path)
    arrival, queued = (np.array(column(result, name)) for name in ("arrival_s", "queued_s"))
    during = (arrival >= 1.0) & (arrival < 2.5)
    tries = np.cumsum([0.1, 0.3, 0.5, 0.5, 0.5])
    expected = [a + next(t for t in tries if a + t >= 2.5) for a in arrival[during]]
    frontend = (queued - arrival)[~during].min()
    np.testing.assert_allclose(queued[during] - frontend, expected, atol=1e-9)


def test_a_share_of_the_gateways_is_a_share_of_the_sessions(tmp_path: Path) -> None:
    result = run(scenario(faults=[lost(0.0, 30.0, 0.3)], gateway={"clients": {"max_retries": 0}}), tmp_path)
    failed = np.array(column(result, "status")) == "failed"
    assert 0.15 < failed.mean() < 0.45
    assert set(np.array(column(result, "reason"))[failed]) == {"no gateway"}
    more = run(scenario(faults=[lost(0.0, 30.0, 0.6)], gateway={"clients": {"max_retries": 0}}), tmp_path / "more")
    assert (failed <= (np.array(column(more, "status")) == "failed")).all()


def test_a_client_waits_no_longer_than_it_says(tmp_path: Path) -> None:
    result = same_in_single_steps(scenario(faults=[lost(1.0, 60.0)], gateway={"timeout": "5 s"}), tmp_path)
    arrival, end, status = (np.array(column(result, name)) for name in ("arrival_s", "end_s", "status"))
    assert set(status[arrival >= 1.0]) == {"timed_out"}
    np.testing.assert_allclose((end - arrival)[arrival >= 1.0], 5.0)


def test_a_run_that_ends_before_the_gateway_is_back_loses_nobody(tmp_path: Path) -> None:
    result = run(scenario(faults=[lost(1.0, 60.0)], run={"horizon": "3 s"}), tmp_path)
    assert set(column(result, "status")) == {"finished", "unfinished"}


@pytest.mark.parametrize(
    ("incident", "says"),
    [
        ({"at_s": 1, "what": "lose-gateway"}, "for_s"),
        ({"at_s": 1, "for_s": 1, "what": "lose-gateway", "rack": 0}, "no pool"),
        ({"at_s": 1, "for_s": 1, "what": "lose-gateway", "share": 0}, "share"),
    ],
)
def test_losses_of_nothing_are_refused(incident: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        run(scenario(faults=[{"policy": "scheduled", "incidents": [incident]}]), tmp_path / "out")


@MANY
@given(
    seed=st.integers(0, 1000),
    at_s=st.sampled_from([0.3, 0.7131, 1.5]),
    for_s=st.sampled_from([0.05, 0.6, 2.5]),
    share=st.sampled_from([0.5, 1.0]),
    apart=st.booleans(),
    more=st.sampled_from(
        [
            {},
            {"router": {"policy": f"{HERE}:Impatient", "hedge_after_s": 0.1}},
            {"router": {"policy": f"{HERE}:Impatient", "retry_after_s": 0.1}},
            {"timeout": "2 s"},
            {"admission": {"policy": "queue-cap", "per_replica": 6}},
        ]
    ),
    crashes=st.booleans(),
    cut=st.booleans(),
)
def test_losses_in_leaps_and_steps(
    seed: int,
    at_s: float,
    for_s: float,
    share: float,
    apart: bool,
    more: dict[str, Any],
    crashes: bool,
    cut: bool,
    tmp_path: Path,
) -> None:
    pools = [pool("prefill", 2, "prefill"), pool("decode", 2, "decode")] if apart else [pool("main", 4)]
    for each in pools:
        each |= {"startup": {"weights": "none", "init": "0.2 s"}, "server": {"accelerators": 1}}
    gateway = {"on_failure": {"detect": "0.1 s", "max_retries": 20}, **more}
    given = scenario(seed=seed, pools=pools, gateway=gateway, faults=[lost(at_s, for_s, share)])
    if crashes:
        given["faults"].append({"policy": "crashes", "scope": "replica", "mtbf_h": 0.001, "repair_h": 0.0001})
    if cut:
        incident = {"at_s": at_s + 0.1, "for_s": for_s, "what": "cut", "server": 0, "pool": pools[-1]["name"]}
        given["faults"].append({"policy": "scheduled", "incidents": [incident]})
    result = same_in_single_steps(given, tmp_path)
    assert set(column(result, "status")) <= {"finished", "failed", "timed_out", "rejected"}
