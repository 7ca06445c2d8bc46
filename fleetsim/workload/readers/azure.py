"""Azure LLM inference traces of 2023 and 2024: ``TIMESTAMP, ContextTokens, GeneratedTokens``.

The trace of requests with images has ``NumImages`` too; a column ``ImageTokens`` beside it is read where there is one.
https://github.com/Azure/AzurePublicDataset. Times have up to nine decimals, with or without an offset from UTC.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from fleetsim.workload.readers.rows import BadRows, Row, images_of, whole
from fleetsim.workload.readers.table import Table

COLUMNS = frozenset({"timestamp", "contexttokens", "generatedtokens"})
_NO_IMAGES = (0, -1)
_NS = 10**9
_EXAMPLE = "2023-11-16 18:15:46.6805900"
_SECOND = len("2023-11-16 18:15:46")
_MINUTE_NS = 60 * _NS
_PLACES = (_NS, 100_000_000, 10_000_000, 1_000_000, 100_000, 10_000, 1000, 100, 10, 1)
"""Nanoseconds of one unit in the last of so many decimals."""


class Clock:
    """Nanoseconds since 1970 of a date and time as text."""

    def __init__(self) -> None:
        self._second = ""
        self._ns = 0

    def ns(self, stamp: str) -> int:
        """Nanoseconds since 1970; a time without offset is UTC.

        Raises
        ------
        ValueError
            If `stamp` is not a date and time.
        """
        try:
            second = stamp[:_SECOND]
            if second != self._second:
                self._ns = int(datetime.fromisoformat(second).replace(tzinfo=UTC).timestamp()) * _NS
                self._second = second
            digits = stamp[_SECOND + 1 :]
            if digits.isdecimal() and stamp[_SECOND] == "." and len(digits) <= 9:
                return self._ns + int(digits) * _PLACES[len(digits)]
            return self._ns + _rest_ns(stamp[_SECOND:])
        except ValueError:
            shown = repr(stamp[:60])
            raise ValueError(f"timestamp: {shown} is not a date and time such as {_EXAMPLE}") from None


def _rest_ns(rest: str) -> int:
    """What stands after the seconds: a fraction, an offset from UTC, both or nothing."""
    if rest.endswith(("Z", "z")):
        rest = rest[:-1]
    offset = 0
    for sign in "+-":
        rest, found, zone = rest.partition(sign)
        if found:
            hours, _, minutes = zone.partition(":")
            minutes_east = int(hours) * 60 + int(minutes or 0)
            offset = (-minutes_east if sign == "+" else minutes_east) * _MINUTE_NS
            break
    if not rest:
        return offset
    digits = rest[1:10]
    if rest[0] != "." or not rest[1:].isdecimal():
        raise ValueError(f"{rest!r} after the seconds")
    return offset + int(digits) * _PLACES[len(digits)]


def read(path: Path, bad: BadRows) -> Iterator[Row]:
    """Rows with times from the first one that can be read."""
    table = Table(path, bad)
    when, prompt, output = (table.columns[name] for name in ("timestamp", "contexttokens", "generatedtokens"))
    shown, seen = table.place("numimages", "images"), table.place("imagetokens", "image_tokens")
    clock_ns = Clock().ns
    start_ns: int | None = None
    for number, cells in table.rows():
        try:
            prompt_tokens = whole(cells[prompt], "ContextTokens")
            output_tokens = whole(cells[output], "GeneratedTokens")
            time_ns = clock_ns(cells[when])
            images = _NO_IMAGES
            if shown is not None or seen is not None:
                images = images_of(
                    None if shown is None else cells[shown], None if seen is None else cells[seen], prompt_tokens
                )
        except ValueError as error:
            bad.add(number, str(error))
            continue
        if start_ns is None and prompt_tokens > 0 and output_tokens > 0:
            start_ns = time_ns
        time_s = 0.0 if start_ns is None else (time_ns - start_ns) / _NS
        if images is _NO_IMAGES:
            yield Row(number, time_s, prompt_tokens, output_tokens)
        else:
            yield Row(number, time_s, prompt_tokens, output_tokens, images=images[0], image_tokens=images[1])
