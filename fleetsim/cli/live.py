"""What each pool of a run is doing, on stderr while it runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fleetsim.cli.progress import clock_text
from fleetsim.units import show

if TYPE_CHECKING:
    from fleetsim.experiment.watch import Now, Watch

LINE_EVERY_S = 5.0
"""Where nobody can see a picture change: wall time between two lines [s]."""
MOST_POOLS = 20
"""Pools that are shown; of more, those with most to do."""


@contextmanager
def looking_on(enabled: bool) -> Iterator[Watch | None]:
    """Show the pools inside this block: a table that changes in a terminal, a line now and then elsewhere."""
    if not enabled:
        yield None
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines()
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield lambda now: live.update(_table(now), refresh=True)


class _Lines:
    def __init__(self) -> None:
        self._next_s = time.monotonic() + LINE_EVERY_S

    def __call__(self, now: Now) -> None:
        if time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + LINE_EVERY_S
        click.echo(line(now), err=True)


def line(now: Now) -> str:
    """A run on one line."""
    of = f" of {now.total:,}" if now.total else ""
    pools = [
        f"{pool.name}: {pool.replicas} replicas, {pool.running:,} running, {pool.waiting:,} waiting, "
        f"KV {pool.kv_used_ratio:.0%}, goodput {pool.goodput_per_s:.3g}/s, {show(pool.power_w, 'W', 3)}"
        for pool in now.pools[:MOST_POOLS]
    ]
    return f"live: simulated {clock_text(now.now_s)}, {now.done:,}{of} requests; {'; '.join(pools)}"


def _table(now: Now) -> Table:
    whole = Table.grid(padding=(0, 2))
    of = f" of {now.total:,}" if now.total else ""
    head = Table.grid(padding=(0, 2))
    head.add_row(
        ProgressBar(total=now.total, completed=now.done, width=20),
        Text(f"simulated {clock_text(now.now_s)}"),
        Text(f"{now.done:,}{of} requests"),
    )
    whole.add_row(head)
    pools = Table(box=None, pad_edge=False, header_style="bold")
    for i, title in enumerate(("pool", "replicas", "running", "waiting", "KV", "", "goodput", "power")):
        pools.add_column(title, justify="left" if i in (0, 5) else "right", no_wrap=True)
    shown = sorted(now.pools, key=lambda pool: -(pool.running + pool.waiting))[:MOST_POOLS]
    for pool in [pool for pool in now.pools if pool in shown]:
        pools.add_row(
            Text(pool.name),
            f"{pool.replicas:,}",
            f"{pool.running:,}",
            Text(f"{pool.waiting:,}", style="yellow" if pool.waiting > pool.running else ""),
            f"{pool.kv_used_ratio:.0%}",
            ProgressBar(total=1.0, completed=pool.kv_used_ratio, width=12),
            f"{pool.goodput_per_s:,.3g}/s",
            show(pool.power_w, "W", 3),
        )
    whole.add_row(pools)
    return whole
