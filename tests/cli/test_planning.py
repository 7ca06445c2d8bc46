"""``fleetsim plan``, ``find-rate`` and ``find-fleet``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

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
    assert json.loads(done.stdout)["status"] == "optimal"
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
