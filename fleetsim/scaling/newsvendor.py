"""A Bayesian newsvendor in the manner of HARMONY."""

from __future__ import annotations

from collections import deque
from math import ceil, exp
from typing import Annotated, ClassVar

import numpy as np
from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.scaling.api import PoolState
from fleetsim.scaling.behaviour import Period
from fleetsim.scaling.capacity import replica_seconds

_Cost = Annotated[float, Field(ge=0)]
_BINS = 30
_WIDTH = 0.05
"""Loads per replica, over what it can carry by the step-time model, in which the posterior is kept."""
_LAST_FORECASTS = 60
"""By which the spread of the forecasts is judged."""


class NewsvendorConfig(PolicyConfig):
    """Parameters of the autoscaler; the paper gives no decision rule in detail, so the form is the textbook's."""

    period_s: Period = 60.0
    """Time between two decisions."""
    violation_probability: Annotated[float, Field(gt=0, lt=1, json_schema_extra={"unit": "ratio"})] = 0.05
    """Chance that demand is more than the replicas carry, at most."""
    replica_cost: _Cost = 1.0
    """Cost of a replica for a period."""
    violation_cost: _Cost = 20.0
    """Cost of a period in which all demand is more than is carried."""
    switching_cost: _Cost = 0.0
    """Cost of a replica added or removed."""
    load_ratio: Annotated[float, Field(gt=0, le=1.5, json_schema_extra={"unit": "ratio"})] = 0.7
    """Load per replica, over what it can carry by the step-time model, at which objectives are expected to be met before anything
    has been seen."""
    prior_windows: Annotated[float, Field(gt=0)] = 4.0
    """Periods that this expectation counts for."""
    memory_windows: Annotated[float, Field(gt=1)] = 500.0
    """Periods after which what was seen counts for 1/e."""
    attainment_ratio: Annotated[float, Field(gt=0, lt=1, json_schema_extra={"unit": "ratio"})] = 0.95
    """Share of requests that must meet the objectives at a load, for replicas to be loaded like that."""
    samples: Annotated[int, Field(ge=10, le=100_000, strict=True, json_schema_extra={"unit": "count"})] = 200
    """Courses of demand that are drawn."""


