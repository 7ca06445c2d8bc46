"""Kubernetes' horizontal pod autoscaler, version 2."""

from __future__ import annotations

from collections import deque
from math import ceil
from typing import Annotated, ClassVar, Literal

from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.scaling.api import PoolState

_Seconds = Annotated[float, Field(ge=0, json_schema_extra={"unit": "s"})]


class HpaConfig(PolicyConfig):
    """Parameters of the autoscaler; defaults as in Kubernetes."""

    metric: Literal["concurrency", "waiting", "kv_used", "busy"] = "concurrency"
    """What is held at its target: requests in the pool or waiting for it, requests in queues, the mean share of KV blocks in use,
    or the mean share of time in which steps run."""
    target: Annotated[float, Field(gt=0)] = 32.0
    """Value of the metric per replica: a number of requests, or a share for `kv_used` and `busy`."""
    period_s: Annotated[float, Field(gt=0, json_schema_extra={"unit": "s"})] = 15.0
    """Time between two looks."""
    tolerance_ratio: Annotated[float, Field(ge=0, json_schema_extra={"unit": "ratio"})] = 0.1
    """Deviation of the metric from its target below which nothing changes."""
    down_window_s: _Seconds = 300.0
    """Stabilisation: of all recommendations within this time, the highest counts on the way down."""
    up_window_s: _Seconds = 0.0
    """The same on the way up, where the lowest counts."""
    up_ratio: Annotated[float, Field(ge=0, json_schema_extra={"unit": "ratio"})] = 1.0
    """Replicas added within `policy_period_s` at most, as a share of those there at its beginning; or …"""
    up_replicas: Annotated[int, Field(ge=0, strict=True, json_schema_extra={"unit": "count"})] = 4
    """… this many, whichever is more."""
    down_ratio: Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})] = 1.0
    """Replicas removed within `policy_period_s` at most, as a share of those there at its beginning."""
    policy_period_s: _Seconds = 15.0
    """Time over which additions and removals are counted."""


class Hpa:
    """As many replicas as bring a metric per replica to its target, in the manner of Kubernetes.

    Rule: each period ``recommended = ceil(replicas * metric / target)``, where `replicas` are those asked for; nothing changes
    while ``abs(metric / target - 1) <= tolerance_ratio``. Replicas that are not ready count as if they had no load where that would
    add more, and as at the target where it would remove some. On the way down the highest recommendation of the last
    `down_window_s` counts, on the way up the lowest of the last `up_window_s`; then the change is limited by what was added or
    removed within the last `policy_period_s`. The pool's `min_replicas` of 0 is never reached: a metric of no replica says nothing.

    References
    ----------
    Kubernetes documentation, "Horizontal Pod Autoscaling", autoscaling/v2: algorithm details and scaling policies.
    """

    Config: ClassVar = HpaConfig

    def __init__(self, config: HpaConfig, rng: Generator, pool: PoolState) -> None:
        self.period_s = config.period_s
        self._config = config
        self._pool = pool
        self._recommended: deque[tuple[float, int]] = deque()
        self._changes: deque[tuple[float, int]] = deque()

    def tick(self) -> int:
        """Replicas wanted."""
        config, pool = self._config, self._pool
        now_s, current = pool.now_s, max(pool.wanted, 1)
        recommended = self._recommendation(current)
        self._recommended.append((now_s, recommended))
        longest_s = max(config.down_window_s, config.up_window_s)
        while self._recommended[0][0] < now_s - longest_s:
            self._recommended.popleft()
        highest = max(n for at_s, n in self._recommended if at_s >= now_s - config.down_window_s)
        lowest = min(n for at_s, n in self._recommended if at_s >= now_s - config.up_window_s)
        wanted = current
        if lowest > current:
            wanted = lowest
        elif highest < current:
            wanted = highest
        wanted = pool.clip(max(self._limited(wanted, current), 1))
        if wanted != pool.wanted:
            self._changes.append((now_s, wanted - pool.wanted))
        return wanted

    def _recommendation(self, current: int) -> int:
        config, pool = self._config, self._pool
        ready = max(pool.ready, 1)
        if config.metric in ("kv_used", "busy"):
            per_replica = pool.kv_used_ratio if config.metric == "kv_used" else pool.busy_ratio
        else:
            total = pool.concurrency if config.metric == "concurrency" else pool.waiting + pool.waiting_outside
            per_replica = total / ready
        ratio = per_replica / config.target
        unready = max(current - ready, 0)
        if unready:  # they have no load if more are to be added, and just the right one if some are to go
            ratio = per_replica * ready / config.target / current if ratio > 1.0 else ratio
            if ratio < 1.0 and per_replica < config.target:
                ratio = (per_replica * ready + config.target * unready) / config.target / current
        if abs(ratio - 1.0) <= config.tolerance_ratio:
            return current
        return ceil(current * ratio - 1e-9)

    def _limited(self, wanted: int, current: int) -> int:
        """What the scaling policies allow of a change."""
        config, now_s = self._config, self._pool.now_s
        while self._changes and self._changes[0][0] <= now_s - config.policy_period_s:
            self._changes.popleft()
        added = sum(change for _, change in self._changes if change > 0)
        removed = -sum(change for _, change in self._changes if change < 0)
        if wanted > current:
            begin = current - added
            most = begin + max(ceil(begin * config.up_ratio), config.up_replicas)
            return max(min(wanted, most), current)
        begin = current + removed
        least = begin - int(begin * config.down_ratio)
        return min(max(wanted, least), current)
