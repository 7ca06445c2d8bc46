"""The smallest of many counters."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush


class MinIndex:
    """Position of the smallest of many counters, kept up to date at a cost that does not grow with their number.

    A heap of (value, time of change, position) in which old entries are dropped when they surface; among equal values the one
    unchanged for longest comes first. Until somebody asks for the smallest there is no heap.
    """

    __slots__ = ("_heap", "_stamp", "_stamps", "values")

    def __init__(self, values: Sequence[int]) -> None:
        self.values = list(values)
        self._stamps = list(range(len(self.values)))
        self._heap: list[tuple[int, int, int]] = []
        self._stamp = len(self.values)

    def add(self, position: int, change: int) -> None:
        """Change one counter."""
        value = self.values[position] + change
        self.values[position] = value
        self._stamp += 1
        self._stamps[position] = self._stamp
        heap = self._heap
        if not heap:
            return
        heappush(heap, (value, self._stamp, position))
        if len(heap) > 8 * len(self.values) + 64:
            self._heap = self._entries()

    def smallest(self) -> int:
        """Position of the smallest counter."""
        heap, stamps = self._heap, self._stamps
        if not heap:
            heap = self._heap = self._entries()
        while stamps[heap[0][2]] != heap[0][1]:
            heappop(heap)
        return heap[0][2]

    def _entries(self) -> list[tuple[int, int, int]]:
        stamps = self._stamps
        heap = [(value, stamps[position], position) for position, value in enumerate(self.values)]
        heapify(heap)
        return heap
