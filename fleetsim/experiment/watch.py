"""What a run is doing now, pool by pool, for whoever watches it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fleetsim.fleet.fleet import Fleet
from fleetsim.fleet.pool import Pool
from fleetsim.output.recorder import RequestLog, Sampler

PERIOD_S = 0.2
"""Least wall time between two looks: at most five a second [s]."""
MOST_SHARE = 0.02
"""Share of the wall time that looking and showing may take: after a slow look the next one waits the longer."""
WINDOW = 10
"""Looks over which goodput is averaged."""


@dataclass(frozen=True, slots=True)
class PoolNow:
    """One pool at one instant."""

    name: str
    replicas: int
    """Replicas that take requests."""
    running: int
    waiting: int
    kv_used_ratio: float
    goodput_per_s: float
    """Requests that ended within their objectives (that finished, without any) per simulated second, lately [1/s]."""
    power_w: float
    """Mean power of its accelerators in the last interval of the run's tables [W]."""


@dataclass(frozen=True, slots=True)
class Now:
    """A run at one instant."""

    now_s: float
    """Simulated time [s]."""
    done: int
    """Requests that ended and were written."""
    total: int | None
    """Of so many, if that is known."""
    pools: Sequence[PoolNow]


Watch = Callable[[Now], None]
"""Shown what a run is doing, at most five times a second."""


class Watcher:
    """Looks at a fleet now and then, when the run passes by.

    Looking changes nothing: it reads counts, schedules no event and ends no leap.

    Parameters
    ----------
    fleet, log, sampler
        What is looked at.
    total : int or None
        Requests of the run, if known.
    watch : callable
        Who is shown it.
    wall_s : callable
        The clock on the wall.
    """

    def __init__(
        self,
        fleet: Fleet,
        log: RequestLog,
        sampler: Sampler,
        total: int | None,
        watch: Watch,
        wall_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet, self._log, self._sampler, self._total = fleet, log, sampler, total
        self._watch, self._wall_s = watch, wall_s
        self._next_s = wall_s()
        self._past: deque[tuple[float, list[int]]] = deque(maxlen=WINDOW)
        self.looks = 0
        log.count_good()
        sampler.on_tick = self.pass_by

    def pass_by(self) -> None:
        """Look, unless the last look was just now."""
        began_s = self._wall_s()
        if began_s < self._next_s:
            return
        self._watch(self.look())
        self.looks += 1
        ended_s = self._wall_s()
        self._next_s = max(began_s + PERIOD_S, ended_s + (ended_s - began_s) / MOST_SHARE)

    def look(self) -> Now:
        """What the fleet is doing now."""
        now_s = self._fleet.clock.now_s
        good = self._log.good_by_pool()
        then_s, before = self._past[0] if self._past else (0.0, [0] * len(good))
        self._past.append((now_s, good))
        length_s = now_s - then_s
        rates = [(a - b) / length_s if length_s > 0 else 0.0 for a, b in zip(good, before, strict=True)]
        pools = [self._pool(pool, rates[pool.index], now_s) for pool in self._fleet.pools]
        return Now(now_s, self._log.written, self._total, pools)

    def _pool(self, pool: Pool, goodput_per_s: float, now_s: float) -> PoolNow:
        running = waiting = used = capacity = there = 0
        for replica in pool.replicas:
            there += replica.present
            waiting += sum(request.queued_s <= now_s for request in (*replica.inbox, *replica.held))
            for batch in replica.batches:
                running += len(batch.running)
                waiting += len(batch.waiting)
            if replica.present:
                used += replica.kv_used_blocks(now_s)
                capacity += sum(batch.cache.capacity for batch in replica.batches)
        ratio = min(max(used / capacity, 0.0), 1.0) if capacity else 0.0
        return PoolNow(pool.name, there, running, waiting, ratio, goodput_per_s, self._sampler.power_w[pool.index])
