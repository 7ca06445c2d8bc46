"""What an autoscaler sees of a pool and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, nan
from typing import Protocol

import numpy as np

from fleetsim.scaling.forecasters.api import Forecaster, Series, What
from fleetsim.scaling.forecasters.constant import Constant, ConstantConfig
from fleetsim.scaling.future import Known


class Window:
    """What happened in a pool since the autoscaler was asked last."""

    __slots__ = (
        "arrivals",
        "finished",
        "late",
        "latency_sum_s",
        "output_tokens",
        "prompt_tokens",
        "slow",
        "tpot_sum_s",
        "tpots",
        "ttft_sum_s",
        "ttfts",
    )

    def __init__(self) -> None:
        self.arrivals = 0
        """Requests sent to the pool, or waiting at the gateway for it to have a replica."""
        self.prompt_tokens = 0
        """Of these."""
        self.finished = 0
        """Requests that ended."""
        self.output_tokens = 0
        """Of these: the answer's length is known when it is over."""
        self.latency_sum_s = 0.0
        """Times from arrival to end of these, summed."""
        self.ttfts = 0
        self.ttft_sum_s = 0.0
        """Times to first token seen, and their sum."""
        self.late = 0
        """Of these, those beyond the scenario's objective."""
        self.tpots = 0
        self.tpot_sum_s = 0.0
        """Times per output token of requests that finished, and their sum."""
        self.slow = 0
        """Of these, those beyond the scenario's objective."""

    @property
    def ttft_s(self) -> float:
        """Mean time to first token; NaN if none came [s]."""
        return self.ttft_sum_s / self.ttfts if self.ttfts else nan

    @property
    def tpot_s(self) -> float:
        """Mean time per output token; NaN if nothing finished [s]."""
        return self.tpot_sum_s / self.tpots if self.tpots else nan


class Profile:
    """What a replica takes at a clock, as a profile of it would tell."""

    def __init__(
        self,
        step: Callable[[int, int], tuple[float, float]],
        prompt: Callable[[float], tuple[float, float]],
        idle_w: float,
    ) -> None:
        self.step = step
        """Duration [s] and energy [J] of a decode step of so many requests with so many tokens of context altogether."""
        self.prompt = prompt
        """The same of a prompt of so many tokens, alone."""
        self.idle_w = idle_w
        """Power while no step runs [W]."""


class PoolState:
    """A pool as its metrics show it at a tick; nothing of the future, and no output length before it has happened."""

    def __init__(
        self,
        name: str,
        role: str,
        minimum: int,
        maximum: int,
        accelerators: int,
        slots: int,
        capacity_tokens: int,
        startup_s: float,
        prefill_s: Callable[[float], float],
        step_s: Callable[[float, float], float],
    ) -> None:
        self.name = name
        self.role = role
        """``mixed``, ``prefill`` or ``decode``."""
        self.minimum = minimum
        """Fewest replicas."""
        self.maximum = maximum
        """Most replicas."""
        self.accelerators = accelerators
        """Of one replica."""
        self.slots = slots
        """Requests that one replica runs at a time at most."""
        self.max_seqs = slots
        """The same of one data-parallel rank, as the scenario says."""
        self.capacity_tokens = capacity_tokens
        """Tokens of keys and values that one replica holds."""
        self.startup_s = startup_s
        """Time from asking for a replica to its first request, if nothing else moves [s]."""
        self.prefill_s = prefill_s
        """Predicted time to compute a prompt of so many tokens alone [s]."""
        self.step_s = step_s
        """Predicted duration of a decode step of so many requests with so many tokens of context altogether [s]."""
        self.now_s = 0.0
        """Time of this tick [s]."""
        self.elapsed_s = 0.0
        """Time since the last one [s]."""
        self.wanted = 0
        """Replicas asked for last."""
        self.ready = 0
        """Replicas that take requests."""
        self.starting = 0
        self.draining = 0
        self.running = 0
        """Requests running."""
        self.waiting = 0
        """Requests in queues of replicas."""
        self.waiting_outside = 0
        """Requests that wait at the gateway because no replica is there."""
        self.kv_used_ratio = 0.0
        """KV blocks in use over capacity, mean over replicas that are ready."""
        self.busy_ratio = 0.0
        """Share of the time since the last tick in which steps ran, mean over replicas that were on."""
        self.ttft_limit_s = inf
        """Objective of the scenario [s]; infinite without one."""
        self.tpot_limit_s = inf
        self.window = Window()
        """What happened since the last tick."""
        self.new_forecaster: Callable[[What, float], Forecaster] = _constant
        """Build the pool's forecaster (`forecaster`), for what, and for periods of how many seconds."""
        self.at_clock: Callable[[float], Profile] | None = None
        """Profile of one replica at a clock over the usual one; None where nobody has profiled it."""
        self.future: Known | None = None
        """What will come, for policies whose class says `knows_future`; None for others."""

    @property
    def concurrency(self) -> int:
        """Requests that are in the pool or wait for it."""
        return self.running + self.waiting + self.waiting_outside

    def clip(self, replicas: int) -> int:
        """The nearest number of replicas that is allowed."""
        return min(max(replicas, self.minimum), self.maximum)


def _constant(_what: What, period_s: float) -> Forecaster:
    """What a pool expects where nobody says."""
    return Constant(ConstantConfig(), np.random.default_rng(0), Series(period_s))


class Autoscaler(Protocol):
    """Says how many replicas a pool should have.

    Built as ``Policy(config, rng, pool)``: its parameters, its own random stream, and the state of the pool, which is brought up
    to date before each tick. Its attribute `period_s` says how often it is asked. What it answers is brought into the bounds of
    the pool. One with an attribute `max_seqs` that is a number sets so the requests that a data-parallel rank runs at a time, from
    the next step on; at most what the scenario's scheduler says.
    """

    period_s: float

    def tick(self) -> int:
        """Replicas wanted from now on, those that are starting included and those that are leaving not."""
        ...
