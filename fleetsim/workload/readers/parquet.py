"""Fleetsim's own trace format: Parquet with one row per request.

``arrival_s, prompt_tokens, output_tokens``, then where known ``session_id, turn, parent_request`` (row index, from 0),
``block_hashes`` (list of int64) with ``block_size``, ``model``, ``category``, ``tenant``, ``tool_time_s``,
``think_time_s``, ``images`` and ``image_tokens`` (of the prompt, what an encoder makes of them). Other columns are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fleetsim.workload.readers.rows import BadRows, Row, decimal, images_of, key, label, whole
from fleetsim.workload.readers.source import PARQUET, failure, first_bytes, integers

NEEDED = ("arrival_s", "prompt_tokens", "output_tokens")
OPTIONAL = (
    "session_id",
    "parent_request",
    "block_hashes",
    "block_size",
    "model",
    "category",
    "tenant",
    "tool_time_s",
    "think_time_s",
    "images",
    "image_tokens",
)
_BATCH_ROWS = 4096
_Columns = dict[str, Sequence[Any]]


def read(path: Path, bad: BadRows) -> Iterator[Row]:
    """Rows, numbered from 1, a batch at a time."""
    first = 0
    roots: dict[int, int] = {}
    for columns, plain in _batches(path):
        if "session_id" not in columns and "parent_request" in columns:
            columns["session_id"] = _sessions(columns["parent_request"], first, roots)
        yield from _plain(columns, first) if plain else _rows(columns, first, bad)
        first += len(columns["arrival_s"])


def _batches(path: Path) -> Iterator[tuple[_Columns, bool]]:
    """The columns that matter, some rows at a time, and whether they are nothing but complete numbers."""
    if not first_bytes(path).startswith(PARQUET):
        raise failure(path, "is not a Parquet file", "`fleetsim trace describe` tells what a file looks like")
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            missing = [name for name in NEEDED if name not in names]
            if missing:
                what = f"has no column {', '.join(missing)} (its columns: {', '.join(names)})"
                raise failure(path, what, _advice(missing))
            wanted = [name for name in (*NEEDED, *OPTIONAL) if name in names]
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=wanted):
                named = zip(batch.schema.names, batch.columns, strict=True)
                yield {name: _values(column) for name, column in named}, _is_plain(batch)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise failure(path, f"is not a sound Parquet file: {str(error).splitlines()[0]}") from None


def _advice(missing: list[str]) -> str:
    if missing == ["arrival_s"]:
        return "it holds lengths without times, which cannot be replayed: use its lengths in a synthetic workload"
    return "these columns are needed: " + ", ".join(NEEDED)


def _is_plain(batch: Any) -> bool:
    """Whether a batch holds nothing but complete numbers in the needed columns."""
    names, columns = batch.schema.names, batch.columns
    if set(names) != set(NEEDED) or any(column.null_count for column in columns):
        return False
    return pa.types.is_floating(batch.schema.field("arrival_s").type) and all(
        pa.types.is_integer(batch.schema.field(name).type) for name in NEEDED[1:]
    )


def _plain(columns: _Columns, first: int) -> Iterator[Row]:
    numbers = range(first + 1, first + 1 + len(columns["arrival_s"]))
    return map(Row, numbers, columns["arrival_s"], columns["prompt_tokens"], columns["output_tokens"])


def _values(column: Any) -> Sequence[Any]:
    """A column as Python objects; lists of integers by way of one flat array, which is faster."""
    kind = column.type
    if not pa.types.is_list(kind) or not pa.types.is_integer(kind.value_type) or column.null_count:
        return column.to_pylist()  # type: ignore[no-any-return]
    flat = column.flatten()
    if flat.null_count:
        return column.to_pylist()  # type: ignore[no-any-return]
    ends = column.value_lengths().to_numpy().cumsum().tolist()
    values = flat.to_numpy().tolist()
    return [values[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _sessions(parents: Sequence[Any], first: int, roots: dict[int, int]) -> list[int]:
    """First row of the chain of parents that each row ends, kept in `roots`."""
    found = []
    for index, parent in enumerate(parents, first):
        known = isinstance(parent, int | float) and 0 <= parent < index and int(parent) == parent
        root = roots.get(int(parent), int(parent)) if known else index
        roots[index] = root
        found.append(root)
    return found


def _rows(columns: _Columns, first: int, bad: BadRows) -> Iterator[Row]:
    count = len(columns["arrival_s"])
    optional = (columns.get(name) or repeat(None, count) for name in OPTIONAL)
    needed = (columns[name] for name in NEEDED)
    for number, cells in enumerate(zip(*needed, *optional, strict=True), first + 1):
        try:
            yield _row(number, *cells)
        except ValueError as error:
            bad.add(number, str(error))


def _row(
    number: int,
    arrival: object,
    prompt: object,
    output: object,
    session: object,
    _parent: object,
    hashes: object,
    block: object,
    model: object,
    category: object,
    tenant: object,
    tool: object,
    think: object,
    images: object,
    image_tokens: object,
) -> Row:
    prompt_tokens = whole(prompt, "prompt_tokens")
    known, block_tokens = _hashes(hashes, block)
    return Row(
        number,
        decimal(arrival, "arrival_s"),
        prompt_tokens,
        whole(output, "output_tokens"),
        known,
        block_tokens,
        key(session),
        _pause(tool, think),
        label(category),
        label(tenant),
        label(model),
        *images_of(images, image_tokens, prompt_tokens),
    )


def _hashes(hashes: object, block: object) -> tuple[tuple[int, ...], int]:
    if not hashes:
        return (), 0
    tokens = whole(block, "block_size")
    if tokens < 1:
        raise ValueError(f"block_size: {tokens} is below 1")
    return integers(hashes, "block_hashes"), tokens


def _pause(tool: object, think: object) -> float | None:
    """Time that tools or the user took before this turn."""
    pause = tool if tool is not None else think
    if pause is None or pause != pause:
        return None
    seconds = decimal(pause, "tool_time_s")
    if seconds < 0:
        raise ValueError(f"tool_time_s: {seconds:g} is negative")
    return seconds
