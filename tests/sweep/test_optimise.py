"""Searches: the best trade-offs, what is given up early, and going on after a stop."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from fleetsim.cli.main import cli
from fleetsim.errors import InputError
from fleetsim.sweep.optimise import Optimised, optimise, shortened
from fleetsim.sweep.plan import plan
from fleetsim.sweep.study import stated

optuna: Any = pytest.importorskip("optuna")

AXES: dict[str, Any] = {"pools[0].replicas": {"range": [1, 4]}, "gateway.router": ["round-robin", "least-outstanding"]}
WANTED: dict[str, Any] = {"cost_usd": "minimise", "ttft_p99_s": "minimise"}


def _search(tiny: Path, **more: Any) -> Optimised:
    given: dict[str, Any] = {"objectives": WANTED, "trials": 8, "out": "study", "jobs": 1, **more}
    return optimise(tiny, AXES, **given)


@pytest.fixture
def busy(tiny: Path) -> Path:
    """One replica cannot keep up, two can."""
    text = tiny.read_text().replace("requests: 40", "requests: 1500").replace("5 req/s", "60 req/s")
    tiny.write_text(text.replace("value: 100", "value: 3000").replace("value: 10}", "value: 60}"))
    return tiny


def _beats(one: Any, other: Any) -> bool:
    """Whether one is nowhere worse and somewhere better, all objectives being minimised."""
    pairs = [(one[figure], other[figure]) for figure in WANTED]
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def test_the_best_are_those_that_no_other_beats(tiny: Path) -> None:
    found = _search(tiny)
    finished = [row for row in found.trials if row["state"] == "finished" and row["feasible"]]
    assert len(found.trials) == 8
    for row in finished:
        beaten = any(_beats(other, row) for other in finished)
        again = any(row["trial"] > other["trial"] and _same(row, other) for other in finished)
        assert row["pareto"] == (not beaten and not again)
    assert found.pareto == [row for row in found.trials if row["pareto"]] != []
    table = pq.ParquetFile("study/pareto.parquet").read()
    assert table["trial"].to_pylist() == [row["trial"] for row in found.pareto]
    assert pq.ParquetFile("study/trials.parquet").read().num_rows == 8


def _same(one: Any, other: Any) -> bool:
    return all(one[f"axis.{path}"] == other[f"axis.{path}"] for path in AXES)


def test_runs_stand_in_a_study_like_those_of_a_sweep(tiny: Path) -> None:
    found = _search(tiny, replications=2)
    summary = pq.ParquetFile("study/summary.parquet").read().to_pylist()
    assert {row["status"] for row in summary} == {"finished"}
    assert {row["seed"] for row in summary} == {7, 8}
    for trial in found.trials:
        runs = [row for row in summary if row["run"] in trial["runs"].split()]
        assert len(runs) == 2
        assert trial["ttft_p99_s"] == pytest.approx(sum(row["ttft_p99_s"] for row in runs) / 2, rel=1e-12)
        assert {row["axis.pools[0].replicas"] for row in runs} == {trial["axis.pools[0].replicas"]}
    asked = json.loads(Path("study/study.json").read_text())
    assert asked["search"]["objectives"] == WANTED
    assert asked["search"]["constraints"] == ["slo_attainment_ratio >= 0.9"]


def test_processes_and_stops_change_nothing(tiny: Path) -> None:
    whole = _search(tiny, out="whole")
    _search(tiny, out="parts", trials=3)
    parts = _search(tiny, out="parts", jobs=2)
    assert parts.trials == whole.trials
    assert parts.pareto == whole.pareto


def test_a_killed_search_goes_on_as_if_nothing_had_been(tiny: Path) -> None:
    tiny.write_text(tiny.read_text().replace("requests: 40", "requests: 1500").replace("5 req/s", "20 req/s"))
    words = ["--axis", "pools[0].replicas={range: [1, 4]}", "--axis", "gateway.router=round-robin,least-outstanding"]
    words += ["--minimise", "cost_usd", "--minimise", "ttft_p99_s", "--trials", "8", "-j", "1", "--batch", "4"]
    command = [sys.executable, "-m", "fleetsim", "optimise", "tiny.yaml", *words, "-o", "killed"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 120
        while len(list(Path("killed").glob("run=*/manifest.json"))) < 2:
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
    killed = _search(tiny, out="killed", batch=4)
    whole = _search(tiny, out="whole", batch=4)
    assert killed.trials == whole.trials
    assert not list(Path("killed").glob(".*"))


def test_what_is_overloaded_early_is_given_up(busy: Path) -> None:
    found = optimise(busy, {"pools[0].replicas": [1, 8]}, objectives=WANTED, trials=6, out="study", jobs=1)
    by_replicas = {row["axis.pools[0].replicas"]: row for row in found.trials}
    assert by_replicas[1]["state"] == "pruned"
    assert by_replicas[1]["reason"].startswith("OVERLOADED by the first 20% of its requests")
    assert by_replicas[1]["cost_usd"] is None
    assert by_replicas[8]["state"] == "finished"
    never = optimise(
        busy, {"pools[0].replicas": [1, 8]}, objectives=WANTED, trials=6, prune_at=0.0, out="never", jobs=1
    )
    assert {row["state"] for row in never.trials} == {"finished"}
    assert {row["axis.pools[0].replicas"]: row["feasible"] for row in never.trials} == {1: False, 8: True}
    assert [row["axis.pools[0].replicas"] for row in never.pareto] == [8]  # the cheaper one breaks the constraint


def test_the_first_part_of_a_run_is_its_own_first_requests(busy: Path) -> None:
    (run,) = plan(stated(busy, {"seed": [7]})).runs
    short = shortened(run.loaded, 0.2)
    assert short is not None
    assert getattr(short.scenario.workload, "requests") == 300  # noqa: B009
    assert shortened(run.loaded, 0.1) is None  # too few to tell anything
    assert shortened(run.loaded, 0.0) is None


def test_what_is_not_valid_is_given_up_and_told(tiny: Path) -> None:
    axes = {"pools[0].llm": ["llama-3.1-8b", "llama-3.1-405b"]}
    found = optimise(tiny, axes, objectives=WANTED, trials=6, out="study", jobs=1)
    states = {row["axis.pools[0].llm"]: (row["state"], row["reason"]) for row in found.trials}
    assert states["llama-3.1-8b"] == ("finished", None)
    assert states["llama-3.1-405b"][0] == "pruned"
    assert states["llama-3.1-405b"][1].startswith("not valid: pools[0]")


def test_samplers_and_seeds_propose_what_they_do_every_time(tiny: Path) -> None:
    for sampler in ("random", "nsga2"):
        first = _search(tiny, sampler=sampler, out=f"{sampler}-1", trials=5)
        second = _search(tiny, sampler=sampler, out=f"{sampler}-2", trials=5)
        assert first.trials == second.trials
    again = _search(tiny, sampler="random", out="random-1", trials=5)
    other = _search(tiny, sampler="random", seed=99, out="other", trials=5)
    assert [_axes(row) for row in other.trials] != [_axes(row) for row in again.trials]


def _axes(row: Any) -> list[Any]:
    return [row[f"axis.{path}"] for path in AXES]


def test_another_search_does_not_go_into_the_same_folder(tiny: Path) -> None:
    _search(tiny, trials=2)
    for more, said in (
        ({"objectives": {"energy_j": "minimise"}}, "another objectives"),
        ({"seed": 5}, "another constraints, replications, seed"),
        ({"overrides": {"workload.requests": 30}}, "another scenario"),
        ({"name": "other"}, 'holds the study "tiny-search", not "other"'),
    ):
        with pytest.raises(InputError, match=said):
            _search(tiny, trials=2, **more)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"axes": {"pools[0].replicas": 3}}, "expected something to choose from, found 3"),
        ({"axes": {"pools[0].replicas": {"range": [1, 4], "points": 2}}}, 'unknown key "points"'),
        ({"axes": {"pools[0].replicsa": [1, 2]}}, 'did you mean "replicas"'),
        ({"axes": {"gateway.router": ["nonsuch", "neither"]}}, 'unknown policy "nonsuch"'),
        ({"axes": {"seed": [1, 1]}}, "a value is given twice"),
        ({"constraints": ["cost_usd < 3"]}, "expected FIGURE >= NUMBER"),
        ({"objectives": {"cost_usd": "less"}}, "objectives.cost_usd"),
        ({"objectives": {"cost_us": "minimise"}}, 'did you mean "cost_usd"'),
        ({"out": "memory://study"}, "needs a folder"),
    ],
)
def test_bad_input_is_told(tiny: Path, given: dict[str, Any], said: str) -> None:
    asked: dict[str, Any] = {"axes": {"seed": [1, 2]}, "trials": 1, "out": "study", "jobs": 1, **given}
    with pytest.raises(InputError) as caught:
        optimise(tiny, **asked)
    assert said in str(caught.value)


def test_a_file_says_all_of_it_and_the_command_tells_the_best(tiny: Path) -> None:
    Path("search.yaml").write_text(
        "schema: 1\nscenario: tiny.yaml\naxes:\n  pools[0].replicas: {range: [1, 4]}\n"
        "  workload.arrivals.rate: {log-range: [2 req/s, 8 req/s]}\n"
        "objectives: {cost_usd: minimise}\nconstraints: [slo_attainment_ratio >= 0.5]\ntrials: 4\nsampler: random\n"
    )
    result = CliRunner().invoke(cli, ["optimise", "search.yaml", "-j", "1", "--json", "-q"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["study"], told["constraints"]) == ("search", ["slo_attainment_ratio >= 0.5"])
    assert len(told["trials"]) == 4
    assert all(2 <= row["axis.workload.arrivals.rate"] <= 8 for row in told["trials"])
    (best,) = told["pareto"]
    assert best["cost_usd"] == min(row["cost_usd"] for row in told["trials"])
    words = CliRunner().invoke(cli, ["optimise", "search.yaml", "-j", "1"]).stdout
    assert words.startswith("1 best trade-off of 4 trials that keep slo_attainment_ratio >= 0.5")
    nothing = CliRunner().invoke(
        cli, ["optimise", "search.yaml", "-j", "1", "--constraint", "cost_usd<=0", "-o", "nothing"]
    )
    assert nothing.exit_code == 1
    assert "nearest to what must hold:" in nothing.stdout
    rows = pq.ParquetFile("nothing/trials.parquet").read().to_pylist()
    assert all(row["violation"] == row["cost_usd"] and not row["feasible"] for row in rows)
    assert CliRunner().invoke(cli, ["optimise", "tiny.yaml"]).exit_code == 2
