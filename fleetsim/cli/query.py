"""``fleetsim query``."""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from fleetsim.cli.console import print_json, print_table
from fleetsim.errors import Finding, InputError

FORMATS = ("table", "csv", "json", "parquet")
SHOWN_ROWS = 50

_EPILOG = """\b
Examples:
  fleetsim query "SELECT label, ttft_p99_s, cost_usd FROM summary ORDER BY ttft_p99_s"
  fleetsim query "SELECT pool, count(*), avg(ttft_s) FROM requests GROUP BY ALL" fleetsim-out/quickstart
  fleetsim query "SELECT * FROM fleet" fleetsim-out --out fleet.csv
  fleetsim query --tables fleetsim-out
"""


@click.command(epilog=_EPILOG)
@click.argument("arguments", nargs=-1, metavar='"SQL" [DIR]...')
@click.option("--tables", is_flag=True, help="List the tables with their columns, units and meanings.")
@click.option("--format", "to_format", type=click.Choice(FORMATS), help="How rows are printed [table].")
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option("--out", "-o", type=click.Path(path_type=Path), help="File to write; its ending tells the format.")
@click.option(
    "--limit", type=click.IntRange(0), default=SHOWN_ROWS, show_default=True, help="Rows of a table shown; 0 for all."
)
def command(
    arguments: tuple[str, ...], tables: bool, to_format: str | None, as_json: bool, out: Path | None, limit: int
) -> None:
    """Ask the tables of runs a question in SQL (DuckDB).

    Each DIR is a result folder, a study, or a folder of several [fleetsim-out]. Tables: runs, summary, groups, requests,
    replicas, fleet, events and gaps, each with the columns `run` and `label`; the axes of a study are columns of `runs`
    (`rate`, `router`) and of `summary` ("axis.workload.arrivals.rate"). Only SELECT, and no files but these tables.
    """
    from fleetsim.results.folder import open_results
    from fleetsim.results.query import EXAMPLES, answer, connect, views

    if not arguments and not tables:
        raise InputError(Finding("give a query in quotes", hint=f'e.g. fleetsim query "{EXAMPLES[0][0]}"'))
    folders = arguments if tables else arguments[1:]
    connection = connect(open_results(*(folders or ("fleetsim-out",))), None if tables else arguments[0])
    to_format = "json" if as_json else to_format or _format_of(out)
    if tables:
        _tell_tables(views(connection), to_format == "json")
        return
    if to_format == "parquet" and out is None:
        raise InputError("--format parquet: name a file with --out")
    batches = answer(connection, arguments[0])
    if out is not None:
        rows = _write(batches, out, to_format)
        click.echo(f"{out}: {rows:,} rows", err=True)
    elif to_format == "csv":
        _csv(batches, sys.stdout.buffer)
    elif to_format == "json":
        _json(batches, sys.stdout)
    else:
        _table(batches, limit)


def _format_of(out: Path | None) -> str:
    if out is None:
        return "table"
    ending = out.suffix.lstrip(".")
    if ending not in FORMATS[1:]:
        raise InputError(
            Finding("its ending tells no format", file=str(out), hint="end it with .csv, .json or .parquet")
        )
    return ending


def _tell_tables(found: Any, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "tables": [
                    {
                        "name": view.name,
                        "description": view.description,
                        "columns": [
                            {
                                "name": c.name,
                                "type": c.kind,
                                "unit": c.unit,
                                "description": c.description,
                                "formula": c.formula,
                            }
                            for c in view.columns
                        ],
                    }
                    for view in found
                ]
            }
        )
        return
    for view in found:
        click.echo(f"{view.name}: {view.description}")
        rows = (
            (f"  {c.name}", c.unit, f"{c.description}: {c.formula}" if c.formula else c.description)
            for c in view.columns
        )
        print_table(("  column", "unit", "meaning"), rows)
        click.echo()


def _table(batches: Any, limit: int) -> None:
    """The first rows, and how many more there are."""
    import pyarrow as pa

    kept: list[tuple[Any, ...]] = []
    total = 0
    for batch in batches:
        total += len(batch)
        if not limit or len(kept) < limit:
            shown = batch.slice(0, limit - len(kept) if limit else None)
            kept += zip(*(column.to_pylist() for column in shown.columns), strict=True)
    numbers = [
        place
        for place, field in enumerate(batches.schema)
        if pa.types.is_floating(field.type) or pa.types.is_integer(field.type) or pa.types.is_decimal(field.type)
    ]
    print_table(batches.schema.names, (list(map(_cell, row)) for row in kept), right=numbers)
    if total > len(kept):
        click.echo(f"… {total - len(kept):,} more rows: --limit 0 shows all, --out FILE writes them", err=True)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _csv(batches: Any, sink: Any) -> int:
    import pyarrow as pa
    from pyarrow import csv

    rows = 0
    try:
        with csv.CSVWriter(sink, batches.schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
                rows += len(batch)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise InputError(Finding(f"CSV has no place for it: {error}", hint="--format json has")) from error
    return rows


def _json(batches: Any, sink: Any) -> int:
    """One object: the columns, and the rows as objects, written as they come."""
    names = batches.schema.names
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f'two columns are called "{twice[0]}": rename one with AS')
    columns = [{"name": field.name, "type": str(field.type)} for field in batches.schema]
    sink.write(f'{{"columns": {json.dumps(columns, ensure_ascii=False)}, "rows": [')
    rows = 0
    for row in _rows(batches):
        sink.write(("," if rows else "") + "\n  " + json.dumps(row, ensure_ascii=False, allow_nan=False, default=str))
        rows += 1
    sink.write("\n]}\n")
    return rows


def _rows(batches: Any) -> Iterator[dict[str, Any]]:
    for batch in batches:
        for row in batch.to_pylist():
            yield {
                key: None if isinstance(value, float) and not math.isfinite(value) else value
                for key, value in row.items()
            }


def _parquet(batches: Any, path: Path) -> int:
    import pyarrow.parquet as pq

    rows = 0
    with pq.ParquetWriter(path, batches.schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch)
            rows += len(batch)
    return rows


def _write(batches: Any, out: Path, to_format: str) -> int:
    """A file that appears when it is complete."""
    if to_format == "table":
        raise InputError("--format table: a table is printed, not written; use csv, json or parquet")
    if out.is_dir():
        raise InputError(Finding("is a folder", file=str(out), hint="name a file"))
    try:
        handle, name = tempfile.mkstemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent)
    except OSError as error:
        raise InputError(Finding(f"cannot write there: {error.strerror}", file=str(out))) from error
    os.close(handle)
    part = Path(name)
    try:
        rows = _WRITERS[to_format](batches, part)
        part.chmod(0o644)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return rows


def _csv_file(batches: Any, path: Path) -> int:
    with path.open("wb") as sink:
        return _csv(batches, sink)


def _json_file(batches: Any, path: Path) -> int:
    with path.open("w", encoding="utf-8") as sink:
        return _json(batches, sink)


_WRITERS = {"csv": _csv_file, "json": _json_file, "parquet": _parquet}
