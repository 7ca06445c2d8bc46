"""``fleetsim plan``, ``find-rate`` and ``find-fleet``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from fleetsim.errors import InputError
from fleetsim.planning.problems import embedded_problems

Call = Callable[..., Result]


def test_a_plan_can_be_written_and_run(call: Call, tiny: str, folder: Path) -> None:
    planned = call("plan", tiny, "--candidates", "h100-sxm,l4", "--verify", "-o", "planned.yaml", "--json")
    assert planned.exit_code == 0, planned.output
    content = json.loads(planned.stdout)
    assert content["proof"]["proved"]
    run = call("run", "planned.yaml", "-q", "--json")
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout)["slo_met"]


def test_people_read_bounds_and_notes(call: Call, tiny: str) -> None:
    told = call("plan", tiny, "--limit", "h100-sxm=3")
    assert told.exit_code == 0
    assert told.stdout.startswith("optimal: 2.95 USD/h")
    limits = ["--racks", "2=40 kW", "--carbon-limit", "3", "--set", "energy.carbon_intensity=400 g/kWh"]
    limited = call("plan", tiny, *limits, "--json")
    assert limited.exit_code == 0, limited.output
    figures = json.loads(limited.stdout)["figures"]
    assert figures["racks"] == 1
    assert figures["carbon_kg_per_h"] == pytest.approx(figures["power_w"] / 1e3 * 0.4)
    assert "note: prefix hits are left out" in told.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", "h100-sxm=none"], "expected NAME=a whole number"),
        (["--limit", "h100-sxm=-1"], "not negative"),
        (["--price", "h100-sxm"], "expected NAME=a number"),
        (["--buckets", "ten"], "expected ROWSxCOLUMNS"),
        (["--power-limit", "40"], "has no unit"),
        (["--power-limit", "100 W"], "at most 0.1 kW: missed by"),
        (["--racks", "4"], "expected N=POWER such as 4=40 kW"),
        (["--racks", "0=40 kW"], "neither of them zero"),
        (["--racks", "1=100 W"], "a rack of 0.1 kW holds no replica: the smallest takes"),
        (["--carbon-limit", "1"], "a limit of carbon needs the carbon intensity of the site's energy"),
        (
            ["--carbon-limit", "0.01", "--set", "energy.carbon_intensity=400 g/kWh"],
            "at most 0.01 kg of CO2 per hour: missed by",
        ),
        (["--candidates", "h10"], 'unknown accelerator "h10"'),
    ],
)
def test_bad_input(call: Call, tiny: str, arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as end:
        raise SystemExit(call("plan", tiny, *arguments).exit_code)
    result = call("plan", tiny, *arguments)
    assert end.value.code == result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize("name", embedded_problems())
def test_every_embedded_problem_is_solved(call: Call, name: str) -> None:
    done = call("plan", name, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["status"] in ("optimal", "heuristic")
    listed = json.loads(call("list", "plans", "--json").stdout)["items"]
    assert {"name": name, "summary": embedded_problems()[name]} in listed
    assert embedded_problems()[name]


def test_mistakes_in_problem_files_have_their_place(call: Call, folder: Path) -> None:
    Path("bad.yaml").write_text(
        "name: bad\nproblem:\n  kind: melange\n  rates: {a: -3 req/s}\n  offers: {x: {price: 1 USD/h, throughputs: [1]}}\n"
    )
    done = call("plan", "bad.yaml")
    assert done.exit_code == 2
    assert "bad.yaml:4:14" in done.stderr


@pytest.mark.parametrize(
    ("problem", "messages"),
    [
        (
            """
  kind: melange
  rates: {a: -3 req/s}
  offers: {h100: {throughputs: [3]}, l40s: {price: -1 USD/h, throughputs: [3]}}
""",
            [
                'bad.yaml:4:14  problem.rates.a: must be at least 0, found "-3 req/s"',
                'bad.yaml:5:12  problem.offers.h100.price: "price" is missing',
                'bad.yaml:5:52  problem.offers.l40s.price: must be at least 0, found "-1 USD/h"',
            ],
        ),
        (
            """
  kind: regions
  chips: {h100: {price: 2 USD/h, power: 1 kW, throughput: [10]}}
  buckets: {batch: {rates: {west: 10 req/s}}}
  regions: {west: {electricity: [0.1, 0.2]}}
""",
            ["electricity of west ends after 2 hours, the horizon is 24: give more values or fewer hours"],
        ),
        (
            """
  kind: regions
  hours: 1
  chips: {h100: {price: 2 USD/h, power: 1 kW, throughput: [10]}}
  buckets: {batch: {rates: {west: 10 req/s}}}
  regions: {west: {carbon: [-4]}}
