"""How fast Kubernetes lets a number of replicas follow what is recommended."""

from __future__ import annotations

from collections import deque
from math import ceil
from typing import Annotated

from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.scaling.api import PoolState

Seconds = Annotated[float, Field(ge=0, json_schema_extra={"unit": "s"})]
Period = Annotated[float, Field(gt=0, json_schema_extra={"unit": "s"})]
Ratio = Annotated[float, Field(ge=0, json_schema_extra={"unit": "ratio"})]


class BehaviourConfig(PolicyConfig):
    """Stabilisation and policies; defaults as in Kubernetes."""

    down_window_s: Seconds = 300.0
    """Stabilisation: of all recommendations within this time, the highest counts on the way down."""
    up_window_s: Seconds = 0.0
    """The same on the way up, where the lowest counts."""
    up_ratio: Ratio = 1.0
    """Replicas added within `policy_period_s` at most, as a share of those there at its beginning; or …"""
    up_replicas: Annotated[int, Field(ge=0, strict=True, json_schema_extra={"unit": "count"})] = 4
    """… this many, whichever is more."""
    down_ratio: Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})] = 1.0
    """Replicas removed within `policy_period_s` at most, as a share of those there at its beginning."""
    policy_period_s: Seconds = 15.0
    """Time over which additions and removals are counted."""


class Behaviour:
    """Stabilises recommendations and limits changes, as `behavior` of a horizontal pod autoscaler says."""

    def __init__(self, config: BehaviourConfig, pool: PoolState) -> None:
        self._config = config
        self._pool = pool
        self._recommended: deque[tuple[float, int]] = deque()
        self._changes: deque[tuple[float, int]] = deque()

    def follow(self, recommended: int, current: int) -> int:
        """What becomes of a recommendation for `current` replicas; at least one."""
        config, pool, now_s = self._config, self._pool, self._pool.now_s
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
