"""Trace files in the formats that fleetsim writes: its own Parquet, Mooncake's JSONL, Azure's CSV.

A file appears under its name only when it is complete, and the same rows give the same bytes.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fleetsim.errors import DataError, Finding, nearest
from fleetsim.workload.readers import mooncake
from fleetsim.workload.readers.rows import Row
from fleetsim.workload.replay import Sessions

_BATCH_ROWS = 8192
_BLOCK = mooncake.BLOCK_TOKENS
_MS = 1000
_TICKS = 10_000_000
"""Azure's decimals of a second."""
_AZURE_START = datetime(2000, 1, 1, tzinfo=UTC)


@contextmanager
def _complete(path: Path) -> Iterator[Path]:
    """A name next to `path` to write to, which becomes `path` in the end and vanishes if anything goes wrong."""
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(path)
    except OSError as error:
        raise DataError(Finding(f"cannot be written: {error.strerror or error}", file=str(path))) from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


@contextmanager
def _text(path: Path) -> Iterator[io.TextIOWrapper]:
    """A UTF-8 text file, compressed if its name ends with ``.gz``; no time stamp goes into it."""
    with _complete(path) as part, part.open("wb") as raw:
        packed = gzip.GzipFile("", "wb", 9, raw, mtime=0) if path.suffix == ".gz" else raw
        with io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as text:
            yield text


def write_azure(rows: Iterable[Row], path: Path) -> int:
    """Write times (from 2000-01-01) and lengths as Azure's CSV; the number of rows."""
    count = 0
    with _text(path) as file:
        file.write("TIMESTAMP,ContextTokens,GeneratedTokens\n")
        for row in rows:
            count += 1
            seconds, ticks = divmod(round(row.time_s * _TICKS), _TICKS)
            stamp = (_AZURE_START + timedelta(seconds=seconds)).strftime("%Y-%m-%d %H:%M:%S")
            file.write(f"{stamp}.{ticks:07d},{row.prompt_tokens},{row.output_tokens}\n")
    return count


