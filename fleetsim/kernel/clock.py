"""The clock: SimPy's event queue with plain call-backs at absolute times. The only module that imports simpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Any

import simpy

ARRIVAL, BOUNDARY = 1, 2
"""Priorities at equal times: whatever arrives at an instant is seen by the step boundary at the same instant."""

_NO_CALLBACKS: Sequence[Any] = ()


class Timer:
    """What SimPy's queue needs of an event, and no more: it is triggered from the start and calls one function when its time comes.

    One is made for nearly every simulated event; a `simpy.Event` costs twice as much.
    """

    __slots__ = ("_ok", "callbacks")

    def __init__(self, callback: Callable[[Any], None]) -> None:
        self.callbacks: Sequence[Callable[[Any], None]] | None = (callback,)
        self._ok = True

    def cancel(self) -> None:
        """Make the timer do nothing; it stays in the queue until its time comes."""
        self.callbacks = _NO_CALLBACKS


class Clock(simpy.Environment):
    """A SimPy environment whose loop counts events and which schedules call-backs at absolute times."""

    def __init__(self) -> None:
        super().__init__()
        self.events = 0

    @property
    def now_s(self) -> float:
        """Current time [s]."""
        return float(self._now)

    def at(self, time_s: float, callback: Callable[[Any], None], priority: int = ARRIVAL) -> Timer:
        """Call `callback` at `time_s` (not before now); ties run by priority, then in the order in which they were set."""
        timer = Timer(callback)
        heappush(self._queue, (time_s, priority, next(self._eid), timer))  # type: ignore[misc]
        return timer

    def run_all(self, until_s: float = float("inf")) -> None:
        """Run until nothing is left to do or the next event lies after `until_s`; then the clock stands there."""
        queue, events = self._queue, self.events
        try:
            while queue:
                if queue[0][0] > until_s:
                    self._now = until_s
                    return
                self._now, _, _, event = heappop(queue)
                callbacks, event.callbacks = event.callbacks, None  # type: ignore[assignment]
                events += 1
                for callback in callbacks:
                    callback(event)
                if not event._ok and not getattr(event, "_defused", False):
                    raise event._value
        finally:
            self.events = events
