"""Inter-token gaps, kept as segments: a histogram, and the largest gap since any point. Per-token rows never exist."""

from __future__ import annotations

from bisect import bisect_left
from math import exp, log

FLOOR_S = 1e-5
"""Lower edge of the first bucket; shorter gaps fall into it."""
PER_E = 100.0
"""Buckets per factor e: each is 1 % wide."""
BUCKETS = 2100
"""Up to FLOOR_S * e^21 = 13,000 s; longer gaps fall into the last."""


def edge_s(bucket: int) -> float:
    """Lower edge of a bucket [s]."""
    return FLOOR_S * exp(bucket / PER_E)


class GapHistogram:
    """Counts of gaps in logarithmic buckets."""

    __slots__ = ("counts", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * BUCKETS
        self.total_s = 0.0

    def add(self, gap_s: float, count: int) -> None:
        """`count` gaps of `gap_s`."""
        self.counts[_bucket(gap_s)] += count
        self.total_s += gap_s * count

    def add_run(self, first_s: float, slope_s: float, steps: int, batch: int) -> None:
        """`batch` gaps in each of `steps` steps whose durations grow linearly from `first_s` by `slope_s` (≥ 0)."""
        low, high = _bucket(first_s), _bucket(first_s + slope_s * (steps - 1))
        self.total_s += batch * steps * (first_s + 0.5 * slope_s * (steps - 1))
        counts = self.counts
        if low == high:
            counts[low] += steps * batch
            return
        done = 0
        for bucket in range(low, high):
            # first step whose gap reaches the next bucket
            reached = min(max(int((edge_s(bucket + 1) - first_s) / slope_s) + 1, done), steps)
            while reached > done and _bucket(first_s + slope_s * (reached - 1)) > bucket:
                reached -= 1
            while reached < steps and _bucket(first_s + slope_s * reached) <= bucket:
                reached += 1
            counts[bucket] += (reached - done) * batch
            done = reached
        counts[high] += (steps - done) * batch


def _bucket(gap_s: float) -> int:
    if gap_s <= FLOOR_S:
        return 0
    bucket = int(log(gap_s / FLOOR_S) * PER_E)
    return bucket if bucket < BUCKETS else BUCKETS - 1


class RunningMaximum:
    """Largest value since any earlier mark, for values that come one at a time.

    A stack of falling maxima: entry i is the largest of the values numbered from just after entry i-1's number to its own.
    """

    __slots__ = ("maxima", "number", "numbers")

    def __init__(self) -> None:
        self.number = 0
        self.numbers: list[int] = []
        self.maxima: list[float] = []

    def push(self, value: float) -> None:
        """Take the next value."""
        maxima = self.maxima
        while maxima and maxima[-1] <= value:
            maxima.pop()
            self.numbers.pop()
        maxima.append(value)
        self.numbers.append(self.number)
        self.number += 1

    def since(self, mark: int) -> float:
        """Largest value pushed since `number` was `mark`; 0 if there is none."""
        at = bisect_left(self.numbers, mark)
        return self.maxima[at] if at < len(self.maxima) else 0.0

    def forget_before(self, mark: int) -> None:
        """Drop what no mark from `mark` on can ask for."""
        at = bisect_left(self.numbers, mark)
        del self.numbers[:at], self.maxima[:at]
