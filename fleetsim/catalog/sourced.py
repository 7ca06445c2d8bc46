"""A published number: value, unit and source, converted once to the base unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fleetsim.errors import DataError, Finding, nearest
from fleetsim.units import parse

ASSUMED = "assumed"
"""Source of a value that nobody published; its note says why it was chosen."""

PLAIN = ("ratio", "count")
"""Dimensions without a conversion; the unit then only names what is counted."""


@dataclass(frozen=True, slots=True)
class Sourced:
    """A number from the catalogue."""

    value: float
    """In the base unit of its dimension."""
    published: float
    """As the source states it."""
    unit: str
    """Unit of `published`."""
    source: str
    """Key in ``models/SOURCES.yaml``, or ``assumed``."""
    note: str = ""
    """What a reader should know about it."""

    @property
    def is_assumed(self) -> bool:
        """Whether nobody published this value."""
        return self.source == ASSUMED


@dataclass(slots=True)
class Record:
    """A mapping from a catalogue file, read with all mistakes collected: call `finish` before using what was read."""

    content: Mapping[str, Any]
    file: Path
    path: str = ""
    findings: list[Finding] = field(default_factory=list)
    sourced: dict[str, Sourced] = field(default_factory=dict)
    parts: list[Record] = field(default_factory=list)
    """Every mapping read from the file, this one included."""
    known: set[str] = field(default_factory=set)
    """Keys that were asked for."""

    def __post_init__(self) -> None:
        self.parts.append(self)

    def get(self, key: str, default: Any = None) -> Any:
        """Value of a key, which is thereby known."""
        self.known.add(key)
        return self.content.get(key, default)

    def find(self, key: str, message: str) -> None:
        """Note a mistake at `key`."""
        self.findings.append(Finding(message, path=self._at(key), file=str(self.file)))

    def part(self, key: str) -> Record:
        """The mapping below `key`, sharing the findings."""
        inner = self.get(key)
        if not isinstance(inner, dict):
            self.find(key, "expected a mapping" if key in self.content else "is missing: expected a mapping")
            inner = {}
        return Record(inner, self.file, self._at(key), self.findings, self.sourced, self.parts)

    def text(self, key: str, *allowed: str, default: str | None = None) -> str:
        """Text, one of `allowed` if any are given."""
        value = self.get(key, default)
        if not isinstance(value, str) or (allowed and value not in allowed):
            expected = " or ".join(allowed) if allowed else "text"
            self.find(key, f"expected {expected}, found {value!r}")
            return ""
        return value

    def quantity(self, key: str, dimension: str) -> float:
        """Sourced number in the base unit of `dimension`: a key of `fleetsim.units.UNITS`, ``ratio`` or ``count``."""
        value = self.get(key)
        if not isinstance(value, dict):
            self.find(key, "is missing" if value is None else f"expected {{value, unit, source}}, found {value!r}")
            return 0.0
        return self._sourced(key, value, dimension)

    def bare(self, key: str, dimension: str = "ratio", default: str | None = None) -> float:
        """Number (or text with a unit) whose source stands once for the whole mapping, such as a constant of a fit."""
        value = self.get(key, default)
        try:
            number = float(str(value)) if dimension in PLAIN else parse(value, dimension)
        except ValueError as error:
            self.find(key, "is missing" if value is None else str(error))
            return 1.0
        if number < 0:
            self.find(key, f"must not be below 0, found {value!r}")
        return number

    def _sourced(self, key: str, entry: Mapping[str, Any], dimension: str) -> float:
        unknown = set(entry) - {"value", "unit", "source", "note"}
        if unknown:
            self.find(key, f"unknown keys: {', '.join(sorted(map(str, unknown)))}")
        number, unit, source = entry.get("value"), str(entry.get("unit", "")), entry.get("source")
        if isinstance(number, bool) or not isinstance(number, int | float) or number < 0:
            self.find(key, f"expected a number not below 0, found {number!r}")
            return 0.0
        if not isinstance(source, str):
            self.find(key, "has no source")
            source = ""
        if source == ASSUMED and not entry.get("note"):
            self.find(key, "is assumed without a note that says why")
        try:
            value = float(number) if dimension in PLAIN else parse(f"{number!r} {unit}", dimension)
        except ValueError as error:
            self.find(key, str(error))
            return 0.0
        self.sourced[self._at(key)] = Sourced(value, float(number), unit, source, str(entry.get("note", "")))
        return value

    def finish(self) -> None:
        """Raise DataError if anything was wrong, unknown keys included."""
        for part in self.parts:
            for key in part.content:
                if key not in part.known:
                    part.find(str(key), f"unknown key. {nearest(str(key), part.known, 'keys')}")
        if self.findings:
            raise DataError(self.findings)

    def _at(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key