class Newsvendor:
    """As many replicas as cost least over possible demands, with what a replica carries learnt from how objectives were met.

    Rule: demand is what arrives in a period, in replicas that the step-time model says it keeps busy. The pool's `forecaster`
    draws courses of the requests and prompt tokens until a replica asked for now would serve; the highest periods of each from
    then on, `y`, are compared with what `a` replicas carry, ``u a``: the answer minimises ``replica_cost a + violation_cost
    E[max(0, y - u a) / y] + switching_cost |a - a_now|`` among those with ``P(y > u a)`` at most `violation_probability`. For
    each load per replica the chance that a request meets the objectives has a beta posterior: a request that met them at a load
    counts for all lower ones too, one that did not for all higher ones. The load is the highest since nobody waited, over the
    replicas that were ready all the time: a queue outlives what made it. `u` is the highest load at which the posterior mean
    reaches `attainment_ratio`. Samples are spread around their mean by the factor with which, over the last 60 forecasts of one
    period, all but `violation_probability` of the demands would have been below the bound; by no less than 1. One replica stays
    while there are requests. Without an objective, all requests meet it.

    References
    ----------
    HARMONY, arXiv:2408.01000, whose decision code is not public; the single-period newsvendor problem.
    """

    Config: ClassVar = NewsvendorConfig

    def __init__(self, config: NewsvendorConfig, rng: Generator, pool: PoolState) -> None:
        self.period_s = config.period_s
        self._config = config
        self._pool = pool
        self._requests = pool.new_forecaster("requests", config.period_s)
        self._prompts = pool.new_forecaster("prompt_tokens", config.period_s)
        loads = _WIDTH * np.arange(1, _BINS + 1)
        over = np.clip((loads - config.load_ratio - 1e-9) / 0.2, 0.0, None)
        good = (0.5 + 0.5 * config.attainment_ratio) * np.exp(-over)
        good[loads > config.load_ratio + 1e-9] = np.minimum(
            good[loads > config.load_ratio + 1e-9], 0.9 * config.attainment_ratio
        )
        self._loads = loads
        self._prior = good * config.prior_windows, (1.0 - good) * config.prior_windows
        self._met, self._missed = np.zeros(_BINS), np.zeros(_BINS)
        self._ready = pool.ready
        self._queued = False
        """Whether requests waited at the last look: what comes late then is the fault of what was before."""
        self._highest = 0.0
        """Highest load per replica since nobody waited."""
        self._keep = exp(-1.0 / config.memory_windows)
        self._forecasts: deque[tuple[float, float]] = deque()
        """Mean of the samples for the period to come, and what all but so many of them stay below."""
        self._errors: deque[float] = deque(maxlen=_LAST_FORECASTS)
        """By how much demand was above the mean, over the distance of that bound."""
        self.spread = 1.0
        """Factor on the samples' distance from their mean."""
        self._length = 0.0

    @property
    def load_ratio(self) -> float:
        """Highest load per replica at which objectives are believed to be met [ratio]."""
        good, bad = self._prior
        met = good + np.cumsum(self._met[::-1])[::-1]
        missed = bad + np.cumsum(self._missed)
        fine = np.flatnonzero(met / (met + missed) >= self._config.attainment_ratio)
        return float(self._loads[fine[-1]]) if len(fine) else float(self._loads[0])

    def tick(self) -> int:
        """Replicas wanted."""
        config, pool = self._config, self._pool
        demand = self._observe()
        self._learn(demand)
        lead = ceil(pool.startup_s / config.period_s - 1e-9)
        requests = self._requests.samples(lead + 2, config.samples).clip(min=0.0)
        tokens = self._mean_prompt(lead + 2)
        courses = requests * np.array([self._per_request(n) for n in tokens])
        mean = courses.mean(axis=0)
        bound = float(np.quantile(courses[:, 0], 1.0 - config.violation_probability))
        self._forecasts.append((float(mean[0]), bound))
        courses = (mean + self.spread * (courses - mean)).clip(min=0.0)
        highest = courses[:, lead:].max(axis=1)
        return self._cheapest(highest, self.load_ratio)

    def _cheapest(self, demands: np.ndarray, load_ratio: float) -> int:
        config, pool = self._config, self._pool
        bound = float(np.quantile(demands, 1.0 - config.violation_probability))
        least = pool.clip(max(ceil(bound / load_ratio - 1e-9), 1 if bound > 0.0 or pool.concurrency else 0))
        most = pool.clip(max(ceil(float(demands.max()) / load_ratio), least))
        counts = np.arange(least, most + 1)
        short = np.clip(demands[:, None] - load_ratio * counts, 0.0, None) / np.maximum(demands, 1e-12)[:, None]
        costs = config.replica_cost * counts + config.violation_cost * short.mean(axis=0)
        costs = costs + config.switching_cost * np.abs(counts - pool.wanted)
        return int(counts[int(np.argmin(costs))])

    def _observe(self) -> float:
        """Tell the forecasters what came; returns it in replicas kept busy."""
        pool, window = self._pool, self._pool.window
        if window.finished:
            self._length = window.output_tokens / window.finished
        self._requests.observe(pool.now_s, float(window.arrivals))
        self._prompts.observe(pool.now_s, float(window.prompt_tokens))
        prompt = window.prompt_tokens / window.arrivals if window.arrivals else 0.0
        demand = window.arrivals * self._per_request(prompt)
        if self._forecasts:
            mean, bound = self._forecasts.popleft()
            if bound > mean:
                self._errors.append((demand - mean) / (bound - mean))
            if len(self._errors) == _LAST_FORECASTS:
                needed = np.quantile(self._errors, 1.0 - self._config.violation_probability)
                self.spread = max(float(needed), 1.0)
        return demand

    def _learn(self, demand: float) -> None:
        """How objectives were met at the load of the last period."""
        pool, window = self._pool, self._pool.window
        self._met *= self._keep
        self._missed *= self._keep
        ready, self._ready = min(self._ready, pool.ready), pool.ready
        load = demand / max(ready, 1)
        self._highest = max(self._highest, load) if self._queued else load
        self._queued = bool(pool.waiting or pool.waiting_outside)
        if not window.ttfts:
            return
        place = min(int(self._highest / _WIDTH), _BINS - 1)
        share = (1.0 - window.late / window.ttfts) * (1.0 - (window.slow / window.tpots if window.tpots else 0.0))
        self._met[place] += share
        self._missed[place] += 1.0 - share

    def _mean_prompt(self, steps: int) -> list[float]:
        """Expected prompt tokens per request in the periods to come."""
        requests, tokens = self._requests.mean(steps), self._prompts.mean(steps)
        return [float(t / n) if n > 0.0 else 0.0 for n, t in zip(requests, tokens, strict=True)]

    def _per_request(self, prompt_tokens: float) -> float:
        """Replicas that one request per period keeps busy."""
        if prompt_tokens <= 0.0:
            return 0.0
        pool = self._pool
        return replica_seconds(pool, 1.0, prompt_tokens, self._length, pool.tpot_limit_s) / self.period_s
