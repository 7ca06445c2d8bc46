"""What every trace reader yields, and the checks that all of them share."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import isfinite
from pathlib import Path
from typing import NamedTuple, Protocol

from fleetsim.errors import DataError, Finding

MAX_TOKENS = 2**31 - 1
"""A longer prompt or output is taken for a mistake."""
JITTER_S = 0.01
"""Recorders with several processes mix neighbouring rows; up to this the order is put right, beyond it a row is bad."""
SHOWN = 10
"""Bad rows told one by one; the rest are counted."""


class Row(NamedTuple):
    """One request of a trace file."""

    number: int
    """Row in the file; of a text file, its line."""
    time_s: float
    """Arrival on the trace's own clock."""
    prompt_tokens: int
    output_tokens: int
    hashes: tuple[int, ...] = ()
    """Hash of each block of the prompt; the last may name a partial block."""
    hash_tokens: int = 0
    """Tokens per hash."""
    session: Hashable = None
    pause_s: float | None = None
    """Recorded time from the end of the session's turn before to this one (user thinking or tools at work)."""
    klass: str | None = None
    tenant: str | None = None
    model: str | None = None
    images: int = 0
    image_tokens: int = -1
    """Of the prompt, what an encoder makes of the images; -1 where the trace does not say."""


@dataclass
class BadRows:
    """Rows that cannot be read: all counted, the first ones kept."""

    count: int = 0
    first: list[tuple[int, str]] = field(default_factory=list)
    late: int = 0
    """Good rows that stand up to `JITTER_S` after one that arrived later."""

    def add(self, number: int, message: str) -> None:
        """Note that row `number` is bad."""
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append((number, message))

    def refusal(self, path: Path, binary: bool) -> DataError:
        """Error that shows the first bad rows and how to go on without them."""
        findings = [
            Finding(message, path=f"row {number}", file=str(path), line=None if binary else number)
            for number, message in self.first
        ]
        more = f" ({self.count - len(self.first)} more than shown)" if self.count > len(self.first) else ""
        rows = "1 row" if self.count == 1 else f"{self.count} rows"
        summary = f"{rows} cannot be read{more}"
        findings.append(
            Finding(
                summary,
                file=str(path),
                hint="to run the others: workload.on_bad_rows: skip (trace convert: --skip-bad-rows)",
            )
        )
        return DataError(findings)


class Reader(Protocol):
    """Module of a trace format."""

    def read(self, path: Path, bad: BadRows) -> Iterator[Row]:
        """Rows of the file in its own order; those that cannot be understood go to `bad`."""
        ...


def checked(rows: Iterator[Row], bad: BadRows) -> Iterator[Row]:
    """Rows whose numbers make sense: at least one token each way, time finite, not negative and not going back.

    They come as they stand, so that where `bad` counts late rows, times may go back by up to `JITTER_S`.
    """
    last_s, first = 0.0, True
    for row in rows:
        time_s = row[1]
        if not (0 < row[2] <= MAX_TOKENS and 0 < row[3] <= MAX_TOKENS):
            bad.add(row[0], _complaint(row, last_s))
        elif last_s <= time_s < _FOREVER:
            last_s, first = time_s, False
            yield row
        elif max(0.0, last_s - JITTER_S) <= time_s < last_s:
            bad.late += 1
            yield row
        else:
            bad.add(row[0], _complaint(row, None if first else last_s))


def in_order(rows: Iterable[Row]) -> Iterator[Row]:
    """Rows by time, where they stand at most `JITTER_S` out of order; each is numbered by its place, from 0."""
    held: list[tuple[float, int, Row]] = []
    newest_s = 0.0
    for place, row in enumerate(rows):
        newest_s = max(newest_s, row.time_s)
        heappush(held, (row.time_s, place, row))
        while held[0][0] < newest_s - JITTER_S:
            _, number, first = heappop(held)
            yield first._replace(number=number)
    while held:
        _, number, first = heappop(held)
        yield first._replace(number=number)


_FOREVER = 1e12
"""Seconds: later than any trace."""


def _complaint(row: Row, last_s: float | None) -> str:
    for name, tokens in (("prompt tokens", row.prompt_tokens), ("output tokens", row.output_tokens)):
        if not 0 < tokens <= MAX_TOKENS:
            return f"{name}: {_shown(tokens)} is not between 1 and {MAX_TOKENS}"
    if not isfinite(row.time_s):
        return f"time: {row.time_s} is not a finite number"
    if row.time_s >= _FOREVER:
        return f"time: {row.time_s:g} s is beyond any trace"
    if last_s is None:
        return f"time: {row.time_s:g} s is negative"
    return f"time goes back by {last_s - row.time_s:g} s: rows must be in order of arrival"


def whole(value: object, name: str) -> int:
    """`value` as a whole number.

    Raises
    ------
    ValueError
        If it is not one; the message names the field.
    """
    if type(value) is int:
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            return _whole_text(value, name)
    raise ValueError(f"{name}: {_shown(value)} is not a whole number" if value is not None else f"{name} is missing")


def _whole_text(text: str, name: str) -> int:
    """A whole number written as ``374.0``."""
    if not text.strip():
        raise ValueError(f"{name} is missing")
    number = decimal(text, name)
    if not number.is_integer():
        raise ValueError(f"{name}: {_shown(text)} is not a whole number")
    return int(number)


def decimal(value: object, name: str) -> float:
    """`value` as a finite float.

    Raises
    ------
    ValueError
        If it is not a number or not finite; the message names the field.
    """
    if value is None or value == "":
        raise ValueError(f"{name} is missing")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{name}: {_shown(value)} is not a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{name}: {_shown(value)} is not a number") from None
    if not isfinite(number):
        raise ValueError(f"{name}: {_shown(value)} is not a finite number")
    return number


def label(value: object) -> str | None:
    """A name such as a model's or a tenant's; nothing where the field is empty."""
    return None if value is None or value == "" else str(value)


def images_of(images: object, tokens: object, prompt_tokens: int) -> tuple[int, int]:
    """Images of a row and their tokens (-1: not known) from two cells, either of which may be empty.

    Raises
    ------
    ValueError
        If they are no whole numbers, below zero, or more tokens than the prompt has.
    """
    known = tokens is not None and tokens != ""
    seen = whole(tokens, "image_tokens") if known else -1
    count = whole(images, "images") if images is not None and images != "" else int(seen > 0)
    if not 0 <= count <= MAX_TOKENS:
        raise ValueError(f"images: {_shown(count)} is not between 0 and {MAX_TOKENS}")
    if known and not 0 <= seen <= prompt_tokens:
        raise ValueError(f"image_tokens: {_shown(seen)} is not between 0 and the prompt's {prompt_tokens} tokens")
    if known and (seen == 0) != (count == 0):
        raise ValueError(f"images: {count} images with {seen} image_tokens")
    return count, seen if count else -1


def key(value: object) -> int | str | None:
    """What tells a session from others."""
    return value if isinstance(value, int) else label(value)


def _shown(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 64:
        return "a number of more than 64 bits"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
