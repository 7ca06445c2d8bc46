"""Studies: what is run, what is kept, what is done again, and what a failure leaves."""

from __future__ import annotations

import gc
import json
import os
import pickle
import socket
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import fleetsim
from fleetsim.errors import InputError, ScenarioError
from fleetsim.output.parquet import remove_leftovers
from fleetsim.plugins import PolicyConfig
from fleetsim.routing.basic import RoundRobin
from fleetsim.scenario.export import digest
from fleetsim.scenario.template import scenarios_folder
from fleetsim.sweeping.optimise import _check_axes
from fleetsim.sweeping.optimise_file import read_search
from fleetsim.sweeping.plan import plan
from fleetsim.sweeping.study import Progress, Study, stated, sweep
from fleetsim.sweeping.sweep_file import embedded_sweeps, read_sweep

ROUTERS = ["round-robin", "least-outstanding"]
RATES = ["5 req/s", "20 req/s"]
AXES: dict[str, Any] = {"gateway.router": ROUTERS, "workload.arrivals.rate": RATES}


def _figures(study: Study) -> list[dict[str, Any]]:
    """Rows without what depends on the machine."""
    return [{key: value for key, value in row.items() if key != "wall_s"} for row in study.runs]


def _tables(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("run=*/*.parquet"))}


def test_a_study_is_laid_out_as_promised(tiny: Path) -> None:
    study = sweep(tiny, AXES, out="study", replications=2, jobs=1)
    folder = tiny.parent / "study"
    assert len(study.finished) == len(study.runs) == 8
    assert {path.name for path in folder.iterdir()} == {
        "study.json",
        "summary.parquet",
        "manifest.json",
        *(f"run={row['run']}" for row in study.runs),
    }
    summary = pq.ParquetFile(folder / "summary.parquet").read()
    assert summary.column_names[:8] == [
        "run",
        "status",
        "error",
        "seed",
        "replication",
        "axis.gateway.router",
        "axis.workload.arrivals.rate",
        "verdict",
    ]
    assert summary.equals(study.summary)
    assert summary["axis.workload.arrivals.rate"].to_pylist() == [5.0, 5.0, 20.0, 20.0] * 2
    assert summary.schema.field("axis.workload.arrivals.rate").metadata == {b"unit": b"req/s"}
    assert summary["seed"].to_pylist() == [7, 8] * 4  # common random numbers
    assert summary["requests"].to_pylist() == [40] * 8
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["kind"], manifest["status"], manifest["finished"]) == ("study", "complete", 8)
    run = json.loads((folder / f"run={study.runs[0]['run']}" / "manifest.json").read_text())
    assert run["scenario_digest"].startswith(study.runs[0]["run"])
    asked = json.loads((folder / "study.json").read_text())
    assert (asked["planned"], asked["seeds"], asked["axes"]["gateway.router"]) == (8, [7, 8], ROUTERS)


def test_runs_are_those_that_run_makes(tiny: Path) -> None:
    study = sweep(tiny, AXES, out="study", jobs=1)
    laid = {"gateway.router": "least-outstanding", "workload.arrivals.rate": "20 req/s"}
    alone = fleetsim.run(tiny, "alone", overrides=laid)
    row = study.runs[-1]
    ours = tiny.parent / "study" / f"run={row['run']}"
    assert (ours / "requests.parquet").read_bytes() == (alone.out / "requests.parquet").read_bytes()
    assert row["ttft_p99_s"] == alone.summary["ttft_p99_s"]
    assert row["run"] == digest(fleetsim.load_scenario(tiny, laid).scenario)[:12]


def test_common_random_numbers_give_equal_arrivals_and_own_seeds_do_not(tiny: Path) -> None:
    common = plan(stated(tiny, AXES, replications=3)).runs
    assert [run.seed for run in common] == [7, 8, 9] * 4
    own = plan(stated(tiny, AXES, replications=3, seeds="own")).runs
    assert len({run.seed for run in own}) == 12
    assert [run.seed for run in plan(stated(tiny, AXES, replications=3, seeds="own")).runs] == [run.seed for run in own]
    study = sweep(tiny, {"gateway.router": ROUTERS}, out="study", replications=2, jobs=1)
    arrivals = {
        (row["replication"], row["axis.gateway.router"]): pq.ParquetFile(f"study/run={row['run']}/requests.parquet")
        .read(["arrival_s"])
        .to_pydict()["arrival_s"]
        for row in study.runs
    }
    assert arrivals[0, ROUTERS[0]] == arrivals[0, ROUTERS[1]] != arrivals[1, ROUTERS[0]]


def test_processes_do_not_change_a_byte(tiny: Path) -> None:
    here = sweep(tiny, AXES, out="here", replications=2, jobs=1)
    there = sweep(tiny, AXES, out="there", replications=2, jobs=2)
    assert _figures(here) == _figures(there)
    assert _tables(tiny.parent / "here") == _tables(tiny.parent / "there") != {}


