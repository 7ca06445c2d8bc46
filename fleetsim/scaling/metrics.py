"""Metrics of a pool by which autoscalers steer."""

from __future__ import annotations

from collections import deque
from typing import Literal

from fleetsim.scaling.api import PoolState

Metric = Literal["concurrency", "waiting", "kv_used", "busy"]
"""Requests in the pool or waiting for it, requests in queues, the mean share of KV blocks in use, or the mean share of time in
which steps run."""


def per_replica(pool: PoolState, metric: Metric) -> float:
    """A metric per replica that is ready; of a pool without one, as if there were one."""
    if metric == "kv_used":
        return pool.kv_used_ratio
    if metric == "busy":
        return pool.busy_ratio
    return total(pool, metric) / max(pool.ready, 1)


def total(pool: PoolState, metric: Metric) -> float:
    """A metric summed over the replicas that are ready, with what waits for one to come."""
    if metric == "concurrency":
        return pool.concurrency
    if metric == "waiting":
        return pool.waiting + pool.waiting_outside
    return per_replica(pool, metric) * max(pool.ready, 1)


class Recent:
    """Samples of a metric within a window of time."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._samples: deque[tuple[float, float]] = deque()

    def add(self, now_s: float, value: float) -> None:
        """One more; those that are older than the window are forgotten."""
        self._samples.append((now_s, value))
        while self._samples[0][0] <= now_s - self._window_s:
            self._samples.popleft()

    @property
    def mean(self) -> float:
        """Of all in the window; 0 without one."""
        return sum([value for _, value in self._samples]) / len(self._samples) if self._samples else 0.0

    @property
    def maximum(self) -> float:
        """Of all in the window; 0 without one."""
        return max([value for _, value in self._samples], default=0.0)
