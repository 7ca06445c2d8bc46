"""Files that appear under their names when they are complete, and large JSON written as it comes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

from fleetsim.errors import Finding, InputError

_CHUNK = 10_000
"""Elements of a list that are written at once."""


@contextmanager
def complete(path: Path) -> Iterator[IO[str]]:
    """A text file beside `path` that becomes `path` in the end, and vanishes if anything goes wrong."""
    if path.is_dir():
        raise InputError(Finding("is a folder", file=str(path), hint="name a file with --out"))
    part = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w", encoding="utf-8", newline="\n") as file:
            yield file
        part.replace(path)
    except OSError as error:
        raise InputError(Finding(f"cannot be written: {error.strerror}", file=str(path))) from error
    finally:
        part.unlink(missing_ok=True)


def text_of(value: Any) -> str:
    """A value as JSON; numbers that JSON lacks become null."""
    return json.dumps(finite(value), ensure_ascii=False, allow_nan=False)


def finite(value: Any) -> Any:
    """The same with null for numbers that are not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [finite(child) for child in value]
    return value


def write_object(file: IO[str], fields: Mapping[str, Any], lists: Mapping[str, Iterable[Any]]) -> None:
    """One JSON object: `fields` at once, then `lists` piece by piece."""
    body = json.dumps(finite(fields), ensure_ascii=False, allow_nan=False, indent=2)
    file.write(body[: body.rindex("}")].rstrip())
    for name, values in lists.items():
        file.write(f",\n  {json.dumps(name)}: [")
        separator, rest = "", iter(values)
        while chunk := list(islice(rest, _CHUNK)):
            file.write(separator + text_of(chunk)[1:-1])
            separator = ", "
        file.write("]")
    file.write("\n}\n")