@pytest.fixture
def thawed() -> Iterator[None]:
    """Nothing is frozen; what was is again afterwards."""
    frozen = gc.get_freeze_count()
    gc.unfreeze()
    yield
    gc.unfreeze()
    if frozen:
        gc.freeze()


@pytest.mark.usefixtures("thawed")
def test_what_a_run_in_this_process_leaves_is_given_back_and_nothing_stays_frozen(tiny: Path) -> None:
    made: list[weakref.ref[Any]] = []

    class Loop:
        """Garbage that only a search finds."""

        Config = PolicyConfig

        def __init__(self, *_: object) -> None:
            self.itself = self
            made.append(weakref.ref(self))

        def route(self, request: object) -> int:
            return 0

    sweep(tiny, {"seed": [1, 2]}, out="study", jobs=1, overrides={"gateway.router": Loop})
    assert len(made) >= 2
    assert not [policy for policy in made if policy() is not None]
    assert gc.get_freeze_count() == 0


@pytest.mark.usefixtures("thawed")
def test_what_a_caller_froze_stays_frozen(tiny: Path) -> None:
    gc.freeze()
    sweep(tiny, {"seed": [1]}, out="study", jobs=1)
    assert gc.get_freeze_count() > 0


def test_finished_runs_are_skipped(tiny: Path) -> None:
    told: list[Progress] = []
    first = sweep(tiny, AXES, out="study", jobs=1)
    times = {path: path.stat().st_mtime_ns for path in Path("study").glob("run=*/manifest.json")}
    more = {**AXES, "workload.arrivals.rate": [*RATES, "40 req/s"]}
    second = sweep(tiny, more, out="study", jobs=1, progress=told.append)
    assert (told[-1].kept, told[-1].finished) == (4, 2)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert [row["run"] for row in first.runs] == [
        row["run"] for row in second.runs if row["axis.workload.arrivals.rate"] < 40
    ]
    sweep(tiny, more, out="study", jobs=1, fresh=True, progress=told.append)
    assert (told[-1].kept, told[-1].finished) == (0, 6)
    assert {path: path.stat().st_mtime_ns for path in times} != times


def test_results_of_other_code_or_files_are_done_again(tiny: Path) -> None:
    trace = tiny.parent / "trace.csv"
    lines = [
        "TIMESTAMP,ContextTokens,GeneratedTokens",
        *(f"2024-05-10 00:00:{s:02d}.000000+00:00,100,10" for s in range(20)),
    ]
    trace.write_text("\n".join(lines) + "\n")
    base = {"schema": 1, "name": "traced", "workload": {"kind": "trace", "format": "azure", "path": "trace.csv"}}
    base["pools"] = [{"name": "main", "llm": "llama-3.1-8b", "accelerator": "h100-sxm", "replicas": 1}]
    axes = {"pools[0].replicas": [1, 2]}
    told: list[Progress] = []
    sweep(base, axes, out="study", jobs=1)
    trace.write_text("\n".join(lines[:-5]) + "\n")
    kept = sweep(base, axes, out="study", jobs=1, keep_old=True, progress=told.append)
    assert (told[-1].kept, told[-1].finished) == (2, 0)
    assert kept.warnings == ["2 finished runs kept, although made with another version of trace.csv"]
    again = sweep(base, axes, out="study", jobs=1, progress=told.append)
    assert (told[-1].kept, told[-1].finished) == (0, 2)
    assert [row["requests"] for row in again.runs] == [15, 15]
    path = Path("study") / f"run={again.runs[0]['run']}" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["made_with"]["code"] = "older"
    path.write_text(json.dumps(manifest))
    sweep(base, axes, out="study", jobs=1, progress=told.append)
    assert (told[-1].kept, told[-1].finished) == (1, 1)


def test_a_failed_run_is_a_row_with_its_error_and_is_tried_again(tiny: Path) -> None:
    axes = {"gateway.router": ["round-robin", "tests.sweep.routers:Stumbles", "least-outstanding"]}
    study = sweep(tiny, axes, out="study", jobs=2, allow_import=True)
    assert [row["status"] for row in study.runs] == ["finished", "failed", "finished"]
    (failed,) = study.failed
    assert "lost my way" in failed["error"]
    assert failed["verdict"] is None
    record = json.loads(Path(f"study/failed/{failed['run']}.json").read_text())
    assert "in route" in record["traceback"]
    assert json.loads(Path("study/manifest.json").read_text())["status"] == "failed"
    assert not list(Path("study").glob(".*"))
    told: list[Progress] = []
    sweep(tiny, axes, out="study", jobs=1, allow_import=True, progress=told.append)
    assert (told[-1].kept, told[-1].failed) == (2, 1)


