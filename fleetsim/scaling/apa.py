"""AIBrix's pod autoscaler."""

from __future__ import annotations

from math import ceil, floor
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.scaling.api import PoolState
from fleetsim.scaling.behaviour import Period, Ratio
from fleetsim.scaling.metrics import Metric, Recent, per_replica


class ApaConfig(PolicyConfig):
    """Parameters of the autoscaler; tolerances as in AIBrix, the others are assumptions in its manner."""

    metric: Metric = "kv_used"
    """What is held at its target, per replica (AIBrix's examples take ``gpu_cache_usage_perc``)."""
    target: Annotated[float, Field(gt=0)] = 0.5
    """Value of the metric per replica: a share, or a number of requests for `concurrency` and `waiting`."""
    period_s: Period = 10.0
    """Time between two looks."""
    window_s: Period = 60.0
    """Time over which the metric is averaged."""
    up_tolerance_ratio: Ratio = 0.1
    """Deviation above the target up to which none is added."""
    down_tolerance_ratio: Annotated[float, Field(ge=0, lt=1, json_schema_extra={"unit": "ratio"})] = 0.1
    """Deviation below it down to which none is removed."""
    up_rate: Annotated[float, Field(gt=1, json_schema_extra={"unit": "ratio"})] = 2.0
    """Most replicas per replica at one look."""
    down_rate: Annotated[float, Field(gt=1, json_schema_extra={"unit": "ratio"})] = 2.0
    """Fewest are the present ones over this."""


class Apa:
    """As many replicas as bring a metric to its target, with a tolerance and a rate for each direction.

    Rule: the metric per replica, averaged over `window_s`, is compared with the target. Above ``1 + up_tolerance_ratio`` of it:
    ``ceil(n * metric / target)`` replicas, at most ``ceil(up_rate * n)``; below ``1 - down_tolerance_ratio`` the same formula, at
    least ``floor(n / down_rate)``; else as many as before. `n` are the replicas asked for, at least 1, and one stays.

    References
    ----------
    vllm-project/aibrix, pkg/controller/podautoscaler, APA algorithm.
    """

    Config: ClassVar = ApaConfig

    def __init__(self, config: ApaConfig, rng: Generator, pool: PoolState) -> None:
        self.period_s = config.period_s
        self._config = config
        self._pool = pool
        self._recent = Recent(config.window_s)

    def tick(self) -> int:
        """Replicas wanted."""
        config, pool = self._config, self._pool
        self._recent.add(pool.now_s, per_replica(pool, config.metric))
        count = max(pool.wanted, 1)
        ratio = self._recent.mean / config.target
        wanted = count
        if ratio > 1.0 + config.up_tolerance_ratio:
            wanted = min(ceil(count * ratio - 1e-9), ceil(config.up_rate * count))
        elif ratio < 1.0 - config.down_tolerance_ratio:
            wanted = max(ceil(count * ratio - 1e-9), floor(count / config.down_rate))
        return pool.clip(max(wanted, 1))
