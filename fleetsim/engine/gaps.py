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


EDGES_S = [FLOOR_S * exp(bucket / PER_E) for bucket in range(BUCKETS + 1)]
"""Lower edge of each bucket [s], and the upper one of the last."""


def edge_s(bucket: int) -> float:
    """Lower edge of a bucket [s]."""
    return EDGES_S[bucket]


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
        last_s = first_s + slope_s * (steps - 1)
        self.total_s += batch * steps * 0.5 * (first_s + last_s)
        counts, bucket, done = self.counts, _bucket(first_s), 0
        while bucket < BUCKETS - 1 and last_s >= EDGES_S[bucket + 1]:
            # steps whose gaps lie below the next edge
            edge = EDGES_S[bucket + 1]
            below = min(max(int((edge - first_s) / slope_s) + 1, done), steps)
            while below > done and first_s + slope_s * (below - 1) >= edge:
                below -= 1
            while below < steps and first_s + slope_s * below < edge:
                below += 1
            counts[bucket] += (below - done) * batch
            done = below
            bucket += 1
        counts[bucket] += (steps - done) * batch


def _bucket(gap_s: float) -> int:
    """Bucket whose edges enclose a gap."""
    if gap_s <= FLOOR_S:
        return 0
    bucket = int(log(gap_s / FLOOR_S) * PER_E)
    if bucket >= BUCKETS:
        return BUCKETS - 1
    if gap_s < EDGES_S[bucket]:
        return bucket - 1
    return bucket + 1 if gap_s >= EDGES_S[bucket + 1] and bucket + 1 < BUCKETS else bucket


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
        maxima, numbers, number = self.maxima, self.numbers, self.number
        while maxima and maxima[-1] <= value:
            maxima.pop()
            numbers.pop()
        maxima.append(value)
        numbers.append(number)
        self.number = number + 1

    def since(self, mark: int) -> float:
        """Largest value pushed since `number` was `mark`; 0 if there is none."""
        at = bisect_left(self.numbers, mark)
        return self.maxima[at] if at < len(self.maxima) else 0.0

    def forget_before(self, mark: int) -> None:
        """Drop what no mark from `mark` on can ask for."""
        at = bisect_left(self.numbers, mark)
        del self.numbers[:at], self.maxima[:at]
