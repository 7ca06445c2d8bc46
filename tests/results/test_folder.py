"""Result and study folders, opened together, streamed, and refused where they are none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fleetsim
from fleetsim.errors import InputError
from fleetsim.results.folder import open_results
from fleetsim.results.labels import short_names

from .conftest import RATE, ROUTER, SCENARIO


def test_a_run_is_opened_with_its_manifest(alone: Path) -> None:
    results = fleetsim.open_results(alone)
    (run,) = results.runs
    assert (run.name, run.label, run.seed, run.replication) == ("two pools", "two pools", 3, 0)
    assert run.id == run.manifest["scenario_digest"][:12] == results.table("summary", run)["run"][0].as_py()
    assert not run.axes
    assert not run.is_measured


def test_a_study_has_its_runs_in_the_order_of_the_plan(study: Path) -> None:
    results = open_results(study)
    assert len(results.runs) == 8
    assert [run.label for run in results.runs[:3]] == [
        "router=round-robin rate=10 #1",
        "router=round-robin rate=10 #2",
        "router=round-robin rate=20 #1",
    ]
    assert results.runs[-1].axes == {ROUTER: "least-outstanding", RATE: 20.0}
    assert [run.replication for run in results.runs] == [0, 1] * 4
    assert not results.missing


def test_runs_that_failed_are_told(half_failed: Path) -> None:
    results = open_results(half_failed)
    assert [run.axes[ROUTER] for run in results.runs] == ["round-robin"]
    (row,) = results.missing
    assert row["status"] == "failed"
    assert "lost my way" in row["error"]
    assert row[f"axis.{ROUTER}"] == "tests.sweep.routers:Stumbles"


def test_the_summary_has_axes_and_figures_of_each_run(study: Path) -> None:
    results = open_results(study)
    table = results.summary()
    assert table.column_names[:5] == ["run", "label", "replication", f"axis.{ROUTER}", f"axis.{RATE}"]
    assert table[f"axis.{RATE}"].type == pa.float64()
    assert table["label"].to_pylist() == [run.label for run in results.runs]
    for row, run in zip(table.to_pylist(), results.runs, strict=True):
        assert row["ttft_p99_s"] == run.manifest["summary"]["ttft_p99_s"]
        assert row["seed"] == run.seed


def test_a_folder_of_folders_is_opened_whole(study: Path, alone: Path, tmp_path: Path) -> None:
    shutil.copytree(alone, tmp_path / "one")
    shutil.copytree(study, tmp_path / "study")
    (tmp_path / "notes").mkdir()
    results = open_results(tmp_path)
    assert [run.name for run in results.runs] == ["two pools"] * 9
    assert results.runs[0].label == "two pools"
    assert results.runs[1].label == "routers router=round-robin rate=10 #1"
    assert results.summary().num_rows == 9
    # the same scenario as one of the study's: told apart all the same
    assert len({run.id for run in results.runs}) == len({run.label for run in results.runs}) == 9


def test_the_same_folder_twice_is_one_run(alone: Path) -> None:
    assert len(open_results(alone, alone / ".." / alone.name).runs) == 1


def test_scanning_streams_all_rows_of_all_runs(study: Path) -> None:
    results = open_results(study)
    batches = list(results.scan("requests", ["arrival_s", "ttft_s"]))
    assert batches[0].schema.names == ["run", "arrival_s", "ttft_s"]
    assert sum(map(len, batches)) == 8 * 120
    assert [batch.column("run")[0].as_py() for batch in batches] == [run.id for run in results.runs]
    run = results.runs[5]
    own = pa.Table.from_batches(results.scan("requests", run=run.label))
    assert own.equals(pq.read_table(run.path / "requests.parquet"))


def test_batches_are_small_however_long_the_table(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleetsim.results.folder.BATCH_ROWS", 50)
    assert [len(batch) for batch in open_results(alone).scan("requests")] == [50, 50, 20]


def test_small_tables_come_whole(study: Path) -> None:
    results = open_results(study)
    groups = results.table("groups")
    assert set(groups["run"].to_pylist()) == {run.id for run in results.runs}
    assert {"by", "value", "ttft_p99_s"} <= set(groups.column_names)
    fleet = results.table("fleet", results.runs[0])
    assert set(fleet["pool"].to_pylist()) == {"fast", "cheap"}
    assert "run" not in fleet.column_names
    assert results.table("fleet").num_rows > fleet.num_rows


def test_runs_of_a_study_that_was_killed_can_be_read(study: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    shutil.copytree(study, folder)
    (folder / "summary.parquet").unlink()
    (folder / "manifest.json").unlink()
    shutil.rmtree(next(folder.glob("run=*")))
    results = open_results(folder)
    assert [run.axes for run in results.runs] == [
        run.axes for run in open_results(study).runs if (folder / run.path.name).is_dir()
    ]
    assert len({run.label for run in results.runs}) == results.summary().num_rows == 7
    assert [row["status"] for row in results.missing] == ["interrupted"]


def test_columns_that_a_file_lacks_are_null(alone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "older"
    shutil.copytree(alone, folder)
    whole = pq.read_table(folder / "requests.parquet")
    pq.write_table(whole.drop_columns(["carbon_g", "site"]), folder / "requests.parquet")
    read = pa.Table.from_batches(open_results(folder).scan("requests", run="two pools"))
    assert read.schema.names == whole.schema.names
    assert read["carbon_g"].null_count == read["site"].null_count == 120
    assert read["ttft_s"].equals(whole["ttft_s"])


def refused(*paths: Path | str) -> str:
    with pytest.raises(InputError) as caught:
        open_results(*paths)
    return str(caught.value)


def test_what_is_no_result_is_refused_with_what_was_found(alone: Path, tmp_path: Path) -> None:
    assert "name a folder" in refused()
    assert refused(tmp_path) == (
        f"{tmp_path}  holds no results: it is empty\n"
        "    fleetsim run and fleetsim sweep write result folders, with a file manifest.json"
    )
    (tmp_path / "notes.txt").touch()
    assert "it holds notes.txt" in refused(tmp_path)
    assert f"name its folder: {alone}" in refused(alone / "requests.parquet")
    assert "there is nothing" in refused(alone.parent / "aloen")
    assert "s3://bucket/study  is an address" in refused("s3://bucket/study")
    assert "results there: alone" in refused(alone.parent / "aloen")


def test_files_that_cannot_be_read_are_named(alone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "o"
    shutil.copytree(alone, folder)
    (folder / "requests.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match=r"requests\.parquet.*not a Parquet file"):
        list(open_results(folder).scan("requests"))
    (folder / "fleet.parquet").unlink()
    with pytest.raises(InputError, match=r"fleet\.parquet.*is missing"):
        open_results(folder).table("fleet")
    (folder / "manifest.json").write_text("{\n  ?")
    assert "manifest.json:2  is not JSON" in refused(folder)


def test_a_later_version_is_refused(alone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "o"
    shutil.copytree(alone, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"schema_version": "99"}))
    assert "schema version 99" in refused(folder)
    assert "upgrade fleetsim" in refused(folder)


def test_unknown_names_are_answered_with_the_nearest(alone: Path) -> None:
    results = open_results(alone)
    with pytest.raises(InputError, match='did you mean "requests"'):
        list(results.scan("request"))
    with pytest.raises(InputError, match='did you mean "ttft_s"'):
        list(results.scan("requests", ["ttft"]))
    with pytest.raises(InputError, match='did you mean "two pools"'):
        results.table("fleet", "two pool")


def test_runs_of_equal_scenarios_are_told_by_their_folders(tmp_path: Path) -> None:
    for name in ("before", "after"):
        fleetsim.run(SCENARIO, out=tmp_path / name, overrides="workload.requests=10")
    results = open_results(tmp_path / "before", tmp_path / "after")
    assert [run.label for run in results.runs] == ["before", "after"]
    assert results.runs[1].id == f"{results.runs[0].id}-2"


def test_paths_are_shortened_as_far_as_they_differ() -> None:
    assert short_names(["gateway.router.policy", "pools[0].replicas", "pools[1].replicas"]) == {
        "gateway.router.policy": "router",
        "pools[0].replicas": "pools[0].replicas",
        "pools[1].replicas": "pools[1].replicas",
    }
