"""Knative's pod autoscaler, with panic mode."""

from __future__ import annotations

from math import ceil, floor, inf
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.scaling.api import PoolState
from fleetsim.scaling.behaviour import Period, Seconds
from fleetsim.scaling.metrics import Recent


class KpaConfig(PolicyConfig):
    """Parameters of the autoscaler; defaults as in Knative."""

    concurrency: Annotated[float, Field(gt=0, json_schema_extra={"unit": "count"})] | None = None
    """Requests that one replica may have at a time (``containerConcurrency``); default: as many as it runs. Knative's own default,
    where a service says none, is 100."""
    utilization: Annotated[float, Field(gt=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.7
    """Share of these that is aimed at."""
    period_s: Period = 2.0
    """Time between two looks."""
    stable_window_s: Period = 60.0
    """Time over which the number of requests is averaged."""
    panic_window_ratio: Annotated[float, Field(gt=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.1
    """Of that time, the last part, whose average counts in panic."""
    panic_threshold: Annotated[float, Field(gt=1, json_schema_extra={"unit": "ratio"})] = 2.0
    """Panic begins when the panic window asks for this many times the replicas that are ready."""
    up_rate: Annotated[float, Field(gt=1, json_schema_extra={"unit": "ratio"})] = 1000.0
    """Most replicas per replica that is ready."""
    down_rate: Annotated[float, Field(gt=1, json_schema_extra={"unit": "ratio"})] = 2.0
    """Fewest are the ready ones over this."""
    down_delay_s: Seconds = 0.0
    """Of all that was wanted within this time, the most counts on the way down."""
    zero_grace_s: Seconds = 30.0
    """Time for which no replica must have been wanted before ."""


class Kpa:
    """As many replicas as the average number of requests needs, with a short window that takes over when load jumps.

    Rule: with `target` requests per replica (`utilization` of `concurrency`) and the requests in the pool or waiting for it,
    averaged over the stable and the panic window, each is ``ceil(average / target)``, brought between ``floor(ready / down_rate)``
    and ``ceil(up_rate * ready)``, where `ready` is at least 1. Panic begins, or goes on, while what the panic window asks for, not
    yet brought into these limits, is `panic_threshold` times `ready` or more; it ends when that has not been so for a stable
    window. In panic the larger of both counts, and never less than the most of this panic. It starts in panic if there is more than
    one replica. The last replica goes after `zero_grace_s` of nothing wanted, if the pool may have none; the first one comes at the
    next look (Knative's activator asks for it at once). Target burst capacity only decides who holds a queue, which is the
    gateway here. Averages are of the counts at each look, where Knative's proxies measure all the time.

    References
    ----------
    knative/serving, pkg/autoscaler/scaling/autoscaler.go.
    """

    Config: ClassVar = KpaConfig

    def __init__(self, config: KpaConfig, rng: Generator, pool: PoolState) -> None:
        self.period_s = config.period_s
        self._config = config
        self._pool = pool
        self._target = config.utilization * (config.concurrency or pool.slots)
        self._stable = Recent(config.stable_window_s)
        self._panic = Recent(config.stable_window_s * config.panic_window_ratio)
        self._delayed = Recent(config.down_delay_s or config.period_s * 0.5)
        self._panic_s: float | None = None
        """When it was over the threshold last; None without panic."""
        self._most = 0
        """Most replicas of this panic."""
        self._idle_since_s = inf
        self._begun = False

    def tick(self) -> int:
        """Replicas wanted."""
        config, pool, now_s = self._config, self._pool, self._pool.now_s
        for window in (self._stable, self._panic):
            window.add(now_s, float(pool.concurrency))
        if not self._begun:
            self._begun = True
            if pool.ready > 1:
                self._panic_s, self._most = now_s, pool.ready
        ready = max(pool.ready, 1)
        least, most = floor(ready / config.down_rate), ceil(config.up_rate * ready)
        stable, panic = (ceil(window.mean / self._target - 1e-9) for window in (self._stable, self._panic))
        if panic / ready >= config.panic_threshold:
            self._panic_s = now_s
        elif self._panic_s is not None and now_s > self._panic_s + config.stable_window_s:
            self._panic_s, self._most = None, 0
        wanted = min(max(stable, least), most)
        if self._panic_s is not None:
            self._most = wanted = max(wanted, min(max(panic, least), most), self._most)
        self._delayed.add(now_s, float(wanted))
        return pool.clip(self._not_yet_zero(int(self._delayed.maximum)))

    def _not_yet_zero(self, wanted: int) -> int:
        """The last replica stays for a while."""
        now_s = self._pool.now_s
        if wanted:
            self._idle_since_s = inf
            return wanted
        self._idle_since_s = min(self._idle_since_s, now_s)
        if self._pool.wanted == 0 or now_s - self._idle_since_s >= self._config.zero_grace_s:
            return 0
        return 1
