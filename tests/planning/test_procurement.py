"""What to buy for several sites: the scenario's own day becomes demand, the program a fleet, and the simulation judges it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fleetsim.cli.main import cli
from fleetsim.errors import InputError
from fleetsim.planning import api
from fleetsim.planning.judge import Confidence
from fleetsim.planning.problems import load_problem
from fleetsim.planning.procurement import StatedProcurement, demand_by_hour, fleet_of
from fleetsim.scenario.load import load_mapping, load_scenario


def part(origin: str, klass: str, rate: float, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "synthetic",
        "duration": "2 h",
        "origin": origin,
        "class": klass,
        "arrivals": {"process": "deterministic", "rate": f"{rate} req/s"},
        "prompt_tokens": {"distribution": "fixed", "value": 900},
        "output_tokens": {"distribution": "fixed", "value": 150},
        **changes,
    }


def scenario(**changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "schema": 1,
        "name": "two-sites",
        "workload": {
            "kind": "mix",
            "parts": {"a": part("oslo", "chat", 1.0), "b": part("rome", "chat", 0.5), "c": part("rome", "batch", 0.5)},
        },
        "classes": {"chat": {}, "batch": {}},
        "slo": {"ttft": "1 s", "tpot": "60 ms", "attainment": 0.9},
        "sites": {
            "oslo": {"carbon_intensity": "30 g/kWh", "electricity_price": "0.05 USD/kWh", "rtt": {"rome": "40 ms"}},
            "rome": {"carbon_intensity": "400 g/kWh", "electricity_price": "0.2 USD/kWh", "pue": 1.3},
        },
        "gateway": {"router": "nearest-site"},
        "pools": [{"name": "main", "site": "oslo", "llm": "llama-3.1-8b", "accelerator": "l4"}],
    }
    return given | changes


def problem(given: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    stated = {
        "kind": "procurement",
        "scenario": scenario() if given is None else given,
        "accelerators": {
            "l4": {
                "terms": ["on-demand", "reserved", "spot"],
                "prices": {"on-demand": "1 USD/h", "reserved": "0.7 USD/h", "spot": "0.4 USD/h"},
                "interruptions": 0.5,
            },
            "l40s": {"prices": {"on-demand": "2 USD/h"}},
        },
        "days": 10,
        "anywhere": ["batch"],
    }
    return {"name": "buy", "problem": stated | changes}


def stated(**changes: Any) -> StatedProcurement:
    found = load_problem(problem(**changes)).problem
    assert isinstance(found, StatedProcurement)
    return found


def test_demand_is_counted_by_class_origin_and_hour() -> None:
    rates = {kind.name: kind.rates_per_s for kind in demand_by_hour(load_mapping(scenario()))}
    assert set(rates) == {"chat of oslo", "chat of rome", "batch of rome"}
    assert rates["chat of oslo"] == pytest.approx([1.0] * 24, abs=2e-3)  # two hours, again and again
    assert rates["batch of rome"] == pytest.approx([0.5] * 24, abs=2e-3)


def test_the_fleet_is_what_the_bill_says() -> None:
    own = stated()
    plan = own.solve()
    pools = plan.fleet["pools"]
    hours = 0.0
    for pool in pools:
        price = float(pool["price"].split()[0])
        by_hour = pool.get("autoscaler", {}).get("schedule", [pool["replicas"]] * 24)
        hours += price * sum(by_hour) * pool["parallelism"].get("tp", 1)
    bills = [value for name, value in plan.figures.items() if name.startswith("cost_") and name != "cost_usd"]
    assert sum(bills) / 10 == pytest.approx(hours)
    assert plan.figures["cost_usd"] == pytest.approx(10 * plan.objective)
    assert plan.objective > hours  # electricity
    spot = {fault["pool"]: fault for fault in plan.fleet["faults"]}
    assert set(spot) == {pool["name"] for pool in pools if pool["name"].endswith("-spot")}
    assert all(fault["mtbf_h"] == 2.0 for fault in spot.values())
    loaded = fleet_of(own.loaded(), plan)
    assert [pool.name for pool in loaded.scenario.pools] == [pool["name"] for pool in pools]
    assert {pool.site for pool in loaded.scenario.pools} == {"oslo", "rome"}


def test_terms_and_limits() -> None:
    """Half of the replicas at most are spot, the rest is reserved where it always runs; what is not there is not bought."""
    plan = stated(places={"rome": {"accelerators": ["l40s"]}}).solve()
    names = {pool["name"] for pool in plan.fleet["pools"]}
    assert all(not name.startswith("rome-l4-") for name in names)
    assert any(name.startswith("rome-l40s-on-demand") for name in names)
    assert not any("oslo" in name and "on-demand" in name for name in names)
    with pytest.raises(InputError, match=r"at most 0 l40s in rome"):
        stated(places={"rome": {"limits": {"l4": 0, "l40s": 0}}}).solve()


def test_a_carbon_cap_moves_work_that_may_go_anywhere() -> None:
    free = stated(whole=False).solve()
    capped = stated(whole=False, carbon_limit=0.97 * free.figures["carbon_kg"]).solve()
    assert capped.figures["carbon_kg"] == pytest.approx(0.97 * free.figures["carbon_kg"])
    assert capped.objective > free.objective
    assert any(price.what == "one more kg of CO2" and price.saved > 0 for price in capped.prices)
    with pytest.raises(InputError, match="kg of CO2: missed by"):
        stated(whole=False, carbon_limit=0.01 * free.figures["carbon_kg"]).solve()


def test_the_simulation_proves_it_or_says_why_not() -> None:
    notes: list[str] = []
    plan = api.plan(problem(), verify=True, confidence=Confidence(0.9, 2, 3), notice=notes.append)
    assert plan.proof is not None
    assert plan.proof.proved, notes
    assert plan.proof.attainment_low_ratio >= 0.9
    assert plan.proof.simulated["cost_usd_per_h"] == pytest.approx(plan.proof.predicted["cost_usd_per_h"], rel=0.1)
    assert 0.4 < plan.proof.simulated["carbon_kg_per_h"] / plan.proof.predicted["carbon_kg_per_h"] < 1.5
    # far too few: four rounds of slightly less do not help
    bold = api.plan(
        problem(
            utilisation=1.0, rounds=1, given=scenario(slo={"ttft": "150 ms", "tpot": "60 ms", "attainment": 0.999})
        ),
        verify=True,
        confidence=Confidence(0.9, 2, 2),
    )
    assert bold.proof is not None
    assert not bold.proof.proved
    assert "not proved after 1 fleets" in bold.proof.reason


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"given": scenario(sites={}, pools=[{"name": "m", "llm": "llama-3.1-8b", "accelerator": "l4"}])}, "no `sites`"),
        ({"given": scenario(slo=None)}, "there is no `slo`"),
        ({"places": {"oslu": {}}}, r'no site "oslu"\s+.*oslo'),
        ({"places": {"oslo": {"limits": {"h200": 1}}}}, "speaks of h200, which the problem does not offer"),
        ({"anywhere": ["batsch"]}, r'no requests of class "batsch"\s+.*batch'),
        ({"accelerators": {"l4x": {}}}, 'unknown accelerator "l4x"'),
        ({"accelerators": {"mi300x": {"terms": ["spot"]}}}, r"no prices of mi300x\s+give problem.accelerators.mi300x.prices.spot"),
    ],
)  # fmt: skip
def test_bad_input_is_told(changes: dict[str, Any], message: str) -> None:
    given = dict(changes)
    if "given" in given and given["given"].get("sites") == {}:
        for one in given["given"]["workload"]["parts"].values():
            one.pop("origin", None)
        given["given"]["gateway"] = {}
    with pytest.raises(InputError, match=message):
        stated(**given).solve()


def test_short_workloads_make_no_day() -> None:
    short = scenario(workload=part("oslo", "chat", 1.0, duration="20 min"))
    with pytest.raises(InputError, match="less than an hour"):
        stated(given=short, anywhere=[]).solve()


def test_the_command_writes_the_planned_scenario(tmp_path: Path) -> None:
    import json

    (tmp_path / "service.yaml").write_text(json.dumps(scenario()), encoding="utf-8")
    file = tmp_path / "buy.yaml"
    file.write_text(json.dumps(problem(given="service.yaml")), encoding="utf-8")  # type: ignore[arg-type]
    out = tmp_path / "bought.yaml"
    found = CliRunner().invoke(cli, ["plan", str(file), "--out", str(out)])
    assert found.exit_code == 0, found.output
    assert "USD/day" in found.output
    written = load_scenario(out).scenario
    assert {pool.site for pool in written.pools} == {"oslo", "rome"}
    assert written.workload.kind == "mix"
    assert CliRunner().invoke(cli, ["plan", "embedded:plans/queue", "--out", str(out)]).exit_code == 2


def test_next_quarter_uses_all_terms_under_its_cap() -> None:
    plan = api.plan("embedded:plans/next-quarter")
    assert plan.figures["carbon_kg"] <= 6200
    assert any(
        price.what == "one more kg of CO2" or "h100" in price.what or "mi300x" in price.what for price in plan.prices
    )
    assert all(plan.figures[f"cost_{term}_usd"] > 0 for term in ("reserved", "on_demand", "spot"))