""",
            ["bad.yaml:7:29  problem.regions.west.carbon[0]: must be at least 0, found -4"],
        ),
        (
            """
  kind: portfolio
  chips: {h100: {throughput: 3, on_demand: 1 USD/h}}
  cases: {a: {probability: 1, demand: [1, 2]}}
""",
            ["demand of a ends after 2 hours, the horizon is 24: give more values or fewer hours"],
        ),
        (
            """
  kind: portfolio
  hours: 1
  chips: {h100: {throughput: 3}}
  cases: {a: {probability: 1, demand: [1]}}
""",
            ["h100 has no price: give reserved, on_demand or spot"],
        ),
        (
            """
  kind: portfolio
  hours: 1
  chips: {h100: {throughput: 3, on_demand: 1 USD/h, limit: 2}}
  cases: {a: {probability: 1, demand: [-1]}}
""",
            ["bad.yaml:6:40  problem.cases.a.demand[0]: must be at least 0, found -1"],
        ),
        (
            """
  kind: sageserve
  costs: {a100: 2}
  models: {m: {tokens_per_s: {h100: 7}, startup_cost: {h100: 1}, forecast: {r: 10}, instances: {r: {}}}}
""",
            ["m runs on h100, which has no cost"],
        ),
        (
            """
  kind: nope
""",
            ['bad.yaml:3:9  problem.kind: unknown kind "nope"', "Known: alpaserve"],
        ),
    ],
)
def test_prices_demands_and_series_that_make_no_sense(
    call: Call, folder: Path, problem: str, messages: list[str]
) -> None:
    Path("bad.yaml").write_text(f"name: bad\nproblem:{problem}")
    done = call("plan", "bad.yaml")
    assert done.exit_code == 2, done.output
    for message in messages:
        assert message in done.stderr
    assert "Traceback" not in done.output


HARD = "name: hard\nproblem:\n  kind: regions\n  whole: true\n  hours: 24\n"


def hard_problem(seed: int = 5) -> str:
    """Whole replicas of many kinds through a day: quickly solved to some percent, and for long not to the last one."""
    rng = np.random.default_rng(seed)
    day = (1 + 0.5 * np.sin(np.arange(24) / 24 * 2 * np.pi) * rng.uniform(0.8, 1.2, 24)).round(3).tolist()
    chips = "".join(
        f"    c{g}: {{price: {rng.uniform(1, 5):.3f} USD/h, power: 500 W, startup_cost: {rng.uniform(0, 3):.2f}, "
        f"throughput: {rng.uniform(0.5, 9, 6).round(2).tolist()}}}\n"
        for g in range(6)
    )
    buckets = "".join(
        f"    b{j}: {{rates: {{r0: {rng.uniform(1, 9):.2f} req/s, r1: {rng.uniform(1, 9):.2f} req/s}}, profile: {day}, "
        f"slack_h: {j % 3}}}\n"
        for j in range(6)
    )
    places = "".join(f"    r{k}: {{electricity: {rng.uniform(0.04, 0.4, 24).round(3).tolist()}}}\n" for k in range(2))
    return f"{HARD}  chips:\n{chips}  buckets:\n{buckets}  regions:\n{places}"


def test_a_solver_that_times_out_tells_its_gap_or_that_it_found_nothing(call: Call, folder: Path) -> None:
    Path("hard.yaml").write_text(hard_problem())
    done = call("plan", "hard.yaml", "--time-limit", "3", "--gap", "0", "--json")
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)
    assert plan["status"] == "timed out"
    assert 0.0 < plan["gap_ratio"] < 0.5
    assert plan["bound"] < plan["objective"]
    assert any("the time was over: this is the best plan found, at most" in note for note in plan["notes"])
    nothing = call("plan", "hard.yaml", "--time-limit", "0.1", "--gap", "0")
    assert nothing.exit_code in (0, 2)
    if nothing.exit_code == 2:
        assert "no plan was found within 0.1 s" in nothing.stderr
        assert "raise the time limit" in nothing.stderr


def test_rates_and_fleets_are_found(call: Call, tiny: str) -> None:
    rate = call("find-rate", tiny, "--requests", "200", "--tolerance", "0.3", "--json")
    assert rate.exit_code == 0, rate.output
    assert json.loads(rate.stdout)["rate_per_s"] > 5
    fleet = call("find-fleet", tiny, "--candidates", "l4,h100-sxm", "--json")
    assert fleet.exit_code == 0, fleet.output
    assert json.loads(fleet.stdout)["proof"]["proved"]


def test_solvers_are_imported_only_when_they_are_needed() -> None:
    code = "import sys, fleetsim, fleetsim.cli.plan, fleetsim.cli.find_rate; print('pulp' in sys.modules, 'highspy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
    assert issubclass(InputError, Exception)