def test_a_process_that_dies_takes_only_its_own_run_with_it(tiny: Path) -> None:
    routers = ["round-robin", "tests.sweep.routers:Dies", "least-outstanding", "random"]
    study = sweep(tiny, {"gateway.router": routers}, out="study", jobs=2, allow_import=True)
    assert [row["status"] for row in study.runs] == ["finished", "failed", "finished", "finished"]
    assert "its process died" in study.failed[0]["error"]
    assert not list(Path("study").glob(".*"))


def test_shards_make_the_whole_between_them(tiny: Path) -> None:
    whole = sweep(tiny, AXES, out="whole", replications=2, jobs=1)
    told: list[Progress] = []
    first = sweep(tiny, AXES, out="parts", replications=2, jobs=1, shard=(1, 3), progress=told.append)
    assert (told[-1].total, len(first.finished), len(first.unfinished)) == (3, 3, 5)
    for index in (2, 3):
        last = sweep(tiny, AXES, out="parts", replications=2, jobs=1, shard=(index, 3))
    assert _figures(last) == _figures(whole)
    assert _tables(tiny.parent / "parts") == _tables(tiny.parent / "whole")
    Path("parts/summary.parquet").unlink()
    assert _figures(Study.open("parts")) == _figures(whole)


def test_all_combinations_are_checked_before_the_first_run(tiny: Path) -> None:
    sweep_file = tiny.parent / "sweep.yaml"
    sweep_file.write_text(
        "schema: 1\nscenario: tiny.yaml\naxes:\n  gateway.router: [round-robin, nonsuch]\n  pools.main.replicas: [1, 0]\n"
        "  pools.other.replicas: [1]\n"
    )
    with pytest.raises(ScenarioError) as caught:
        sweep(sweep_file, out="study", jobs=1)
    text = str(caught.value)
    assert 'sweep.yaml:4:33  gateway.router: unknown policy "nonsuch"' in text.replace(str(tiny.parent) + "/", "")
    assert 'pools has no item named "other"' in text
    assert not Path("study").exists()


def test_a_sweep_file_is_what_it_says(tiny: Path) -> None:
    sweep_file = tiny.parent / "rates.yaml"
    sweep_file.write_text(
        "schema: 1\nscenario: tiny.yaml\nset: {workload.requests: 25}\nreplications: {count: 2, seeds: own}\n"
        "axes:\n  gateway.router: [{policy: sticky, inner: {policy: round-robin}}, random]\n"
        "  random: {draws: 2, over: {workload.arrivals.rate: {range: [5 req/s, 9 req/s]}}}\n"
    )
    asked = read_sweep(sweep_file)
    assert asked.name == "rates"
    study = sweep(sweep_file, {"gateway.router": ["round-robin"]}, replications=1, jobs=1)
    assert study.path == str(tiny.parent / "fleetsim-out" / "rates")
    assert [row["requests"] for row in study.runs] == [25, 25]
    assert {row["axis.gateway.router"] for row in study.runs} == {"round-robin"}
    assert all(5 <= row["axis.workload.arrivals.rate"] <= 9 for row in study.runs)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("schema: 2\nscenario: tiny.yaml\naxes: {seed: [1, 2]}", "schema"),
        ("scenario: none.yaml\naxes: {seed: [1, 2]}", "no such file: none.yaml"),
        ("scenario: embedded:none\naxes: {seed: [1, 2]}", 'no embedded scenario "none"'),
        ("scenario: tiny.yaml\naxes: 3", "axes"),
        ("scenario: tiny.yaml\naxis: {}\naxes: {seed: [1, 2]}", '"axis"'),
        ("scenario: tiny.yaml\nreplications: 0\naxes: {seed: [1, 2]}", "replications"),
        ("scenario: tiny.yaml\naxes: {seed: [1, -2]}", "seed: must be at least 0, found -2"),
    ],
)
def test_what_is_wrong_in_a_sweep_file_is_told_with_its_place(tiny: Path, text: str, said: str) -> None:
    (tiny.parent / "s.yaml").write_text(f"{text}\n")
    with pytest.raises(InputError) as caught:
        sweep("s.yaml", out="study", jobs=1)
    assert said in str(caught.value)
    assert "s.yaml:" in str(caught.value)


def test_equal_combinations_are_run_once_and_told(tiny: Path) -> None:
    study = sweep(tiny, {"gateway.router": ["round-robin", {"policy": "round-robin"}]}, out="study", jobs=1)
    assert len(study.runs) == 1
    assert "the same run as" in study.warnings[0]


