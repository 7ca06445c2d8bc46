"""Cuts in the network beside model routers: calls behind them are waited for or asked again, and stories bear what that costs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetsim.fleet.stories import Call, Story, bearer, rows_of
from fleetsim.model_routing.api import Ask
from fleetsim.plugins import names
from fleetsim.workload.request import Request
from tests.energy.test_ledger import series
from tests.faults.test_outages import cut
from tests.fleet.test_moves import MANY, column, run, same_in_single_steps
from tests.model_routing.test_answering import BIG, SMALL, scenario

MORE: dict[str, dict[str, Any]] = {"crashes": {"scope": "replica"}, "links": {"slow_share": 0.5}}


def behind(router: Any, faults: list[dict[str, Any]], requests: int = 40, **failure: Any) -> dict[str, Any]:
    """A server for each replica, a leaf for each server."""
    config = scenario(router, requests, 30.0, network={"servers_per_leaf": 1}, faults=faults)
    for pool in config["pools"]:
        pool |= {"server": {"accelerators": 1}, "startup": {"weights": "none", "init": "0.2 s"}}
    config["gateway"]["on_failure"] = {"detect": "0.1 s", "max_retries": 20, **failure}
    return config


@MANY
@given(
    router=st.sampled_from(names("model_routers")),
    budget=st.sampled_from([None, *names("budgets")]),
    seed=st.integers(0, 1000),
    where=st.sampled_from([{"pool": "big", "server": 0}, {"pool": "small", "server": 0}, {"link": "gateway"}]),
    at_s=st.sampled_from([0.3, 0.7131, 1.5]),
    for_s=st.sampled_from([0.05, 0.6, 2.5]),
    unreachable=st.sampled_from(["retry", "wait"]),
    timeout=st.sampled_from([None, "2 s"]),
    more=st.sampled_from([None, "crashes", "links"]),
    prices=st.booleans(),
)
def test_cuts_in_leaps_and_steps(
    router: str,
    budget: str | None,
    seed: int,
    where: dict[str, Any],
    at_s: float,
    for_s: float,
    unreachable: str,
    timeout: str | None,
    more: str | None,
    prices: bool,
    tmp_path: Path,
) -> None:
    config = behind({"policy": router}, [cut(at_s, for_s, **where)], unreachable=unreachable)
    config["seed"] = seed
    if budget is not None:
        config["gateway"]["budget"] = {"policy": budget, "calm": 0.2, "busy": 0.8}
    if timeout is not None:
        config["gateway"]["timeout"] = timeout
    if more is not None:
        config["faults"].append({"policy": more, "mtbf_h": 0.001, "repair_h": 0.0002, **MORE[more]})
    if prices:
        config["energy"] = {"carbon_intensity": series(tmp_path, "grams", [300.0, 100.0, 0.0, 500.0])}
        config["pools"][0]["price"] = series(tmp_path, "usd", [1.0, 3.0, 2.0], 0.4)
    result = same_in_single_steps(config, tmp_path)
    statuses = column(result, "status")
    assert len(statuses) == 40
    assert set(statuses) <= {"finished", "failed", "timed_out"}


def test_stories_pay_for_calls_that_were_given_up(tmp_path: Path) -> None:
    """What is computed in vain behind the cut is on the bill of the request, though its answer came from elsewhere before."""
    config = behind({"policy": "single", "model": BIG}, [cut(0.6, 6.0, pool="big", server=0)])
    result = same_in_single_steps(config, tmp_path)
    assert set(column(result, "status")) == {"finished"}
    assert result.summary["recoveries"] > 3
    assert result.summary["lost_energy_j"] > 0.0
    spent = sum(result.requests()["energy_j"].to_pylist())
    calm = run(config | {"faults": []}, tmp_path / "calm")
    usual = sum(calm.requests()["energy_j"].to_pylist())
    assert spent > usual
    assert result.summary["energy_requests_j"] == pytest.approx(spent, rel=1e-9)


def test_a_story_waits_for_what_is_behind_a_cut_if_it_is_told_to(tmp_path: Path) -> None:
    """Nothing is given up; answers that were there come when the link is mended, and others are asked once it is noticed."""
    config = behind({"policy": "single", "model": SMALL}, [cut(0.6, 2.0, pool="small", server=0)], unreachable="wait")
    result = same_in_single_steps(config, tmp_path)
    assert set(column(result, "status")) == {"finished"}
    assert result.summary["recoveries"] == 0
    end, arrival, models = (np.array(column(result, name)) for name in ("end_s", "arrival_s", "model"))
    there = models == SMALL
    assert not ((end[there] > 0.6) & (end[there] < 2.6)).any()
    assert (end[there] == 2.6).sum() > 3
    assert set(models[(arrival > 0.7) & (arrival < 2.6)]) == {BIG}


def test_a_cascade_asks_somebody_else(tmp_path: Path) -> None:
    """While the small model is behind a cut, its requests are answered by the large one."""
    config = behind({"policy": "frugal-gpt"}, [cut(0.3, 5.0, pool="small", server=0)])
    result = same_in_single_steps(config, tmp_path)
    assert set(column(result, "status")) == {"finished"}
    arrival, models = np.array(column(result, "arrival_s")), column(result, "model")
    during = [model for model, at_s in zip(models, arrival, strict=True) if at_s > 0.45]
    assert len(during) > 10
    assert set(during) == {BIG}


def test_who_waits_for_what() -> None:
    """Of a story all calls must be among those that wait; samples wait with the one that they follow."""

    def request(number: int, call: Any = None) -> Request:
        made = Request(number, 0.0, 10, 10)
        made.call = call
        return made

    parent = request(1)
    story = Story(parent, SimpleNamespace(), SimpleNamespace(), -1)  # type: ignore[arg-type]
    first, second, follower = (Call(story, 0, i, Ask(0), 0.0) for i in range(3))
    story.under_way = dict.fromkeys((first, second, follower))
    first.followers = [request(4, follower)]
    a, b, plain = request(2, first), request(3, second), request(5)
    assert [bearer(each).id for each in (a, b, plain)] == [1, 1, 5]
    assert rows_of([]) == 0
    assert rows_of([a]) == rows_of([b]) == 0
    assert rows_of([a, b]) == 1
    assert rows_of([a, b, plain]) == 2
