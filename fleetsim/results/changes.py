"""What differs between two resolved scenarios, field by field."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

IGNORED = ("name", "description", "seed")
"""Fields that make no other system."""
ABSENT = "–"


@dataclass(frozen=True, slots=True)
class Change:
    """A field with two values."""

    path: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.path}: {self.old} -> {self.new}"


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Fields of two resolved scenarios that differ, with both values; a dash where one does not have the field."""
    plain = [{key: value for key, value in scenario.items() if key not in IGNORED} for scenario in (old, new)]
    return list(_changes("", *plain))


def _changes(path: str, old: Any, new: Any) -> Iterator[Change]:
    if old == new:
        return
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in (*old, *(key for key in new if key not in old)):
            yield from _changes(f"{path}.{key}" if path else str(key), old.get(key, ABSENT), new.get(key, ABSENT))
    elif isinstance(old, list) and isinstance(new, list) and _nested(old + new):
        for place in range(max(len(old), len(new))):
            pair = (side[place] if place < len(side) else ABSENT for side in (old, new))
            yield from _changes(f"{path}[{place}]", *pair)
    else:
        yield Change(path, _text(old), _text(new))


def _nested(values: list[Any]) -> bool:
    return any(isinstance(value, Mapping) for value in values)


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}…"
