"""Progress of a run on stderr, at most five times a second, and only where somebody watches."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

PERIOD_S = 0.2
"""Least time between two updates."""


class Report(Protocol):
    """What a run calls now and then."""

    def __call__(self, done_requests: int, total: int | None, now_s: float) -> None:
        """So many requests are done at this simulated time."""
        ...


@contextmanager
def watching(enabled: bool) -> Iterator[Report | None]:
    """Show progress inside this block if it is wanted and stderr is a terminal."""
    console = Console(stderr=True)
    if not enabled or not console.is_terminal:
        yield None
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield _Display(live)


class _Display:
    def __init__(self, live: Live) -> None:
        self._live = live
        self._start = self._last = time.monotonic()

    def __call__(self, done_requests: int, total: int | None, now_s: float) -> None:
        now = time.monotonic()
        if now - self._last < PERIOD_S:
            return
        self._last = now
        rate = done_requests / (now - self._start)
        self._live.update(_line(done_requests, total, now_s, rate), refresh=True)


def _line(done: int, total: int | None, now_s: float, rate: float) -> Table:
    grid = Table.grid(padding=(0, 2))
    for _ in range(5):
        grid.add_column(no_wrap=True)
    of = f" of {total:,}" if total else ""
    left = f"{clock_text((total - done) / rate)} left" if total and rate > 0 else ""
    cells = [f"simulated {clock_text(now_s)}", f"{done:,}{of} requests", f"{rate:,.0f}/s", left]
    grid.add_row(ProgressBar(total=total, completed=done, width=14), *(Text(cell) for cell in cells))
    return grid


def clock_text(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
