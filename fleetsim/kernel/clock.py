"""The clock: SimPy's event queue with plain call-backs at absolute times. The only module that imports simpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from math import inf
from typing import Any

import simpy

ARRIVAL = 1
BOUNDARY = 2
SAMPLE = 3
"""Priorities at equal times: what arrives at an instant is seen by a step boundary then, and both by a sample taken then."""


class Timer:
    """One call-back at one time: the cheapest thing that SimPy's queue can hold beside its own events."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None] | None) -> None:
        self.callback = callback

    def cancel(self) -> None:
        """Make the timer do nothing; it stays in the queue until its time comes."""
        self.callback = None


class Clock:
    """A SimPy environment run by a loop that also knows timers, and counts what it runs.

    SimPy's own events and processes (made with `environment`) share the queue and its order with timers: by time, then priority,
    then order of scheduling.
    """

    __slots__ = ("arrival_s", "environment", "events", "ids", "now_s", "on_arrival", "queue")

    def __init__(self) -> None:
        environment: Any = simpy.Environment()
        self.environment = environment
        self.queue: list[tuple[float, int, int, Any]] = environment._queue
        self.ids: Iterator[int] = environment._eid
        self.now_s: float = 0.0
        """Current time [s]."""
        self.events: int = 0
        """Events run so far."""
        self.arrival_s: float = inf
        """When the next arrival of the one stream that is held beside the queue is due; `inf` if none."""
        self.on_arrival: Callable[[], None] | None = None
        """Takes that arrival and sets `arrival_s` to the next one's time."""

    def at(self, time_s: float, callback: Callable[[], None], priority: int = ARRIVAL) -> Timer:
        """Call `callback` at `time_s` (not before now); ties run by priority, then in the order in which they were set."""
        timer = Timer(callback)
        heappush(self.queue, (time_s, priority, next(self.ids), timer))
        return timer

    def run(self, until_s: float = inf) -> None:
        """Run until nothing is left to do or the next event lies after `until_s`; then the clock stands there.

        Arrivals come before everything else at the same instant.
        """
        queue, environment, on_arrival = self.queue, self.environment, self.on_arrival
        while True:
            time_s = queue[0][0] if queue else inf
            if self.arrival_s <= time_s:
                time_s = self.arrival_s
                if time_s == inf:
                    return
                if time_s > until_s:
                    break
                self.now_s = time_s
                self.events += 1
                environment._now = time_s
                assert on_arrival is not None
                on_arrival()
                continue
            if time_s > until_s:
                break
            self.now_s = time_s
            self.events += 1
            event = queue[0][3]
            if isinstance(event, Timer):
                heappop(queue)
                environment._now = time_s
                callback = event.callback
                if callback is not None:
                    callback()
            else:
                environment.step()
        self.now_s = until_s
