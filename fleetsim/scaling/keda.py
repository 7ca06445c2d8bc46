"""KEDA: from none to one and back by itself, and from one on by Kubernetes' autoscaler."""

from __future__ import annotations

from math import ceil, inf
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.scaling.api import PoolState
from fleetsim.scaling.behaviour import Behaviour, BehaviourConfig, Period, Ratio, Seconds
from fleetsim.scaling.metrics import Metric, total


class KedaConfig(BehaviourConfig):
    """Parameters of KEDA and of the autoscaler that it sets up; defaults as there."""

    metric: Metric = "waiting"
    """What is shared evenly: requests in queues (``vllm:num_requests_waiting``), those in the pool altogether, or a share times
    the replicas that are ready."""
    target: Annotated[float, Field(gt=0)] = 5.0
    """Value of the metric per replica; 1 to 10 waiting requests are common."""
    activation: Annotated[float, Field(ge=0)] = 0.0
    """The pool is active while the metric is above this value."""
    polling_s: Period = 30.0
    """Time between two looks at whether it is active."""
    cooldown_s: Seconds = 300.0
    """Time from when it was active last until it has no replica, where `min_replicas` is 0."""
    period_s: Period = 15.0
    """Time between two looks of the autoscaler at the number from one on."""
    tolerance_ratio: Ratio = 0.1
    """Deviation of the metric per replica from its target below which nothing changes."""


class Keda:
    """Kubernetes' event-driven autoscaler: to zero when nothing happens, and a queue shared evenly otherwise.

    Rule: every `polling_s` the metric is compared with `activation`. Without a replica, one is wanted once it is above. With some,
    none is wanted once it has not been above for `cooldown_s`, if the pool's `min_replicas` is 0. In between, each period
    ``ceil(metric / target)`` replicas, unless the metric per replica asked for is within `tolerance_ratio` of the target;
    stabilised and limited as with `hpa`. With the metric `waiting` a pool whose requests all run looks idle, as it does there:
    with `min_replicas` 0 it goes after `cooldown_s`, and what runs ends as `drain` says.

    References
    ----------
    KEDA documentation, "Scaling Deployments, StatefulSets & Custom Resources": polling interval, cool-down period, activation.
    """

    Config: ClassVar = KedaConfig

    def __init__(self, config: KedaConfig, rng: Generator, pool: PoolState) -> None:
        self.period_s = min(config.period_s, config.polling_s)
        self._config = config
        self._pool = pool
        self._behaviour = Behaviour(config, pool)
        self._polled_s = -inf
        self._synced_s = -inf
        self._active_s = 0.0

    def tick(self) -> int:
        """Replicas wanted."""
        config, pool, now_s = self._config, self._pool, self._pool.now_s
        wanted, value = pool.wanted, total(pool, config.metric)
        if _due(now_s, self._polled_s, config.polling_s):
            self._polled_s = now_s
            if value > config.activation:
                self._active_s = now_s
                wanted = max(wanted, 1)
            elif pool.minimum == 0 and now_s - self._active_s >= config.cooldown_s:
                wanted = 0
        if pool.wanted and wanted and _due(now_s, self._synced_s, config.period_s):
            self._synced_s = now_s
            ratio = value / (config.target * wanted)
            steady = abs(ratio - 1.0) <= config.tolerance_ratio
            return self._behaviour.follow(wanted if steady else ceil(value / config.target - 1e-9), wanted)
        return pool.clip(wanted)


def _due(now_s: float, last_s: float, period_s: float) -> bool:
    """Whether a period is over; ticks of another period may come a rounding error too early."""
    return now_s - last_s >= period_s * (1.0 - 1e-9)
