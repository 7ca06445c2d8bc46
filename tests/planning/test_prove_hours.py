"""Plans by the hour, proved by simulation: portfolio and regions, from the file to the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fleetsim
from fleetsim.errors import InputError
from fleetsim.planning.judge import Confidence
from fleetsim.planning.portfolio import StatedPortfolio
from fleetsim.planning.problems import load_problem
from fleetsim.planning.prove_hours import Hour, scenario_of
from fleetsim.planning.regions import StatedRegions

STEPS = {
    "model": "affine", "step": "10 ms", "prompt_token": "50 us", "prompt_pair": "0 s", "context_token": "0 s", "sequence": "1 ms",
}  # fmt: skip
ENGINE = {"kind": "generic", "prefix_cache": False, "step_time": STEPS}
PART: dict[str, Any] = {
    "kind": "synthetic",
    "requests": 50,
    "arrivals": {"process": "poisson", "rate": "5 req/s"},
    "prompt_tokens": {"distribution": "fixed", "value": 400},
    "output_tokens": {"distribution": "fixed", "value": 20},
}
POOL: dict[str, Any] = {"llm": "llama-3.1-8b", "accelerator": "h100-sxm", "engine": ENGINE}
SCENARIO: dict[str, Any] = {
    "workload": PART,
    "slo": {"ttft": "0.5 s", "tpot": "60 ms", "attainment": 0.9},
    "gateway": {"router": "least-outstanding"},
    "pools": [POOL | {"name": "h100"}],
}
SURE = Confidence(0.9, 3, 4)


def portfolio(throughput: float, **changes: Any) -> dict[str, Any]:
    chip = {"throughput": throughput, "on_demand": "3 USD/h", "power": "700 W"}
    problem = {
        "kind": "portfolio",
        "hours": 2,
        "chips": {"h100": chip},
        "cases": {"all": {"probability": 1.0, "demand": [10, 30]}},
        "scenario": SCENARIO,
    }
    return {"name": "test", "problem": problem | changes}


def test_a_plan_with_true_throughputs_is_proved_at_once() -> None:
    """A replica of these steps serves 24 requests of 20 + 20 tokens a second at 25 a step; 15 are planned with."""
    plan = fleetsim.plan(portfolio(15.0), verify=True, confidence=SURE)
    assert plan.proof is not None
    assert plan.proof.proved
    assert len(plan.proof.rounds) == 1
    assert plan.proof.attainment_low_ratio >= 0.9
    assert plan.proof.predicted["power_w"] == pytest.approx(700)  # the hour with one replica is as full as the other
    assert plan.objective == fleetsim.plan(portfolio(15.0)).objective


def test_a_plan_with_too_high_throughputs_is_tightened_until_it_holds() -> None:
    told: list[str] = []
    plan = fleetsim.plan(portfolio(40.0), verify=True, confidence=SURE, notice=told.append)
    assert plan.proof is not None
    assert plan.proof.proved
    assert len(plan.proof.rounds) > 1
    assert "missed" in plan.proof.rounds[0]
    assert list(plan.proof.rounds) == told
    assert plan.objective > fleetsim.plan(portfolio(40.0)).objective
    assert any(note.startswith("tightened to") for note in plan.notes)


def test_what_cannot_be_proved_says_why() -> None:
    chip = {"throughput": 40.0, "on_demand": "3 USD/h", "limit": 1}
    plan = fleetsim.plan(portfolio(40.0, chips={"h100": chip}), verify=True, confidence=SURE)
    assert plan.proof is not None
    assert not plan.proof.proved
    assert "is not possible: no plan keeps all requirements: at most 1 h100" in plan.proof.reason
    hopeless = {**SCENARIO, "slo": {"ttft": "5 ms", "attainment": 0.9}}
    plan = fleetsim.plan(portfolio(15.0, scenario=hopeless), verify=True, confidence=SURE)
    assert plan.proof is not None
    assert not plan.proof.proved
    assert "100.0% above ttft" in plan.proof.reason


def test_hours_of_a_portfolio_count_spot_replicas_that_are_there() -> None:
    spot = {"price": "1 USD/h", "interruptions": 2, "lost": "60 s", "restart": "300 s"}
    problem = portfolio(10.0, chips={"h100": {"throughput": 10.0, "spot": spot}}, utilisation=1.0)
    stated = load_problem(problem).problem
    assert isinstance(stated, StatedPortfolio)
    plan, hours = stated.planned()
    assert plan.table[0]["mean spot hours"] == 2 + 4  # each serves 80 % of its time
    assert [hour.replicas for hour in hours] == [{"h100": 1}, {"h100": 3}]


def regions(**changes: Any) -> dict[str, Any]:
    problem: dict[str, Any] = {
        "kind": "regions",
        "hours": 2,
        "chips": {
            "h100": {"price": "3 USD/h", "power": "700 W", "idle": "100 W", "throughput": [15, 15]},
            "old": {"price": "2 USD/h", "power": "300 W", "throughput": [4, 4]},
        },
        "buckets": {
            "chat": {"rates": {"west": "10 req/s", "east": "4 req/s"}, "profile": [1.0, 1.5], "local": True},
            "batch": {"rates": {"west": "2 req/s"}, "slack_h": 1},
        },
        "regions": {"west": {}, "east": {"limits": {"h100": 0}}},
        "scenario": {
            **SCENARIO,
            "workload": {"kind": "mix", "parts": {"chat": PART, "batch": PART}},
            "pools": [POOL | {"name": "h100"}, POOL | {"name": "old", "accelerator": "a100-80"}],
        },
    }
    return {"name": "test", "problem": problem | changes}


def test_regions_are_proved_hour_by_hour() -> None:
    plan = fleetsim.plan(regions(), verify=True, confidence=SURE)
    assert plan.proof is not None
    assert plan.proof.proved
    assert len(plan.proof.rounds) == 1
    stated = load_problem(regions()).problem
    assert isinstance(stated, StatedRegions)
    _, hours = stated.planned()
    by_label = {hour.label: hour for hour in hours}
    assert by_label["hour 1 in east"].rates_per_s["chat"] == pytest.approx(6.0)
    assert by_label["hour 1 in east"].replicas == {"old": 2}
    assert sum(hour.rates_per_s["batch"] for hour in hours) == pytest.approx(2 * 2 * 1.0)
    loaded = scenario_of(stated.loaded(), by_label["hour 1 in west"])
    assert {pool.name for pool in loaded.scenario.pools} == {"h100"}
    assert loaded.scenario.pools[0].replicas == by_label["hour 1 in west"].replicas["h100"]


def test_what_verification_needs_is_told(tmp_path: Path) -> None:
    without = {key: value for key, value in portfolio(15.0)["problem"].items() if key != "scenario"}
    for problem, message in (
        ({"name": "x", "problem": without}, "there is no `scenario` to simulate the plan with"),
        (portfolio(15.0, scenario={**SCENARIO, "slo": None}), "there is no `slo`|slo"),
        (portfolio(15.0, scenario={**SCENARIO, "pools": [POOL | {"name": "other"}]}), "no pool is named h100"),
        (
            regions(scenario=regions()["problem"]["scenario"] | {"workload": {"kind": "mix", "parts": {"chat": PART}}}),
            "no part of the workload is named batch",
        ),
        (
            {"name": "x", "problem": {"kind": "queue", "rate": "1 req/s", "service_time": "1 s"}},
            "a plan of kind queue is none",
        ),
    ):
        with pytest.raises(InputError, match=message):
            fleetsim.plan(problem, verify=True, confidence=SURE)
    path = tmp_path / "plan.yaml"
    path.write_text(
        "name: x\nproblem:\n  kind: portfolio\n  chips: {h100: {throughput: 1, on_demand: 1 USD/h}}\n"
        "  cases: {a: {probability: 1, demand: [1]}}\n  scenario:\n    slo: {ttft: 1 s}\n    pools: []\n",
        encoding="utf-8",
    )
    with pytest.raises(InputError) as caught:
        fleetsim.plan(path, verify=True)
    assert {finding.line for finding in caught.value.findings} >= {8}


def test_hours_without_work_are_left_out() -> None:
    hour = Hour("hour 0", {"h100": 2}, {"chat": 5.0, "batch": 0.0}, 0.5)
    stated = load_problem(regions()).problem
    assert isinstance(stated, StatedRegions)
    loaded = scenario_of(stated.loaded(), hour)
    assert list(loaded.resolved["workload"]["parts"]) == ["chat"]
