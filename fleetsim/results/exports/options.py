"""What exports can be asked for, and what they answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

START = datetime(2026, 1, 1, tzinfo=UTC)
"""Time of day that a simulation's second 0 becomes where a format has one, unless told otherwise."""
MAX_BYTES = 50_000_000
"""Size that a trace for viewers is kept below, unless told otherwise: what a browser opens without complaint."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a run is told."""

    start: datetime = START
    """Time of day of second 0, for formats that have times of day."""
    window: tuple[float, float] | None = None
    """Part of the run in traces for viewers [s]; all of it if None."""
    max_bytes: int = MAX_BYTES
    """Size of traces for viewers [B]."""

    def iso(self, time_s: float) -> str:
        """Time of day of a second of the run."""
        return (self.start + timedelta(seconds=time_s)).isoformat().replace("+00:00", "Z")

    def epoch_ns(self, time_s: float) -> int:
        """The same in nanoseconds since 1970."""
        return round(self.start.timestamp()) * 1_000_000_000 + round(time_s * 1e9)


@dataclass(frozen=True, slots=True)
class Written:
    """Files of an export, and what they leave out."""

    files: Sequence[Path]
    notes: Sequence[str] = field(default=())
