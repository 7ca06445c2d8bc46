"""The clock: SimPy's event queue with plain call-backs at absolute times. The only module that imports simpy."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

import simpy

ARRIVAL, BOUNDARY = 1, 2
"""Priorities at equal times: whatever arrives at an instant is seen by the step boundary at the same instant."""


class Timer:
    """One call-back at one time: the cheapest thing that SimPy's queue can hold beside its own events."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[Timer], None] | None) -> None:
        self.callback = callback

    def cancel(self) -> None:
        """Make the timer do nothing; it stays in the queue until its time comes."""
        self.callback = None


class Clock(simpy.Environment):
    """A SimPy environment whose loop counts events and which schedules call-backs at absolute times.

    SimPy's own events and processes can be used beside timers; they share the queue and its order: time, priority, order of
    scheduling.
    """

    def __init__(self) -> None:
        super().__init__()
        self.events = 0
        """Events run so far."""

    @property
    def now_s(self) -> float:
        """Current time [s]."""
        return float(self._now)

    def at(self, time_s: float, callback: Callable[[Timer], None], priority: int = ARRIVAL) -> Timer:
        """Call `callback` at `time_s` (not before now); ties run by priority, then in the order in which they were set."""
        timer = Timer(callback)
        heappush(self._queue, (time_s, priority, next(self._eid), timer))  # type: ignore[misc]
        return timer

    def step(self) -> None:
        """Run the next event."""
        if self._queue and isinstance(self._queue[0][3], Timer):
            self._now, _, _, timer = heappop(self._queue)  # type: ignore[assignment]
            if timer.callback is not None:  # type: ignore[attr-defined]
                timer.callback(timer)  # type: ignore[attr-defined]
        else:
            super().step()
        self.events += 1

    def run_all(self, until_s: float = float("inf")) -> None:
        """Run until nothing is left to do or the next event lies after `until_s`; then the clock stands there."""
        queue: list[Any] = self._queue
        events = self.events
        try:
            while queue:
                if queue[0][0] > until_s:
                    self._now = until_s
                    return
                event = queue[0][3]
                if type(event) is Timer:
                    self._now = heappop(queue)[0]
                    events += 1
                    callback = event.callback
                    if callback is not None:
                        callback(event)
                else:
                    self.events = events
                    self.step()
                    events = self.events
        finally:
            self.events = events
