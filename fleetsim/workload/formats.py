"""Trace formats by name, how to recognise one, and a trace file opened by its format."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from fleetsim.errors import DataError, Finding, nearest
from fleetsim.workload.embedded import embedded_trace
from fleetsim.workload.readers import azure, bailian, burstgpt, mooncake, parquet, sharegpt, splitwise
from fleetsim.workload.readers.rows import BadRows, Row, checked, in_order
from fleetsim.workload.readers.source import PARQUET, failure, first_bytes, header, json_object, lines


@dataclass(frozen=True)
class Format:
    """How a kind of trace file is read and recognised."""

    read: Callable[[Path, BadRows], Iterator[Row]]
    kind: str
    """``csv``, ``jsonl`` or ``parquet``."""
    keys: tuple[frozenset[str], ...]
    """Sets of columns or keys, one of which must be there in full."""


FORMATS = {
    "azure": Format(azure.read, "csv", (azure.COLUMNS,)),
    "burstgpt": Format(burstgpt.read, "csv", (burstgpt.COLUMNS,)),
    "splitwise": Format(splitwise.read, "csv", tuple(map(frozenset, splitwise.FAMILIES))),
    "bailian": Format(bailian.read, "jsonl", (bailian.KEYS,)),
    "mooncake": Format(mooncake.read, "jsonl", (mooncake.KEYS,)),
    "sharegpt": Format(sharegpt.read, "jsonl", sharegpt.SHAPES),
    "parquet": Format(parquet.read, "parquet", (frozenset(parquet.NEEDED),)),
}
_JSONL_LINES = 50
"""Lines looked at for one that tells the format."""


def _match(kind: str, keys: set[str]) -> str | None:
    for name, known in FORMATS.items():
        if known.kind == kind and any(needed <= keys for needed in known.keys):
            return name
    return None


def detect_format(path: Path | str) -> str | None:
    """Name of the format that a file's first lines show, or None.

    Raises
    ------
    DataError
        If the file cannot be read at all.
    """
    path = Path(path)
    if first_bytes(path).startswith(PARQUET):
        return "parquet"
    start = list(islice(lines(path), _JSONL_LINES))
    if start and not start[0].lstrip().startswith("{"):
        found = _match("csv", set(header(start[0])))
        if found:
            return found
    for line in start:
        try:
            found = _match("jsonl", set(json_object(line)))
        except ValueError:
            continue
        if found:
            return found
    return None


def _header_error(path: Path, name: str) -> DataError | None:
    """Why a file cannot be of this format, judged by its first lines."""
    wanted = FORMATS[name]
    found = detect_format(path)
    if found == name or (found is None and wanted.kind == "jsonl" and _has_json(path)):
        return None
    needed = " or ".join(", ".join(sorted(keys)) for keys in wanted.keys)
    message = f"is not a trace of format {name}, which has {'columns' if wanted.kind == 'csv' else 'keys'} {needed}"
    if found:
        return failure(path, message, f"it looks like {found}: set workload.format: {found}")
    first = next(lines(path), "").strip()
    return failure(path, message, f"its first line is {first[:80]!r}", line=1)


def _has_json(path: Path) -> bool:
    for line in islice(lines(path), _JSONL_LINES):
        try:
            json_object(line)
        except ValueError:
            continue
        return True
    return False


@dataclass
class Scan:
    """What one pass over a trace found between two instants of its own time."""

    good: int = 0
    """Good rows of the whole file."""
    rows: int = 0
    """Those of them between the two instants."""
    first_s: float = 0.0
    """Arrival of the first row kept, on the trace's clock."""
    last_s: float = 0.0
    origin_s: float = 0.0
    """Arrival of the trace's first row."""
    turns: dict[Hashable, int] = field(default_factory=dict)
    """Rows of each session."""
    block_tokens: set[int] = field(default_factory=set)
    """Block sizes of the prompts' hashes."""
    counts_images: bool = False
    """Whether some row has images without saying how many tokens they are."""
    columns: set[str] = field(default_factory=set)
    """Optional fields of `Row` that some row has."""
    bad: BadRows = field(default_factory=BadRows)

    @property
    def span_s(self) -> float:
        """Time from the first row to the last."""
        return self.last_s - self.first_s

    @property
    def gap_s(self) -> float:
        """Mean time between rows."""
        return self.span_s / (self.rows - 1) if self.rows > 1 else 0.0


