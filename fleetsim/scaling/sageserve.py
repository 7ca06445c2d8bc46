"""SageServe: an hourly plan from a forecast, carried out as utilisation confirms it."""

from __future__ import annotations

from math import ceil, inf
from typing import Annotated, ClassVar, Literal

from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.scaling.api import PoolState
from fleetsim.scaling.behaviour import Period, Ratio, Seconds
from fleetsim.scaling.capacity import replica_seconds
from fleetsim.scaling.metrics import Recent

_Share = Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})]


class SageServeConfig(PolicyConfig):
    """Parameters of the autoscaler; defaults as in its repository."""

    mode: Literal["reactive", "immediate", "lt-u", "lt-ua"] = "lt-ua"
    """By memory in use alone; the plan at once; the plan as utilisation confirms it; and that with an eye on the forecast."""
    period_s: Period = 60.0
    """Time between two looks; an assumption."""
    memory_up: _Share = 0.5
    """KV use above which one is added."""
    memory_down: _Share = 0.25
    """KV use below which one is removed."""
    memory_override: _Share = 0.9
    """KV use above which one is added whatever the plan says."""
    plan_s: Period = 3600.0
    """Time between two plans."""
    forecast_from_s: Seconds = 1200.0
    """The plan serves the highest demand expected from so much after it …"""
    forecast_to_s: Period = 3600.0
    """… until so much after it …"""
    buffer_ratio: Ratio = 0.1
    """… and this share of the highest demand of the last plan's time."""
    load_ratio: Annotated[float, Field(gt=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.7
    """Share of what a replica can carry that the plan counts on; an assumption in place of the repository's measured rates."""
    deviation: Annotated[float, Field(gt=1, json_schema_extra={"unit": "ratio"})] = 5.0
    """Demand over forecast (or the other way round) from which on the plan is no bound any more (`lt-ua`)."""
    cooldown_s: Seconds | None = None
    """Time between two changes that memory asks for; default: what a replica needs to start."""


class SageServe:
    """Plans replicas for the hour from a forecast of demand, and adds or removes them one by one as memory use says so.

    Rule: every `plan_s`, as many replicas as carry the highest demand that the pool's `forecaster` expects between
    `forecast_from_s` and `forecast_to_s` from then, and `buffer_ratio` of the highest of the time since the last plan; for one
    pool of one LLM the integer programme of the paper has this answer. `immediate` has them at once. `lt-u` adds one while there
    are fewer than planned and memory is used above `memory_up`, removes one while there are more and it is below `memory_down`,
    and adds one above `memory_override` whatever the plan. `lt-ua` does the same and, while demand is `deviation` times the
    forecast or more (or less by as much), goes by memory as `reactive` does. `reactive` has no plan. After a change that memory
    asked for, nothing changes for `cooldown_s`. Donation of idle replicas to other tenants is not modelled.

    References
    ----------
    arXiv:2502.14617; shashwatj07/SageServe.
    """

    Config: ClassVar = SageServeConfig

    def __init__(self, config: SageServeConfig, rng: Generator, pool: PoolState) -> None:
        self.period_s = config.period_s
        self._config = config
        self._pool = pool
        self._cooldown_s = pool.startup_s if config.cooldown_s is None else config.cooldown_s
        self._changed_s = self._planned_s = -inf
        self._plan = pool.wanted
        self._expected = 0.0
        """Replicas that the forecast for the last period came to, without a buffer."""
        self._highest = Recent(config.plan_s)
        self._length = 0.0
        """Mean tokens of an answer."""
        if config.mode != "reactive":
            self._forecasters = [pool.new_forecaster(what, config.period_s) for what in ("requests", "prompt_tokens")]

    def tick(self) -> int:
        """Replicas wanted."""
        config, pool = self._config, self._pool
        if config.mode == "reactive":
            return self._by_memory(0, pool.maximum)
        demand, before = self._observe(), self._expected
        if pool.now_s - self._planned_s >= config.plan_s * (1.0 - 1e-9):
            self._planned_s = pool.now_s
            self._plan = self._planned()
            if config.mode == "immediate":
                return self._plan
        self._expected = self._replicas(1, 0)
        if config.mode == "immediate":
            return self._plan
        off = demand > config.deviation * before > 0.0 or demand * config.deviation < before
        if config.mode == "lt-ua" and off:
            return self._by_memory(0, pool.maximum)
        return self._by_memory(self._plan, self._plan)

    def _by_memory(self, least: int, most: int) -> int:
        """One more or one fewer as memory says, between bounds that the plan sets."""
        config, pool = self._config, self._pool
        if pool.now_s - self._changed_s < self._cooldown_s:
            return pool.wanted
        used, wanted = pool.kv_used_ratio, pool.wanted
        if pool.waiting_outside and not wanted:
            wanted = 1
        elif used > config.memory_override or (used > config.memory_up and wanted < most):
            wanted += 1
        elif used < config.memory_down and wanted > max(least, 1):
            wanted -= 1
        wanted = pool.clip(wanted)
        if wanted != pool.wanted:
            self._changed_s = pool.now_s
        return wanted

    def _observe(self) -> float:
        """Tell the forecasters what came; returns the replicas that it was work for."""
        pool, window = self._pool, self._pool.window
        if window.finished:
            self._length = window.output_tokens / window.finished
        for forecaster, value in zip(self._forecasters, (window.arrivals, window.prompt_tokens), strict=True):
            forecaster.observe(pool.now_s, float(value))
        demand = self._work(float(window.arrivals), float(window.prompt_tokens))
        self._highest.add(pool.now_s, demand)
        return demand

    def _work(self, requests: float, prompt_tokens: float) -> float:
        """Replicas that a period's work keeps busy."""
        seconds = replica_seconds(self._pool, requests, prompt_tokens, requests * self._length, self._pool.tpot_limit_s)
        return seconds / self.period_s

    def _replicas(self, steps: int, first: int) -> float:
        """Replicas that the highest of the expected periods keeps busy."""
        requests, prompts = (forecaster.mean(steps)[first:].clip(min=0.0) for forecaster in self._forecasters)
        return max(self._work(float(n), float(tokens)) for n, tokens in zip(requests, prompts, strict=True))

    def _planned(self) -> int:
        config = self._config
        steps = max(ceil(config.forecast_to_s / config.period_s), 1)
        first = min(int(config.forecast_from_s / config.period_s), steps - 1)
        needed = self._replicas(steps, first) + config.buffer_ratio * self._highest.maximum
        return self._pool.clip(max(ceil(needed / config.load_ratio - 1e-9), 1))
