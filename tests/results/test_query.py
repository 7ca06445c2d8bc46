"""SQL over runs: the views, what they must not do, and how rows come out."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from pyarrow.dataset import dataset

import fleetsim
from fleetsim.cli.main import cli
from fleetsim.errors import InputError
from fleetsim.output.tables import TABLES
from fleetsim.results.folder import open_results
from fleetsim.results.query import EXAMPLES, connect, views

from .conftest import RATE, ROUTERS

pytest.importorskip("duckdb")


def call(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def test_tables_of_all_runs_are_views_with_run_and_label(study: Path) -> None:
    results = open_results(study)
    for table in TABLES:
        counted = fleetsim.query(f"SELECT run, label, count(*) AS rows FROM {table} GROUP BY ALL", results)
        expected = {
            run.id: (run.label, pq.read_metadata(run.path / f"{table}.parquet").num_rows) for run in results.runs
        }
        assert {row["run"]: (row["label"], row["rows"]) for row in counted.to_pylist()} == expected


def test_a_percentile_in_sql_is_that_of_the_summary(study: Path) -> None:
    own = "SELECT run, quantile_cont(ttft_s, 0.99) AS own FROM requests GROUP BY run"
    joined = fleetsim.query(f"SELECT own, ttft_p99_s FROM ({own}) JOIN summary USING (run)", study)
    assert joined.num_rows == 8
    np.testing.assert_allclose(joined["own"].to_numpy(), joined["ttft_p99_s"].to_numpy(), rtol=1e-12)


def test_axes_are_columns_of_runs_and_of_the_summary(study: Path) -> None:
    by_axis = fleetsim.query(
        "SELECT router, rate, avg(ttft_s) AS ttft_s FROM requests JOIN runs USING (run) GROUP BY ALL ORDER BY ALL",
        study,
    )
    assert by_axis["router"].to_pylist() == [router for router in sorted(ROUTERS) for _ in range(2)]
    assert by_axis["rate"].to_pylist() == [10.0, 20.0] * 2
    some = fleetsim.query(f'SELECT run FROM summary WHERE "axis.{RATE}" > 15', study)
    assert some.num_rows == 4


def test_columns_that_files_lack_are_null(alone: Path, tmp_path: Path) -> None:
    for name, dropped in (("a", ["carbon_g"]), ("b", ["carbon_g", "site"])):
        (tmp_path / name).mkdir()
        for file in alone.iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
        whole = pq.read_table(alone / "requests.parquet")
        pq.write_table(whole.drop_columns(dropped), tmp_path / name / "requests.parquet")
    found = fleetsim.query("SELECT run, count(carbon_g) AS g, count(ttft_s) AS t FROM requests GROUP BY run", tmp_path)
    assert found["g"].to_pylist() == [0, 0]
    assert found["t"].to_pylist() == [120, 120]


@pytest.mark.parametrize(
    "sql",
    [
        "COPY (SELECT 1) TO 'x.csv'",
        "DELETE FROM runs",
        "CREATE TABLE x AS SELECT 1",
        "SET enable_external_access = true",
        "ATTACH 'x.db'",
        "INSTALL httpfs",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO 'x.csv'",
        "SELECT 1; SELECT 2",
        "",
    ],
)
def test_only_one_select_is_taken(alone: Path, sql: str) -> None:
    with pytest.raises(InputError, match="a query is one SELECT"):
        fleetsim.query(sql, alone)


@pytest.mark.parametrize("read", ["read_text('{file}')", "read_csv('{file}')", "'{file}'", "glob('/*')"])
def test_no_other_files_are_read(alone: Path, tmp_path: Path, read: str) -> None:
    (tmp_path / "secret.csv").write_text("a\n1\n")
    read = read.format(file=tmp_path / "secret.csv")
    with pytest.raises(InputError, match="not a table of these runs"):
        fleetsim.query(f"SELECT * FROM {read}", alone)


def test_variables_of_python_are_not_reached(alone: Path) -> None:
    frame = pa.table({"a": [1]})
    with pytest.raises(InputError, match="frame does not exist"):
        fleetsim.query("SELECT * FROM frame", alone)
    assert frame.num_rows == 1


def test_pivots_and_descriptions_are_selects_too(alone: Path) -> None:
    assert fleetsim.query("PIVOT requests ON pool USING count(*) GROUP BY status", alone).num_rows == 1
    described = fleetsim.query("DESCRIBE requests", alone)
    assert described["column_name"].to_pylist()[:3] == ["run", "label", "request_id"]


def test_every_column_of_every_table_has_a_meaning(study: Path) -> None:
    listed = {view.name: view for view in views(connect(open_results(study)))}
    assert list(listed) == ["runs", "summary", "groups", *("requests", "replicas", "fleet", "events", "gaps")]
    for view in listed.values():
        assert view.description
        named = [column.name for column in view.columns if not column.description]
        assert named == [name for name in ("router", "rate") if name in named], view.name
    units = {column.name: column.unit for column in listed["summary"].columns}
    assert (units["ttft_p99_s"], units["energy_j"], units["goodput_requests_per_s"]) == ("s", "J", "1/s")
    assert units["output_tokens_mean"] == "tokens"


def test_a_study_is_partitioned_as_hive_does_it(study: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    found = duckdb.sql(
        f"SELECT run, count(*) AS n FROM read_parquet('{study}/run=*/requests.parquet') GROUP BY run"
    ).fetchall()
    assert dict(found) == {run.id: 120 for run in open_results(study).runs}
    part = dataset(sorted(study.glob("run=*/requests.parquet")), partitioning="hive", partition_base_dir=str(study))
    assert part.count_rows() == 960
    assert "run" in part.schema.names


def test_only_tables_that_a_query_names_are_opened(study: Path) -> None:
    connection = connect(open_results(study), "SELECT count(*) FROM Requests")
    names = connection.execute("SELECT table_name FROM information_schema.tables ORDER BY 1").fetchall()
    assert names == [("requests",), ("runs",)]


def test_the_examples_work(alone: Path) -> None:
    for sql, _ in EXAMPLES:
        assert fleetsim.query(sql, alone).num_rows > 0


def test_printed_as_a_table_cut_with_notice(study: Path) -> None:
    result = call("query", "SELECT label, requests FROM summary ORDER BY label", study, "--limit", "3")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["label", "requests"]
    assert len(lines) == 4
    assert "5 more rows" in result.stderr


def test_printed_as_csv_and_json(study: Path) -> None:
    sql = "SELECT label, ttft_p99_s, NULL AS nothing, 'nan'::double AS nan FROM summary"
    rows = list(csv.DictReader(call("query", sql, study, "--format", "csv").stdout.splitlines()))
    told = json.loads(call("query", sql, study, "--json").stdout)
    assert [column["name"] for column in told["columns"]] == ["label", "ttft_p99_s", "nothing", "nan"]
    assert len(rows) == len(told["rows"]) == 8
    assert float(rows[3]["ttft_p99_s"]) == told["rows"][3]["ttft_p99_s"]
    assert told["rows"][0]["nan"] is None


@pytest.mark.parametrize("ending", ["csv", "json", "parquet"])
def test_written_to_a_file(alone: Path, tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"o.{ending}"
    result = call("query", "SELECT request_id, ttft_s FROM requests", alone, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert "120 rows" in result.stderr
    assert not result.stdout
    assert [file.name for file in tmp_path.iterdir()] == [out.name]
    if ending == "parquet":
        assert pq.read_table(out).num_rows == 120


def test_mistakes_are_told_with_a_suggestion(alone: Path, tmp_path: Path) -> None:
    def told(*args: str | Path) -> str:
        result = call("query", *args)
        assert result.exit_code == 2
        assert not result.stdout
        return result.stderr

    assert 'Candidate bindings: "ttft_s"' in told("SELECT ttf FROM requests", alone)
    assert 'did you mean "requests"?' in told("SELECT * FROM request", alone)
    assert "LINE 1: SELEC 1" in told("SELEC 1", alone)
    assert "give a query in quotes" in told()
    assert "holds no results" in told("SELECT 1", tmp_path)
    assert "name a file with --out" in told("SELECT 1", alone, "--format", "parquet")
    assert "its ending tells no format" in told("SELECT 1", alone, "--out", tmp_path / "o.txt")
    assert 'two columns are called "a"' in told("SELECT 1 AS a, 2 AS a", alone, "--json")
    assert not list(tmp_path.iterdir())


def test_tables_are_listed(alone: Path) -> None:
    text = call("query", "--tables", alone).stdout
    assert "requests: One row per request" in text
    assert "(end_s - first_token_s) / (output_tokens - 1)" in text
    told = json.loads(call("query", "--tables", alone, "--json").stdout)
    (requests,) = (table for table in told["tables"] if table["name"] == "requests")
    units = {column["name"]: column["unit"] for column in requests["columns"]}
    assert (units["ttft_s"], units["cost_usd"], units["label"]) == ("s", "USD", "")


def test_without_duckdb_the_way_to_install_it_is_told(alone: Path) -> None:
    code = f"import sys; sys.modules['duckdb'] = None; import fleetsim; fleetsim.query('SELECT 1', {str(alone)!r})"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'fleetsim[query]'" in ended.stderr
    assert "InputError" in ended.stderr