@dataclass(frozen=True)
class TraceFile:
    """A trace file whose format is known; every pass streams it."""

    path: Path
    format: str

    @classmethod
    def open(cls, path: Path, name: str) -> TraceFile:
        """The file at `path`, after a look at its first lines.

        Raises
        ------
        DataError
            If it cannot be read or is of another format.
        """
        if name not in FORMATS:
            raise DataError(Finding(f'unknown trace format "{name}"', hint=nearest(name, FORMATS, "formats")))
        error = _parquet_mismatch(path, name) or (None if name == "parquet" else _header_error(path, name))
        if error:
            raise error
        return cls(path, name)

    def rows(self, bad: BadRows | None = None) -> Iterator[Row]:
        """Good rows in order of arrival, on the trace's own clock; bad ones are noted in `bad`."""
        bad = BadRows() if bad is None else bad
        return checked(FORMATS[self.format].read(self.path, bad), bad)

    def scan(self, start_s: float = 0.0, end_s: float | None = None) -> Scan:
        """Read the whole file once and keep figures only.

        Raises
        ------
        DataError
            If it cannot be read to its end or has no good row.
        """
        bad = BadRows()
        scan = self._scan(self.rows(bad), start_s, end_s)
        if bad.late:
            scan = self._scan(in_order(self.rows()), start_s, end_s)
        scan.bad = bad
        if not scan.good and not bad.count:
            raise failure(self.path, "has no rows")
        return scan

    def _scan(self, rows: Iterator[Row], start_s: float, end_s: float | None) -> Scan:
        scan = Scan()
        for row in rows:
            if not scan.good:
                scan.origin_s = row.time_s
            scan.good += 1
            age = row.time_s - scan.origin_s
            if age < start_s or (end_s is not None and age >= end_s):
                continue
            if not scan.rows:
                scan.first_s = row.time_s
            scan.rows += 1
            scan.last_s = row.time_s
            if len(row) > _PLAIN and row[_PLAIN:] != _NOTHING:
                _note(scan, row)
        return scan

    def ordered(self, scan: Scan) -> Iterator[Row]:
        """Good rows by time; where `scan` found them out of order, numbered by their place in the file, from 0."""
        return in_order(self.rows()) if scan.bad.late else self.rows()

    def refuse(self, scan: Scan) -> None:
        """Raise the error that shows a scan's bad rows.

        Raises
        ------
        DataError
            Always.
        """
        raise scan.bad.refusal(self.path, binary=self.format == "parquet")


_PLAIN = Row._fields.index("hashes")
_NOTHING = tuple(Row._field_defaults.values())


def _note(scan: Scan, row: Row) -> None:
    """Remember which optional fields a row has."""
    if row.session is not None:
        scan.turns[row.session] = scan.turns.get(row.session, 0) + 1
    if row.hashes:
        scan.block_tokens.add(row.hash_tokens)
    if row.images and row.image_tokens < 0:
        scan.counts_images = True
    for name, value, default in zip(Row._fields[_PLAIN:], row[_PLAIN:], _NOTHING, strict=True):
        if value != default:
            scan.columns.add(name)


def _parquet_mismatch(path: Path, name: str) -> DataError | None:
    """Error for a Parquet file called text or the reverse."""
    is_parquet = first_bytes(path).startswith(PARQUET)
    if is_parquet and name != "parquet":
        return failure(path, f"is a Parquet file, not a trace of format {name}", "set workload.format: parquet")
    if name == "parquet" and not is_parquet:
        found = detect_format(path)
        hint = f"it looks like {found}: set workload.format: {found}" if found else ""
        return failure(path, "is not a Parquet file", hint)
    return None


def locate(text: str, base_dir: Path) -> Path:
    """Path of a trace named in a scenario file: relative to it, or ``embedded:NAME``."""
    prefix, found, name = text.partition("embedded:")
    return embedded_trace(name) if found and not prefix else base_dir / text
