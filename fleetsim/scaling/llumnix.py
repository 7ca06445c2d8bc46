"""Llumnix's autoscaling by freeness."""

from __future__ import annotations

from math import inf
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.scaling.api import PoolState
from fleetsim.scaling.behaviour import Period, Seconds

_Steps = Annotated[float, Field(json_schema_extra={"unit": "steps"})]


class LlumnixConfig(PolicyConfig):
    """Parameters of the autoscaler; the thresholds are those of the paper's experiments, the times are assumptions."""

    period_s: Period = 5.0
    """Time between two looks."""
    freeness_up: _Steps = 10.0
    """Freeness below which one is added [decode steps until memory is full]."""
    freeness_down: _Steps = 60.0
    """Freeness above which one is removed."""
    lasting_s: Seconds = 30.0
    """Time for which it must have been so, without a break, and since the last change."""


class Llumnix:
    """One more where replicas are about to run full, one fewer where they are far from it.

    Rule: the freeness of a replica is the tokens of memory that are free, less those that waiting requests will take, over the
    requests that run: decode steps until memory is full. Below `freeness_up` for `lasting_s` one is added, above `freeness_down`
    for as long one is removed; changes wait until the last one's replica is ready. Freeness is that of the pool as a whole, and a
    waiting request is taken to need as much as a running one holds; replicas without requests make it infinite only where no
    request runs at all. Let the pool's `drain` be `migrate` to empty replicas as the paper does.

    References
    ----------
    B. Sun et al., "Llumnix: Dynamic Scheduling for Large Language Model Serving", OSDI 2024.
    """

    Config: ClassVar = LlumnixConfig

    def __init__(self, config: LlumnixConfig, rng: Generator, pool: PoolState) -> None:
        self.period_s = config.period_s
        self._config = config
        self._pool = pool
        self._low_since_s = self._high_since_s = inf

    @property
    def freeness(self) -> float:
        """Decode steps until memory is full [steps]."""
        pool = self._pool
        capacity = pool.capacity_tokens * max(pool.ready, 1)
        used = pool.kv_used_ratio * capacity
        waiting = pool.waiting + pool.waiting_outside
        if not pool.running:
            return -inf if waiting else inf
        return (capacity - used - waiting * used / pool.running) / pool.running

    def tick(self) -> int:
        """Replicas wanted."""
        config, pool, now_s, free = self._config, self._pool, self._pool.now_s, self.freeness
        self._low_since_s = min(self._low_since_s, now_s) if free < config.freeness_up else inf
        self._high_since_s = min(self._high_since_s, now_s) if free > config.freeness_down else inf
        if pool.starting:
            return pool.wanted
        change = 0
        if now_s - self._low_since_s >= config.lasting_s or (not pool.wanted and pool.waiting_outside):
            change = 1
        elif now_s - self._high_since_s >= config.lasting_s and pool.wanted > 1:
            change = -1
        if change:
            self._low_since_s = self._high_since_s = inf
        return pool.clip(pool.wanted + change)
