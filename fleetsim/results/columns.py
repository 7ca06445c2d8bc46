"""What each column of each table means: the fixed tables by their schemas, the others by the catalogue of metrics."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from fleetsim.metrics.described import meaning
from fleetsim.output.tables import TABLES, Column

TABLE_TEXTS = {
    "runs": "One row per run: what it is called, where it lies, and the value of each axis of its study",
    "summary": "One row per run: its figures",
    "groups": "The main figures of each run by pool, class, tenant, model, site and origin, and of each arm if it answered all",
    "requests": "One row per request",
    "replicas": "One row per replica and interval",
    "fleet": "One row per pool and interval",
    "events": "Changes of state, failures, migrations; totals at the end",
    "gaps": "Histogram of the times between two tokens, by pool",
    "decisions": "What the router saw of each candidate, of requests that were explained",
}
"""Views in the order in which they are listed."""

_OF_RUNS = {
    "run": "Begin of the digest of the scenario, seed included",
    "label": "What tells the run from the others, in a few words",
    "name": "Name of the scenario",
    "study": "Study that it belongs to; null if none",
    "seed": "Seed of its random numbers; null if it was measured",
    "replication": "Which of the runs that differ only in their seeds, from 0",
    "measured": "Whether it was imported from another tool",
    "folder": "Where it lies",
}


def column_of(table: str, name: str, kind: str = "") -> Column:
    """Unit, description and formula of a column of a table, as far as they are known."""
    if name in ("run", "label"):
        return Column(name, "string", "", _OF_RUNS[name])
    if table in TABLES:
        return next(column for column in TABLES[table] if column.name == name)
    if name in _OF_RUNS and table != "groups":
        return Column(name, kind, "", _OF_RUNS[name])
    if name.startswith("axis."):
        return Column(name, kind, "", f"Axis of the study: {name.removeprefix('axis.')}")
    return Column(name, kind, *meaning(name, whole=kind == "int64"))


def columns_of(table: str, schema: pa.Schema) -> list[Column]:
    """All columns of a table, with units and meanings."""
    return [column_of(table, field.name, _kind(field.type)) for field in schema]


def _kind(arrow: pa.DataType) -> str:
    return (
        "string"
        if pa.types.is_dictionary(arrow) or pa.types.is_string(arrow)
        else str(arrow).replace("double", "float64")
    )


def in_order(tables: Iterable[str]) -> list[str]:
    """Tables as they are listed."""
    known = list(TABLE_TEXTS)
    return sorted(tables, key=lambda table: known.index(table) if table in known else len(known))
