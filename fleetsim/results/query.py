"""SQL over the tables of runs, by DuckDB, which reads the Parquet files as far as a query needs them."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from fleetsim.errors import Finding, InputError, nearest
from fleetsim.output.tables import TABLES, Column
from fleetsim.results.columns import TABLE_TEXTS, columns_of, in_order
from fleetsim.results.folder import SMALL, Results, open_results
from fleetsim.results.labels import short_names

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

EXAMPLES = (
    ("SELECT label, ttft_p99_s, cost_usd FROM summary ORDER BY ttft_p99_s", "figures of each run"),
    (
        "SELECT label, pool, count(*) AS requests, quantile_cont(ttft_s, 0.99) AS ttft_p99_s FROM requests GROUP BY ALL",
        "a percentile by run and pool",
    ),
    (
        "SELECT floor(arrival_s / 60) AS minute, avg(slo_met::int) AS attainment FROM requests GROUP BY ALL ORDER BY minute",
        "attainment over time",
    ),
)
"""Queries and what they answer."""

_SQL_TYPES = {
    "float64": "DOUBLE",
    "int64": "BIGINT",
    "int32": "INTEGER",
    "bool": "BOOLEAN",
    "string": "VARCHAR",
    "name": "VARCHAR",
}
_ARROW_TYPES = {pa.string(): "VARCHAR", pa.float64(): "DOUBLE", pa.int64(): "BIGINT", pa.bool_(): "BOOLEAN"}
OPTIONAL = "decisions"
"""Table that only some runs have."""


@dataclass(frozen=True, slots=True)
class View:
    """What a query can select from."""

    name: str
    description: str
    columns: Sequence[Column]


def query(sql: str, *paths: str | os.PathLike[str] | Results) -> pa.Table:
    """Answer a question to the tables of runs.

    Parameters
    ----------
    sql : str
        One SELECT in DuckDB's SQL. It reads these runs and nothing else.
    *paths : path or Results
        What `open_results` takes, or runs that it opened; default ``fleetsim-out``.

    Returns
    -------
    pyarrow.Table

    Raises
    ------
    InputError
        If DuckDB is not installed, a path holds no results, or the query is wrong.

    Examples
    --------
    >>> import fleetsim
    >>> fleetsim.query("SELECT label, ttft_p99_s FROM summary", "fleetsim-out").to_pylist()  # doctest: +SKIP
    """
    opened = [path for path in paths if isinstance(path, Results)]
    if opened and len(paths) > 1:
        raise InputError("query: give paths, or runs that were opened together, not both")
    results = opened[0] if opened else open_results(*(paths or ("fleetsim-out",)))  # type: ignore[arg-type]
    return answer(connect(results, sql), sql).read_all()


def connect(results: Results, sql: str | None = None) -> DuckDBPyConnection:
    """A connection to a database in memory whose views are the tables of these runs; it can read their files and nothing else.

    Parameters
    ----------
    results : Results
        The runs.
    sql : str, optional
        A query that it is for: tables whose names do not occur in it are left out, as hundreds of runs take a while to open.
    """
    duckdb = _duckdb()
    if not results.runs:
        raise InputError("no run of these folders has finished: nothing to ask")
    scratch = Path(tempfile.gettempdir()) / f"fleetsim-query-{os.getpid()}"
    config = {
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "python_enable_replacements": False,
        "temp_directory": str(scratch),
    }

    def is_asked(table: str) -> bool:
        return sql is None or re.search(rf"\b{table}\b", sql, re.IGNORECASE) is not None

    connection: DuckDBPyConnection = duckdb.connect(":memory:", config=config)
    with suppress(duckdb.Error):  # in a notebook without widgets there is no bar, and it refuses to be told so
        connection.execute("SET enable_progress_bar = false")
    connection.register("_runs", _runs(results))
    connection.execute("CREATE TABLE runs AS SELECT * FROM _runs")
    connection.unregister("_runs")
    for name in filter(is_asked, SMALL):
        connection.register(f"_{name}", results.summary() if name == "summary" else _labelled(results, name))
        connection.execute(f"CREATE TABLE {name} AS SELECT * FROM _{name}")
        connection.unregister(f"_{name}")
    files: list[str] = []
    for name in filter(is_asked, (*TABLES, OPTIONAL)):
        own = {run.id: str((run.path / f"{name}.parquet").resolve()) for run in results.runs}
        own = {run: file for run, file in own.items() if Path(file).is_file()}
        if own:
            connection.execute(_view(name, own))
            files += own.values()
    connection.execute(f"SET allowed_paths=[{', '.join(map(_text, files))}]")
    connection.execute("SET enable_external_access=false")
    connection.execute("SET lock_configuration=true")
    return connection


def answer(connection: DuckDBPyConnection, sql: str) -> pa.RecordBatchReader:
    """Rows that a SELECT gives, in batches.

    Raises
    ------
    InputError
        If it is not one SELECT, or DuckDB cannot do what it says.
    """
    duckdb = _duckdb()
    try:
        statements = duckdb.extract_statements(sql)
        if len(statements) != 1 or not _is_select(duckdb, statements[0], sql):
            raise InputError(
                Finding(
                    "a query is one SELECT: results are not changed", hint=f'e.g. fleetsim query "{EXAMPLES[0][0]}"'
                )
            )
        reader: pa.RecordBatchReader = connection.sql(sql).to_arrow_reader()
    except duckdb.Error as error:
        raise InputError(_told(error)) from error
    return reader


def _is_select(duckdb: Any, statement: Any, sql: str) -> bool:
    """Whether it only reads; PIVOT is a statement of several parts to DuckDB."""
    kinds = duckdb.StatementType
    pivots = re.match(r"\s*(from|pivot|select|unpivot|with)\b", sql, re.IGNORECASE) is not None
    return statement.type == kinds.SELECT or (statement.type == kinds.MULTI and pivots)


def _told(error: Exception) -> Finding:
    """What DuckDB says, its suggestion as the hint."""
    message, _, place = str(error).partition("\n\nLINE ")
    first, _, suggestion = message.partition("\n")
    hint = suggestion.strip() or "fleetsim query --tables lists the tables and their columns"
    if unknown := re.search(
        r"Table with name (\w+) does not exist", first
    ):  # DuckDB knows only the tables that were opened
        hint = nearest(unknown[1], TABLE_TEXTS, "tables")
    if place and "syntax error" in first:
        hint = f"LINE {place}\n    {hint}".replace("\n", "\n    ")
    if "file system operations are disabled" in first:
        hint = "a query reads the tables of the runs that were opened, no other files"
    return Finding(
        first.replace("file system operations are disabled by configuration", "not a table of these runs"), hint=hint
    )


def views(connection: DuckDBPyConnection) -> list[View]:
    """What can be selected from, with units and meanings of the columns."""
    names = [row[0] for row in connection.execute("SELECT table_name FROM information_schema.tables").fetchall()]
    found = []
    for name in in_order(names):
        schema = connection.sql(f"SELECT * FROM {name} LIMIT 0").to_arrow_reader().schema
        found.append(View(name, TABLE_TEXTS.get(name, ""), columns_of(name, schema)))
    return found


def _runs(results: Results) -> pa.Table:
    """One row per run, with its axes under short names."""
    fixed: dict[str, list[Any]] = {
        "run": [run.id for run in results.runs],
        "label": [run.label for run in results.runs],
        "name": [run.name for run in results.runs],
        "study": [run.study or None for run in results.runs],
        "seed": [run.seed for run in results.runs],
        "replication": [run.replication for run in results.runs],
        "measured": [run.is_measured for run in results.runs],
        "verdict": [run.manifest.get("verdict") for run in results.runs],
        "folder": [str(run.path) for run in results.runs],
    }
    kinds = {"seed": pa.int64(), "replication": pa.int64(), "measured": pa.bool_()}
    table = pa.table({name: pa.array(values, kinds.get(name, pa.string())) for name, values in fixed.items()})
    axes = results.axes()
    short = short_names(list(axes))
    for path, values in axes.items():
        name = short[path] if short[path] not in fixed else path
        table = table.append_column(name, values)
    return table


def _labelled(results: Results, name: str) -> pa.Table:
    table = results.table(name)
    labels = {run.id: run.label for run in results.runs}
    return table.add_column(1, "label", pa.array([labels[run] for run in table["run"].to_pylist()], pa.string()))


def _view(name: str, files: Mapping[str, str]) -> str:
    """A view of the same table of all runs; nulls for columns that the files lack."""
    schemas = [frozenset(pq.read_schema(file).names) for file in files.values()]
    there = frozenset[str]().union(*schemas)
    by_name = (
        "true" if len(set(schemas)) > 1 else "false"
    )  # where all have the same, only the first has to be looked at
    if name in TABLES:
        chosen = [
            f"t.{_name(column.name)}"
            if column.name in there
            else f"NULL::{_SQL_TYPES[column.kind]} AS {_name(column.name)}"
            for column in TABLES[name]
        ]
    else:
        chosen = ["t.* EXCLUDE (filename)"]
    listed = ", ".join(map(_text, files.values()))
    by_file = ", ".join(f"({_text(run)}, {_text(file)})" for run, file in files.items())
    return (
        f"CREATE VIEW {name} AS SELECT r.run, r.label, {', '.join(chosen)} "
        f"FROM read_parquet([{listed}], union_by_name = {by_name}, hive_partitioning = false, filename = true) AS t "
        f"JOIN (VALUES {by_file}) AS f(run, filename) ON f.filename = t.filename JOIN runs AS r ON r.run = f.run"
    )


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _name(value: str) -> str:
    return '"' + value.replace('"', '""') + '"'


def _duckdb() -> Any:
    try:
        import duckdb
    except ImportError as error:
        raise InputError(
            Finding("queries need DuckDB, which is not installed", hint="pip install 'fleetsim[query]'")
        ) from error
    return duckdb
