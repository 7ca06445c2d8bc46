"""Result folders: Parquet tables written as the run goes, complete or not there at all."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fleetsim.errors import Finding, InputError
from fleetsim.metrics.columns import Floats, values_of
from fleetsim.output.tables import TABLES, arrow_schema, with_meanings

MANIFEST = "manifest.json"
STUDY = "study.json"
"""In the folder of a study, whose results stand in folders of their own: what was asked."""
GROUP_ROWS = 1 << 16
"""Rows of a Parquet row group."""
FEW_ROWS = 1 << 14
"""A finished table with no more rows than this is read once, not once for each column that somebody asks for."""
PARTIAL = ".partial"
"""How the name of a folder ends that is being written: ``.NAME.HOST-PROCESS.XXXX.partial``."""
_OWNER = re.compile(r"\.([^.]+)-(\d+)\.[^.]+$")


class ResultFolder:
    """A folder of tables that appears under its name only when it is complete.

    Tables are written into a sibling folder with a temporary name; `publish` writes the manifest and renames it. A folder that
    holds an earlier result (a manifest) is replaced; anything else that is not empty is refused.

    Raises
    ------
    InputError
        If `out` cannot be used.
    """

    def __init__(self, out: Path, metadata: Mapping[str, str]) -> None:
        self.out = out
        self._metadata = {key.encode(): value.encode() for key, value in metadata.items()}
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._waiting: dict[str, list[pa.RecordBatch]] = {}
        self._small: dict[str, pa.Table] = {}
        _refuse_unusable(out)
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            name = f".{out.name}.{_host()}-{os.getpid()}."
            self._folder = Path(tempfile.mkdtemp(prefix=name, suffix=PARTIAL, dir=out.parent))
        except OSError as error:
            raise InputError(Finding(f"cannot write there: {error.strerror}", file=str(out))) from error

    def write(self, table: str, batch: pa.RecordBatch) -> None:
        """Append rows to a table; they reach the file in groups of at least `GROUP_ROWS`."""
        waiting = self._waiting.setdefault(table, [])
        waiting.append(batch)
        if sum(map(len, waiting)) >= GROUP_ROWS:
            self._write_out(table)

    def _write_out(self, table: str) -> None:
        waiting = self._waiting.pop(table, [])
        if waiting:
            rows = pa.Table.from_batches(waiting).unify_dictionaries().combine_chunks()
            self._writer(table).write_table(rows.cast(self._writer(table).schema), row_group_size=1 << 20)

    def _writer(self, table: str) -> pq.ParquetWriter:
        writer = self._writers.get(table)
        if writer is None:
            schema = arrow_schema(table)
            schema = schema.with_metadata({**(schema.metadata or {}), **self._metadata})
            path = self._folder / f"{table}.parquet"
            writer = self._writers[table] = pq.ParquetWriter(path, schema, compression="zstd", store_schema=True)
        return writer

    def close_tables(self) -> None:
        """Finish all tables, empty ones included; they can be read from now on."""
        for table in TABLES:
            self._writer(table)
            self._write_out(table)
        for writer in self._writers.values():
            writer.close()

    def floats(self, table: str, column: str) -> Floats:
        """A column of a finished table that is not published yet: numbers or truth values as floats, NaN where there is none."""
        values = np.empty(0)
        for start, rows, total in self._groups(table, column):
            if not start:
                values = np.empty(total)
            values[start : start + len(rows)] = values_of(rows)
        return values

    def codes(self, table: str, column: str) -> tuple[np.ndarray[Any, Any], list[str]]:
        """Names of such a column as places in a list of those that occur, -1 where there is none."""
        codes, places = np.empty(0, np.int32), dict[str, int]()
        for start, rows, total in self._groups(table, column):
            if not start:
                codes = np.empty(total, np.int32)
            names = rows.dictionary.to_pylist()
            place = np.array([*(places.setdefault(name, len(places)) for name in names), -1], dtype=np.int32)
            own = values_of(rows.indices)
            own = own if own.dtype.kind != "f" else np.nan_to_num(own, nan=-1.0).astype(np.int32)
            codes[start : start + len(rows)] = place[own]
        return codes, list(places)

    def _groups(self, table: str, column: str) -> Iterator[tuple[int, pa.Array, int]]:
        """Row groups of a column, each with the number of its first row and that of all rows: never all of a long one in memory."""
        start = 0
        for rows, total in self._parts(table, column):
            yield start, rows, total
            start += len(rows)

    def _parts(self, table: str, column: str) -> Iterator[tuple[pa.Array, int]]:
        if table in self._small:
            whole = self._small[table]
            yield from ((rows, len(whole)) for rows in whole[column].chunks)
            return
        # pq.read_table would import pandas wherever that is installed
        with pq.ParquetFile(self._folder / f"{table}.parquet", memory_map=True) as file:
            total = file.metadata.num_rows
            if total <= FEW_ROWS:
                self._small[table] = file.read(use_threads=False)
            for group in range(file.num_row_groups):
                yield from ((rows, total) for rows in file.read_row_group(group, [column])[column].chunks)

    def add_table(self, name: str, table: pa.Table) -> None:
        """Write a small table of figures at once, with the unit and meaning of each."""
        table = with_meanings(name, table)
        table = table.replace_schema_metadata({**table.schema.metadata, **self._metadata})
        path = self._folder / f"{name}.parquet"
        pq.write_table(
            table, path, compression="zstd", use_dictionary=False, write_statistics=False
        )  # few rows, many columns

    def publish(self, manifest: Mapping[str, Any]) -> list[Path]:
        """Write the manifest and give the folder its name; returns the files."""
        text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False)
        (self._folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
        self._folder.chmod(0o755)
        if self.out.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{self.out.name}.", suffix=".old", dir=self.out.parent))
            os.replace(self.out, old / "old")
            os.replace(self._folder, self.out)
            shutil.rmtree(old)
        else:
            os.replace(self._folder, self.out)
        return sorted(self.out.iterdir())

    def discard(self) -> None:
        """Remove everything that was written."""
        for writer in self._writers.values():
            if writer.is_open:
                writer.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def remove_leftovers(folder: Path, prefix: str = ".") -> int:
    """Remove what processes of this machine began to write into a folder and were killed at; how many there were.

    Parameters
    ----------
    folder : Path
        Where results stand.
    prefix : str
        Only those whose name begins like this.
    """
    left = [path for path in folder.glob(f"{prefix}*{PARTIAL}") if _ownerless(path)]
    for path in left:
        shutil.rmtree(path, ignore_errors=True)
    return len(left)


def _host() -> str:
    return re.sub(r"[^\w-]", "-", socket.gethostname())[:60] or "host"


def _ownerless(partial: Path) -> bool:
    """Whether the process that was writing this folder is known to be gone."""
    owner = _OWNER.search(partial.name.removesuffix(PARTIAL))
    if owner is None or owner[1] != _host() or os.name != "posix":
        return False
    try:
        os.kill(int(owner[2]), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _refuse_unusable(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(Finding("exists and is not a folder", file=str(out), hint="choose another --out"))
    if (out / STUDY).is_file():
        message = "holds a study: the result of one run would replace all of it"
        raise InputError(Finding(message, file=str(out), hint="choose another --out"))
    if any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise InputError(
            Finding("folder is not empty and holds no fleetsim result", file=str(out), hint="choose another --out")
        )
