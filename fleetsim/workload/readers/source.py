"""Lines of a text file, compressed or not, with every failure told as a finding."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fleetsim.errors import DataError, Finding

_GZIP = b"\x1f\x8b"
_FOREIGN = {
    b"PK\x03\x04": "a zip archive",
    b"\xfd7zXZ\x00": "an xz file",
    b"(\xb5/\xfd": "a zstd file",
    b"BZh": "a bzip2 file",
}
PARQUET = b"PAR1"


def failure(path: Path, message: str, hint: str = "", line: int | None = None) -> DataError:
    """Error about the file as a whole."""
    return DataError(Finding(message, file=str(path), line=line, hint=hint))


def first_bytes(path: Path) -> bytes:
    """The file's first bytes.

    Raises
    ------
    DataError
        If there is no such file, it is not a regular one, cannot be read, or is empty.
    """
    with _reading(path):
        if path.is_dir():
            raise failure(path, "is a directory: expected a trace file")
        if not path.exists():
            raise failure(path, "no such file", _similar(path))
        if not path.is_file():
            raise failure(path, "is not a regular file: a trace is read twice, so it cannot be a pipe")
        with path.open("rb") as file:
            start = file.read(8)
    if not start:
        raise failure(path, "is empty")
    return start


def _similar(path: Path) -> str:
    """Hint that names a file of the same folder with nearly the same name."""
    stem = path.name.split(".")[0]
    folder = path.parent
    found = sorted(p.name for p in folder.glob(f"{stem}*"))[:3] if stem.isascii() and stem.isidentifier() else []
    if found:
        return f"in the same folder: {', '.join(found)}"
    return "paths are relative to the scenario file" if folder.is_dir() else f"there is no folder {folder} either"


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Tell everything that can go wrong while reading."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise failure(path, f"is not UTF-8 text ({error.reason})", "save it as UTF-8") from None
    except EOFError:
        raise failure(path, "is cut off: the compressed data ends too early", "fetch or compress it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise failure(path, f"is not a sound gzip file ({error})", "fetch or compress it again") from None
    except OSError as error:
        raise failure(path, f"cannot be read: {error.strerror or error}") from None


def lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 text file; gzip is seen by its first bytes.

    Raises
    ------
    DataError
        If it cannot be read as such, at the start or later.
    """
    start = first_bytes(path)
    if start.startswith(PARQUET):
        raise failure(path, "is a Parquet file, not text", "set workload.format: parquet")
    for magic, what in _FOREIGN.items():
        if start.startswith(magic):
            raise failure(path, f"is {what}", "unpack it first; plain text and gzip are read as they are")
    packed = start.startswith(_GZIP)
    if path.suffix == ".gz" and not packed:
        raise failure(path, "is not a gzip file, although its name ends with .gz", "drop the .gz if it is plain text")
    with (
        _reading(path),
        gzip.open(path) if packed else path.open("rb") as raw,
        io.TextIOWrapper(raw, encoding="utf-8-sig") as text,
    ):
        yield from text


def fields(line: str) -> list[str]:
    """Fields of one line of CSV."""
    if '"' in line:
        return next(csv.reader([line]), [])
    return line.rstrip("\r\n").split(",")


def header(first: str) -> dict[str, int]:
    """Position of each column, by its name in lower case."""
    return {name.strip().lower(): place for place, name in enumerate(fields(first))}


def json_object(line: str) -> dict[str, Any]:
    """The object on one line of JSONL.

    Raises
    ------
    ValueError
        If there is none.
    """
    try:
        value = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deeply to be a trace's row") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} (column {error.colno})") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def integers(value: object, name: str) -> tuple[int, ...]:
    """A list of 64-bit integers, signed or not.

    Raises
    ------
    ValueError
        If it is not one.
    """
    if not isinstance(value, list):
        raise ValueError(f"{name} is missing" if value is None else f"{name} is not a list")
    if not value:
        return ()
    if set(map(type, value)) != {int}:
        raise ValueError(f"{name} holds something that is not a whole number")
    if min(value) < -(1 << 63) or max(value) >= 1 << 64:
        raise ValueError(f"{name} holds a number of more than 64 bits")
    return tuple(value)
