"""Folders of earlier versions stay readable: those in `data` were written by runs of their time."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

import fleetsim
from fleetsim.output.tables import SCHEMA_VERSION, TABLES, arrow_schema
from fleetsim.results.folder import open_results
from fleetsim.results.versions import READABLE

DATA = Path(__file__).parent / "data"


def test_there_is_a_folder_of_every_version() -> None:
    assert sorted(f"version-{version}" for version in READABLE) == sorted(folder.name for folder in DATA.iterdir())
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
def test_it_can_be_asked_with_sql(version: str) -> None:
    pytest.importorskip("duckdb")
    found = fleetsim.query(
        "SELECT pool, count(*) AS n FROM requests GROUP BY pool ORDER BY pool", DATA / f"version-{version}"
    )
    assert found.to_pylist() == [{"pool": "cheap", "n": 12}, {"pool": "fast", "n": 12}]
