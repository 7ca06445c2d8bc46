"""Layouts of earlier versions, turned into today's when they are read.

A table may gain columns within a version: files without them are read with nulls there. What cannot be said so (a column renamed,
a unit changed) gets a new version in `fleetsim.output.tables` and a converter here; `tests/results/data` keeps files of every
version.

Version 2: the tables ``summary`` and ``groups`` carry units and meanings as the others do, and a run without groups has none (in
version 1, one row of empty names).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fleetsim.errors import Finding, InputError
from fleetsim.output.tables import SCHEMA_VERSION, arrow_schema, with_meanings

READABLE = ("1", "2")
"""Versions that can be read, the current one last."""


def current_manifest(manifest: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """A manifest in today's terms.

    Raises
    ------
    InputError
        If its version is not known here.
    """
    version = str(manifest.get("schema_version", ""))
    if version in READABLE:
        return manifest
    if not version:
        raise InputError(Finding("has no schema_version: not a manifest of fleetsim", file=str(path)))
    wrote = manifest.get("fleetsim_version", "a later version")
    message = f"schema version {version}, written by fleetsim {wrote}; this one reads {', '.join(READABLE)}"
    raise InputError(Finding(message, file=str(path), hint="upgrade fleetsim"))


@cache
def current_schema(table: str) -> pa.Schema:
    """Columns of a table as `fleetsim.output.tables` has them."""
    assert READABLE[-1] == SCHEMA_VERSION
    return arrow_schema(table)


def current_batch(table: str, batch: pa.RecordBatch, columns: list[str]) -> pa.RecordBatch:
    """Some columns of a table with today's types; nulls for those that the file lacks."""
    schema = current_schema(table)
    arrays = []
    for name in columns:
        kind = schema.field(name).type
        if name not in batch.schema.names:
            arrays.append(pa.nulls(len(batch), kind))
            continue
        array = batch.column(name)
        arrays.append(array if array.type == kind else array.cast(kind))
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema([schema.field(name) for name in columns]))


def current_figures(name: str, table: pa.Table, version: str) -> pa.Table:
    """A table of figures (``summary``, ``groups``) of some version as today's."""
    for earlier in READABLE[READABLE.index(version) : -1]:
        table = _CONVERTERS[earlier](name, table)
    return table


def _from_1(name: str, table: pa.Table) -> pa.Table:
    if name == "groups":
        table = table.filter(pc.not_equal(table["by"], ""))
    return with_meanings(name, table)


_CONVERTERS: Mapping[str, Callable[[str, pa.Table], pa.Table]] = {"1": _from_1}
"""From a version to the next."""
