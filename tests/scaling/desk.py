"""A pool on the desk of an autoscaler: its figures are set by hand, and it does at once what it is told."""

from __future__ import annotations

from typing import Any

import numpy as np

from fleetsim.plugins import load
from fleetsim.scaling.api import PoolState


def prefill_s(tokens: float) -> float:
    """10,000 prompt tokens per second."""
    return 1e-4 * tokens


def step_s(batch: float, tokens: float) -> float:
    """10 ms, and more for those who take part."""
    return 0.01 + 1e-4 * batch + 1e-7 * tokens


class Desk:
    """One autoscaler and its pool."""

    def __init__(self, name: str, replicas: int, least: int = 0, most: int = 100, **config: Any) -> None:
        self.pool = PoolState(
            "main",
            "mixed",
            least,
            most,
            1,
            100,
            100_000,
            10.0,
            lambda tokens: 1e-4 * tokens,
            lambda n, c: 0.01 + 1e-4 * n + 1e-7 * c,
        )
        self.pool.wanted = self.pool.ready = replicas
        policy = load("autoscalers", name)
        self.policy = policy(policy.Config.model_validate(config), np.random.default_rng(1), self.pool)

    def tick(self, **figures: Any) -> int:
        """One look later, with these figures; what was wanted before is ready by then unless they say otherwise."""
        pool = self.pool
        pool.now_s += self.policy.period_s
        pool.elapsed_s = self.policy.period_s
        pool.ready = pool.wanted
        for name, value in figures.items():
            assert hasattr(pool, name), name
            setattr(pool, name, value)
        pool.wanted = pool.clip(self.policy.tick())
        return pool.wanted

    def until(self, time_s: float, **figures: Any) -> int:
        """Looks until a time."""
        while self.pool.now_s + self.policy.period_s <= time_s + 1e-9:
            self.tick(**figures)
        return self.pool.wanted
