"""Kubernetes' horizontal pod autoscaler, version 2."""

from __future__ import annotations

from math import ceil
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.scaling.api import PoolState
from fleetsim.scaling.behaviour import Behaviour, BehaviourConfig, Period, Ratio
from fleetsim.scaling.metrics import Metric, per_replica


class HpaConfig(BehaviourConfig):
    """Parameters of the autoscaler; defaults as in Kubernetes."""

    metric: Metric = "concurrency"
    """What is held at its target: requests in the pool or waiting for it, requests in queues, the mean share of KV blocks in use,
    or the mean share of time in which steps run."""
    target: Annotated[float, Field(gt=0)] = 32.0
    """Value of the metric per replica: a number of requests, or a share for `kv_used` and `busy`."""
    period_s: Period = 15.0
    """Time between two looks."""
    tolerance_ratio: Ratio = 0.1
    """Deviation of the metric from its target below which nothing changes."""


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
        self._behaviour = Behaviour(config, pool)

    def tick(self) -> int:
        """Replicas wanted."""
        current = max(self._pool.wanted, 1)
        return self._behaviour.follow(self._recommendation(current), current)

    def _recommendation(self, current: int) -> int:
        config, pool = self._config, self._pool
        ready = max(pool.ready, 1)
        value = per_replica(pool, config.metric)
        ratio = value / config.target
        unready = max(current - ready, 0)
        if unready:  # they have no load if more are to be added, and just the right one if some are to go
            ratio = value * ready / config.target / current if ratio > 1.0 else ratio
            if ratio < 1.0 and value < config.target:
                ratio = (value * ready + config.target * unready) / config.target / current
        if abs(ratio - 1.0) <= config.tolerance_ratio:
            return current
        return ceil(current * ratio - 1e-9)
