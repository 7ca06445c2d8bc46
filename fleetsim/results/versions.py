"""Layouts of earlier versions, turned into today's when they are read.

A table may gain columns within a version: files without them are read with nulls there. What cannot be said so (a column renamed,
a unit changed) gets a new version in `fleetsim.output.tables` and a converter here; `tests/results/data` keeps files of every
version.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from fleetsim.errors import Finding, InputError
from fleetsim.output.tables import SCHEMA_VERSION, arrow_schema

READABLE = ("1",)
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
