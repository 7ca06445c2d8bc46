"""Sessions that stay unless their replica is overloaded, and the router inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

import fleetsim
from fleetsim.errors import ScenarioError
from fleetsim.routing.api import FleetView, RequestView
from fleetsim.routing.sticky import Sticky, StickyConfig
from fleetsim.scenario.load import load_scenario
from fleetsim.scenario.schema import Scenario
from fleetsim.testing import check_router
from fleetsim.workload.request import Request
from tests.routing.test_basic import fixed, fleet, steady


def create(view: FleetView, **parameters: Any) -> Sticky:
    return Sticky(StickyConfig.model_validate(parameters), np.random.default_rng(0), view)


def asked(session: int) -> RequestView:
    return RequestView(Request(0, 0.0, 100, 1, session=session))


@pytest.mark.parametrize(
    "inner", ["least-outstanding", {"policy": "power-of-two-choices", "choices": 3}, "cache-aware"]
)
def test_checker_passes(inner: Any) -> None:
    assert check_router("sticky", {"inner": inner}).us_per_decision["1000 replicas"] < 500


def test_sessions_stay_until_their_replica_is_overloaded_and_then_for_good() -> None:
    """By hand with 3 replicas: more than 8, and more than twice the mean, are too many."""
    view = FleetView(["main"] * 3)
    router = create(view, inner="round-robin")
    assert [router.route(asked(session)) for session in (1, 2, 3, 2, 1, 3)] == [0, 1, 2, 1, 0, 2]
    for _ in range(8):
        view.sent(1, 10)
    assert router.route(asked(2)) == 1  # 8 are not too many, though the mean is 2.7
    for position in (1, 0, 0):
        view.sent(position, 10)
    assert router.route(asked(1)) == 0
    assert router.route(asked(2)) == 0  # 9 > 2 x 11 / 3; round robin's fourth
    for _ in range(9):
        view.ended(1, 10)
    assert router.route(asked(2)) == 0
    for position in (0, 1, 2):
        for _ in range(20):
            view.sent(position, 10)
    assert [router.route(asked(session)) for session in (1, 2, 3)] == [0, 0, 2]  # all busy is not overloaded


def test_requests_without_a_session_are_left_to_the_inner_router() -> None:
    router = create(FleetView(["main"] * 4), inner="round-robin")
    assert [router.route(asked(-1)) for _ in range(6)] == [0, 1, 2, 3, 0, 1]


def test_inner_router_is_checked_as_any_other() -> None:
    with pytest.raises(ValidationError, match="unknown policy"):
        StickyConfig.model_validate({"inner": "round-robbin"})
    with pytest.raises(ValidationError, match="choices"):
        StickyConfig.model_validate({"inner": {"policy": "power-of-two-choices", "choices": 0}})
    config = StickyConfig.model_validate({"inner": {"policy": "power-of-two-choices", "choices": 3}})
    assert config.model_dump(mode="json")["inner"] == {"policy": "power-of-two-choices", "choices": 3}


def test_scenario_with_a_router_inside_a_router(tmp_path: Path) -> None:
    """It runs, keeps its parameters when it is written and read again, and turns hit caches more often than without."""
    workload = {**steady(400, 20), "prompt_tokens": fixed(100), "output_tokens": fixed(100)}
    workload["sessions"] = {"turns": fixed(8), "think_time": "500 ms"}
    hits = {}
    inner = {"policy": "power-of-two-choices", "choices": 3}
    for name, router in (("sticky", {"policy": "sticky", "inner": inner}), ("inner", inner)):
        scenario = fleet(router, 4, workload)
        again = Scenario.model_validate(json.loads(scenario.model_dump_json(by_alias=True, exclude_none=True)))
        assert again.gateway == scenario.gateway
        hits[name] = fleetsim.run(scenario, tmp_path / name, check=True).summary["prefix_hit_ratio"]
    assert hits["sticky"] > 1.5 * hits["inner"] > 0


def test_bad_inner_parameter_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    scenario = json.loads(fleet("random", 2, steady(5)).model_dump_json(by_alias=True, exclude_none=True))
    del scenario["gateway"]
    text = json.dumps(scenario, indent=1)
    assert text.endswith("\n}")
    block = (
        ',\n"gateway": {"router": {"policy": "sticky",\n"inner": {"policy": "power-of-two-choices",\n"choises": 3}}}\n}'
    )
    path.write_text(text[:-2] + block)
    with pytest.raises(ScenarioError) as caught:
        load_scenario(path)
    (finding,) = caught.value.findings
    assert finding.path == "gateway.router.inner.choises"
    assert finding.line == len(path.read_text().splitlines()) - 1
    assert "choices" in str(finding)


def test_session_that_was_silent_for_longest_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for two sessions: the first one speaks again, so the third one takes the second one's room."""
    monkeypatch.setattr("fleetsim.routing.sticky._SESSIONS", 2)
    router = create(FleetView(["main"] * 9), inner="round-robin")
    assert [router.route(asked(session)) for session in (1, 2, 1, 3, 1, 2)] == [0, 1, 0, 2, 0, 3]