def test_a_run_that_would_not_fit_is_not_started(tiny: Path) -> None:
    axes = {"workload.requests": [40, 200_000_000]}
    study = sweep(tiny, axes, out="study", jobs=1, memory_bytes=2e9)
    assert [row["status"] for row in study.runs] == ["finished", "failed"]
    assert "would need about" in study.failed[0]["error"]
    assert "2.0 GB may be used" in study.failed[0]["error"]


def test_what_stands_there_is_not_replaced(tiny: Path) -> None:
    sweep(tiny, {"seed": [1, 2]}, out="study", jobs=1)
    with pytest.raises(InputError, match="holds a study"):
        fleetsim.run(tiny, "study")
    with pytest.raises(InputError, match='holds the study "tiny-sweep", not "other"'):
        sweep(tiny, {"seed": [1, 2]}, out="study", name="other", jobs=1)
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("dear to me")
    with pytest.raises(InputError, match="holds no study"):
        sweep(tiny, {"seed": [1, 2]}, out="mine", jobs=1)
    with pytest.raises(InputError, match="holds no study"):
        Study.open("mine")


def test_a_class_may_be_a_value(tiny: Path) -> None:
    from tests.sweep.routers import Stumbles

    for jobs in (1, 2):
        study = sweep(tiny, {"gateway.router": ["round-robin", Stumbles]}, out=f"study-{jobs}", jobs=jobs)
        assert [row["status"] for row in study.runs] == ["finished", "failed"]
        assert study.failed[0]["axis.gateway.router"] == "tests.sweep.routers:Stumbles"
        assert "lost my way" in study.failed[0]["error"]


def test_a_class_of_a_notebook_stays_in_its_process(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(RoundRobin):
        """As if written in a notebook."""

    monkeypatch.setattr(Mine, "__module__", "__main__")
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    with pytest.raises(InputError, match="put it into a module, or ask for jobs=1"):
        sweep(tiny, {"gateway.router": [Mine]}, out="study", jobs=2)
    assert len(sweep(tiny, {"gateway.router": [Mine]}, out="study", jobs=1).finished) == 1


def test_a_script_without_a_guard_is_told_what_it_lacks(tiny: Path) -> None:
    script = tiny.parent / "script.py"
    script.write_text("import fleetsim\nfleetsim.sweep('tiny.yaml', {'seed': [1, 2]}, out='study', jobs=2)\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode != 0
    assert "below `if __name__ == '__main__':`" in done.stderr


def test_what_the_processes_did_is_measured(tiny: Path) -> None:
    study = sweep(tiny, {"seed": list(range(10))}, out="study", jobs=1)
    timing = study.timing
    assert timing is not None
    assert (timing.runs, timing.processes) == (10, 1)
    assert 0.5 < timing.busy_ratio <= 1.0
    assert 0.0 <= timing.overhead_s < timing.wall_s / 10
    assert sweep(tiny, {"seed": list(range(10))}, out="study", jobs=1).timing is None


def test_sweeps_that_fleetsim_carries_are_valid(tiny: Path) -> None:
    assert {name.rpartition("/")[2] for name in embedded_sweeps()} == {"cheapest", "routers", "scale"}
    routers = plan(stated("embedded:sweeps/routers")).runs
    assert len(routers) == 2 * 4 * 3
    assert {run.seed for run in routers} == {7, 8, 9}
    scale = plan(stated("embedded:sweeps/scale")).runs
    assert len(scale) == 200
    assert {getattr(run.loaded.scenario.workload, "requests", 0) for run in scale} == {100_000}
    search = read_search(scenarios_folder() / "sweeps" / "cheapest.yaml", {})
    _check_axes(search)
    with pytest.raises(InputError, match='did you mean "embedded:sweeps/routers"'):
        stated("embedded:sweeps/router")


def test_loaded_scenarios_survive_the_way_to_another_process(tiny: Path) -> None:
    for run in plan(stated(tiny, AXES)).runs:
        again = pickle.loads(pickle.dumps(run))
        assert again.loaded.resolved == run.loaded.resolved


def test_leftovers_of_living_processes_and_other_machines_stay(tmp_path: Path) -> None:
    ask = [sys.executable, "-c", "import os; print(os.getpid())"]
    dead = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    host = socket.gethostname().replace(".", "-")
    owners = (f"{host}-{dead}", f"{host}-{os.getpid()}", "elsewhere-1")
    folders = [tmp_path / f".run=a.{owner}.x.partial" for owner in owners]
    for folder in folders:
        folder.mkdir()
    assert remove_leftovers(tmp_path) == 1
    assert sorted(tmp_path.iterdir()) == sorted(folders[1:])


def test_the_function_stays_a_function_whatever_is_imported() -> None:
    """A package of its name would take its place as soon as anything imports from it."""
    code = "import fleetsim; fleetsim.optimise; from fleetsim.sweeping import study; assert callable(fleetsim.sweep)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)
