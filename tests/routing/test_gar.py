"""gar-pd: which LLM it takes, how its prices move, and what it spends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleetsim.catalog.series import constant
from fleetsim.plugins import load
from fleetsim.routing.api import FleetView, RequestView
from fleetsim.routing.places import Place, Places
from fleetsim.testing import check_router
from fleetsim.testing.station import Station
from fleetsim.workload.request import Request
from tests.fleet.test_moves import column, pool, same_in_single_steps, scenario

QUALITY = {
    "small": {"math": 0.6, "chat": 0.9},
    "middle": {"math": 0.8, "chat": 0.92},
    "large": {"math": 0.9, "chat": 0.95},
}
JOULES = {"small": 1.0, "middle": 3.0, "large": 10.0}
TABLES = {"quality": QUALITY, "output_j": JOULES, "prompt_j": dict.fromkeys(QUALITY, 0.0), "noise": 0.0}
OFFERED = [
    {},
    {"variant": "fixed", "quality": {"pool-0": {"chat": 0.7}}, "floors": {"chat": 0.8}},
    {"variant": "epsilon", "epsilon": 0.2, "quality": {"pool-0": {"chat": 0.7}}, "floors": {"chat": 0.8}},
    {"variant": "target", "budget_g": 0.01, "window_s": 0.5, "output_j": {"pool-0": 0.1}},
]


@pytest.mark.parametrize("parameters", OFFERED)
def test_the_checker_passes(parameters: dict[str, Any]) -> None:
    assert len(check_router("gar-pd", parameters).checks) == 7


class Fleet:
    """Three pools of one replica each; the test says what their meters say."""

    def __init__(self, **parameters: Any) -> None:
        self.now_s = self.spent_g = 0.0
        stations = [Station(5000.0, 16, lambda: self.now_s) for _ in QUALITY]
        self.view = FleetView(list(QUALITY), (), stations, None, lambda: self.now_s)
        place = Place("", 1.0, constant(360.0), None)  # 1 J is 0.1 mg
        self.view.places = Places([place], [0, 0, 0], [constant(1.0)] * 3, [700.0] * 3, None, lambda: self.spent_g)
        policy = load("routers", "gar-pd")
        self.router = policy(policy.Config(**{**TABLES, **parameters}), np.random.default_rng(3), self.view)

    def ask(self, klass: str, number: int = 1) -> str:
        self.view.now_s = self.now_s
        return list(QUALITY)[self.router.route(RequestView(Request(number, self.now_s, 100, 10, klass=klass)))]


@pytest.mark.parametrize(
    ("variant", "floor", "chosen"),
    [
        ("fixed", 0.5, "small"),
        ("fixed", 0.7, "middle"),
        ("fixed", 0.85, "large"),
        ("fixed", 0.95, "large"),
        ("epsilon", 0.85, "middle"),
    ],
)
def test_the_least_carbon_above_the_floor(variant: str, floor: float, chosen: str) -> None:
    fleet = Fleet(variant=variant, floors={"math": floor}, epsilon=0.05)
    assert fleet.ask("math") == chosen


def test_late_replicas_are_left_out() -> None:
    fleet = Fleet(variant="fixed", floors={"math": 0.7}, ttft_slo_s=0.1, tail_ratio=1.0)
    middle = fleet.router._fleet
    for number in range(20):  # 20 x 1,000 tokens at 5,000 a second before the middle one
        request = Request(100 + number, 0.0, 1000, 10)
        middle._probes[1].sent(request)
    assert fleet.ask("math") == "large"


def test_prices_follow_what_was_spent_and_what_was_right() -> None:
    fleet = Fleet(variant="primal-dual", floors={"math": 0.85}, budget_g=0.1, window_s=10.0, eta=0.5)
    for number in range(50):
        fleet.ask("math", number)
    before = fleet.router.mu_q["math"]
    right = fleet.router._right["math"][0]
    fleet.now_s, fleet.spent_g = 10.0, 8.0
    fleet.ask("math", 51)
    assert fleet.router.mu_c == pytest.approx(0.5 * (8.0 / 5.0 - 1.0))
    assert fleet.router.mu_q["math"] == pytest.approx(max(before + 0.5 * (0.85 - right / 50), 0.0))
    fleet.now_s = 20.0  # one request, nothing spent: against what windows usually may spend
    fleet.ask("math", 52)
    assert fleet.router.mu_c == pytest.approx(max(0.3 - 0.5 * 0.1 / (0.1 * 51 / 2), 0.0))


def test_a_budget_buys_the_most_accurate() -> None:
    """The answer of a large one is ten milligrams and of a small one one: a budget between them takes both."""
    fleet = Fleet(variant="target", budget_g=0.06, window_s=1.0, noise=0.05)
    each_g = {"small": 0.02, "middle": 0.06, "large": 0.2}
    spent, taken = 0.0, []
    for number in range(20_000):
        fleet.now_s = number / 20
        taken.append(fleet.ask("math", number))
        fleet.spent_g = spent = spent + each_g[taken[-1]]
    assert spent / 20_000 == pytest.approx(0.06, rel=0.03)
    assert len(set(taken)) > 1


def test_a_target_needs_a_budget() -> None:
    with pytest.raises(ValueError, match="target needs budget_g"):
        load("routers", "gar-pd").Config(variant="target")


@pytest.mark.parametrize("grid", ["300 g/kWh", {"hourly": [300.0, 100.0], "repeat": True, "begin_hour": 0.9995}])
def test_leaps_are_single_steps_and_the_budget_is_kept(grid: Any, tmp_path: Path) -> None:
    """Two LLMs in a whole run: what the meters say decides, and decides alike in leaps and in single steps."""
    pools = [pool("small", 2), pool("large", 2) | {"llm": "qwen2.5-7b"}]
    config = {
        "policy": "gar-pd",
        "variant": "target",
        "quality": {"small": {"math": 0.6}, "large": {"math": 0.9}},
        "output_j": {"small": 1.0, "large": 9.0},
        "budget_g": 0.004,
        "window_s": 0.25,
        "eta": 0.5,
    }
    given = scenario(pools=pools, gateway={"router": config}, energy={"carbon_intensity": grid})
    given["workload"] |= {"class": "math", "requests": 150}
    given["classes"] = {"math": {}}
    result = same_in_single_steps(given, tmp_path)
    assert set(column(result, "pool")) == {"small", "large"}
    assert result.summary["carbon_requests_g"] > 0
