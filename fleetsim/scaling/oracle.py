"""Knows what will come."""

from __future__ import annotations

from math import ceil
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.errors import PolicyError
from fleetsim.plugins import PolicyConfig
from fleetsim.scaling.api import PoolState
from fleetsim.scaling.behaviour import Period
from fleetsim.scaling.capacity import replica_seconds


class OracleConfig(PolicyConfig):
    """Parameters of the oracle."""

    period_s: Period = 60.0
    """Time between two looks."""
    load_ratio: Annotated[float, Field(gt=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.7
    """Share of what a replica can carry that is counted on."""


class Oracle:
    """Oracle: as many replicas as the requests to come will need, which no deployed system knows; a bound for others.

    Rule: each period, the work that arrives in each of the periods until a replica asked for at the next look would serve is turned
    into replicas kept busy by the step-time model; the highest, over `load_ratio`, is wanted, with what waits now as work of the
    first. Prompts, answers and times are those of the workload's requests for the pool's LLM, wherever they go; not those that only
    come when another has ended.
    """

    Config: ClassVar = OracleConfig
    knows_future: ClassVar[bool] = True

    def __init__(self, config: OracleConfig, rng: Generator, pool: PoolState) -> None:
        self.period_s = config.period_s
        self._config = config
        self._pool = pool

    def tick(self) -> int:
        """Replicas wanted."""
        config, pool = self._config, self._pool
        periods = ceil(pool.startup_s / config.period_s) + 1
        needed = max(self._work(pool.now_s + i * config.period_s) for i in range(periods))
        replicas = ceil(needed / config.load_ratio - 1e-9)
        return pool.clip(max(replicas, 1 if pool.concurrency else 0))

    def _work(self, from_s: float) -> float:
        """Replicas that a period's arrivals keep busy."""
        pool, to_s, future = self._pool, from_s + self.period_s, self._pool.future
        if future is None:
            raise PolicyError("the autoscaler oracle is told nothing of the future here")
        requests = future.between("requests", from_s, to_s)
        prompts = future.between("prompt_tokens", from_s, to_s)
        answers = future.between("output_tokens", from_s, to_s)
        return replica_seconds(pool, requests, prompts, answers, pool.tpot_limit_s) / self.period_s