class _BlockIds:
    """Mooncake's ids of a prompt's blocks: numbers in order of appearance, equal where the tokens are known to be."""

    def __init__(self) -> None:
        self._ids: dict[int, int] = {}
        self._sessions = Sessions()
        self._next = 0

    def of(self, row: Row) -> list[int]:
        """Ids of every block of the prompt, the partial last one too."""
        session = None if row.session is None else self._sessions.of(0, row.session)
        content = self._sessions.content(row, session)
        blocks = -(-row.prompt_tokens // _BLOCK)
        ids: list[int] = []
        if content is not None:
            known = blocks if content.hash_tokens == _BLOCK else row.prompt_tokens // _BLOCK
            ids = [self._id(key) for key in islice(chain(*content.path(_BLOCK)), known)]
        fresh = range(self._next, self._next + blocks - len(ids))
        self._next += len(fresh)
        return [*ids, *fresh]

    def _id(self, key: int) -> int:
        known = self._ids.get(key)
        if known is None:
            known = self._ids[key] = self._next
            self._next += 1
        return known


def write_mooncake(rows: Iterable[Row], path: Path) -> int:
    """Write times in whole milliseconds, lengths and block ids as Mooncake's JSONL; the number of rows."""
    ids = _BlockIds()
    count = 0
    with _text(path) as file:
        for row in rows:
            count += 1
            entry = {
                "timestamp": round(row.time_s * _MS),
                "input_length": row.prompt_tokens,
                "output_length": row.output_tokens,
                "hash_ids": _block_ids(ids, row, path),
            }
            file.write(json.dumps(entry) + "\n")
    return count


def _block_ids(ids: _BlockIds, row: Row, path: Path) -> list[int]:
    try:
        return ids.of(row)
    except ValueError as error:
        raise DataError(Finding(f"cannot be written as mooncake: {error}", file=str(path))) from None


@dataclass
class _Turns:
    """Turn of each row in its session."""

    seen: dict[Any, int] = field(default_factory=dict)

    def of(self, row: Row) -> int | None:
        """Number from 0, or None outside sessions."""
        if row.session is None:
            return None
        turn = self.seen[row.session] = self.seen.get(row.session, -1) + 1
        return turn


_COLUMNS: tuple[tuple[str, Any, str | None, Callable[[Row], Any]], ...] = (
    ("arrival_s", pa.float64(), None, lambda row: row.time_s),
    ("prompt_tokens", pa.int32(), None, lambda row: row.prompt_tokens),
    ("output_tokens", pa.int32(), None, lambda row: row.output_tokens),
    ("session_id", pa.string(), "session", lambda row: None if row.session is None else str(row.session)),
    ("block_hashes", pa.list_(pa.int64()), "hashes", lambda row: _signed(row.hashes)),
    ("block_size", pa.int32(), "hashes", lambda row: row.hash_tokens or None),
    ("model", pa.string(), "model", lambda row: row.model),
    ("category", pa.string(), "klass", lambda row: row.klass),
    ("tenant", pa.string(), "tenant", lambda row: row.tenant),
    ("tool_time_s", pa.float64(), "pause_s", lambda row: row.pause_s),
    ("images", pa.int32(), "images", lambda row: row.images),
    ("image_tokens", pa.int32(), "image_tokens", lambda row: None if row.image_tokens < 0 else row.image_tokens),
)
"""Columns of fleetsim's own format: name, type, the field of `Row` without which it is left out, and its value."""


def _signed(hashes: tuple[int, ...]) -> list[int] | None:
    """Hashes as signed 64-bit integers, which is what a Parquet column holds."""
    return [key - (1 << 64) if key >= 1 << 63 else key for key in hashes] or None


def write_parquet(rows: Iterable[Row], path: Path, fields: set[str] | None = None, note: str = "") -> int:
    """Write fleetsim's own format; the number of rows.

    Parameters
    ----------
    rows
        Requests in order of arrival.
    path
        File to write.
    fields
        Optional fields of `Row` that occur, for which columns are made; None for all.
    note
        Kept in the file's metadata.
    """
    columns = [column for column in _COLUMNS if column[2] is None or fields is None or column[2] in fields]
    types = [(name, kind) for name, kind, _, _ in columns]
    has_sessions = fields is None or "session" in fields
    if has_sessions:
        types.append(("turn", pa.int32()))
    schema = pa.schema(types, metadata={"note": note} if note else None)
    turns, count, rest = _Turns(), 0, iter(rows)
    with _complete(path) as part, pq.ParquetWriter(part, schema, compression="zstd") as writer:
        while batch := list(islice(rest, _BATCH_ROWS)):
            values = [[value(row) for row in batch] for _, _, _, value in columns]
            if has_sessions:
                values.append([turns.of(row) for row in batch])
            arrays = [pa.array(cells, kind) for cells, (_, kind) in zip(values, types, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
            count += len(batch)
    return count


WRITERS: dict[str, Callable[[Iterable[Row], Path], int]] = {
    "parquet": write_parquet,
    "mooncake": write_mooncake,
    "azure": write_azure,
}
"""Formats that fleetsim writes."""
_BY_ENDING = {".parquet": "parquet", ".jsonl": "mooncake", ".csv": "azure"}


def writable_format(path: Path, name: str | None) -> str:
    """The format to write: as named, or as the file's ending tells.

    Raises
    ------
    DataError
        If fleetsim does not write it, or nothing tells.
    """
    if name is None:
        name = _BY_ENDING.get(Path(path.name.removesuffix(".gz")).suffix)
        if name is None:
            hint = f"end its name with {', '.join(_BY_ENDING)}, or name one of the formats {', '.join(WRITERS)}"
            raise DataError(Finding("its name does not tell the format to write", file=str(path), hint=hint))
    if name not in WRITERS:
        raise DataError(Finding(f'fleetsim does not write the format "{name}"', hint=nearest(name, WRITERS, "formats")))
    return name
