"""The smallest of many counters."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush


class MinIndex:
    """Position of the smallest of many counters, kept up to date at a cost that does not grow with their number.

    A heap of (value, time of change, position) in which old entries are dropped when they surface; among equal values the one
    unchanged for longest comes first.
    """

    __slots__ = ("_heap", "_stamp", "_stamps", "values")

    def __init__(self, values: Sequence[int]) -> None:
        self.values = list(values)
        self._stamps = list(range(len(self.values)))
        self._heap = [(value, position, position) for position, value in enumerate(self.values)]
        heapify(self._heap)
        self._stamp = len(self.values)

    def add(self, position: int, change: int) -> None:
        """Change one counter."""
        value = self.values[position] + change
        self.values[position] = value
        self._stamp += 1
        self._stamps[position] = self._stamp
        heap = self._heap
        heappush(heap, (value, self._stamp, position))
        if len(heap) > 8 * len(self.values) + 64:
            stamps = self._stamps
            self._heap = [entry for entry in heap if stamps[entry[2]] == entry[1]]
            heapify(self._heap)

    def smallest(self) -> int:
        """Position of the smallest counter."""
        heap, stamps = self._heap, self._stamps
        while stamps[heap[0][2]] != heap[0][1]:
            heappop(heap)
        return heap[0][2]
