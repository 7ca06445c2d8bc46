"""Folders of earlier versions stay readable: those in `data` were written by runs of their time."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fleetsim
from fleetsim.output.tables import SCHEMA_VERSION, TABLES, arrow_schema
from fleetsim.results.folder import open_results
from fleetsim.results.versions import READABLE

from .conftest import SCENARIO

DATA = Path(__file__).parent / "data"


def test_there_is_a_folder_of_every_version() -> None:
    assert {f"version-{version}" for version in READABLE} <= {folder.name for folder in DATA.iterdir()}
    for folder in DATA.iterdir():
        manifest = json.loads((folder / "manifest.json").read_text())
        assert folder.name.split("-")[1] == manifest["schema_version"]
    assert READABLE[-1] == SCHEMA_VERSION


@pytest.mark.parametrize("version", READABLE)
def test_every_table_reads_with_todays_columns_and_types(version: str) -> None:
    results = open_results(DATA / f"version-{version}")
    (run,) = results.runs
    for table in TABLES:
        batches = list(results.scan(table, run=run))
        assert all(batch.schema.equals(arrow_schema(table)) for batch in batches)
        assert sum(map(len, batches)) > 0
    requests = pa.Table.from_batches(results.scan("requests", run=run))
    assert requests.num_rows == run.manifest["summary"]["requests"] == 24
    assert abs(sum(requests["energy_j"].to_pylist()) / run.manifest["summary"]["energy_requests_j"] - 1) < 1e-12


@pytest.mark.parametrize("version", READABLE)
def test_its_figures_are_those_that_were_written(version: str) -> None:
    results = open_results(DATA / f"version-{version}")
    (row,) = results.summary().to_pylist()
    told = results.runs[0].manifest["summary"]
    assert {name: row[name] for name in told} == told
    assert {group["value"] for group in results.table("groups").to_pylist() if group["by"] == "pool"} == {
        "fast",
        "cheap",
    }


@pytest.mark.parametrize("version", READABLE)
def test_figures_carry_their_units_whatever_the_version(version: str) -> None:
    results = open_results(DATA / f"version-{version}")
    for name, column, unit in (
        ("summary", "ttft_p99_s", b"s"),
        ("summary", "energy_j", b"J"),
        ("groups", "ttft_p50_s", b"s"),
    ):
        field = results.table(name, results.runs[0]).schema.field(column)
        assert field.metadata[b"unit"] == unit
        assert field.metadata[b"description"]


def test_a_run_without_requests_has_no_groups_in_version_1_either(tmp_path: Path) -> None:
    old = DATA / "version-1-without-requests"
    assert pq.read_table(old / "groups.parquet").to_pylist() == [{"by": "", "value": ""}]
    new = fleetsim.run(SCENARIO, out=tmp_path / "new", overrides=["run.horizon=1 ms", "seed=11"]).out
    assert pq.read_table(new / "groups.parquet").num_rows == 0
    for folder in (old, new):
        results = open_results(folder)
        groups = results.table("groups", results.runs[0])
        assert (groups.num_rows, groups.column_names) == (0, ["by", "value"])
    both = open_results(DATA / "version-1", old, new)
    assert set(both.table("groups")["run"].to_pylist()) == {both.runs[0].id}


@pytest.mark.parametrize("version", READABLE)
def test_it_can_be_asked_with_sql(version: str) -> None:
    pytest.importorskip("duckdb")
    found = fleetsim.query(
        "SELECT pool, count(*) AS n FROM requests GROUP BY pool ORDER BY pool", DATA / f"version-{version}"
    )
    assert found.to_pylist() == [{"pool": "cheap", "n": 12}, {"pool": "fast", "n": 12}]
