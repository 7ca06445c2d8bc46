"""Q-learning of the number of requests that run at a time."""

from __future__ import annotations

from math import isfinite
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.scaling.api import PoolState
from fleetsim.scaling.behaviour import Period

_Rate = Annotated[float, Field(gt=0, le=1)]
_State = tuple[int, int, int]
_MOVES = (-1, 0, 1)


class KnativeRlConfig(PolicyConfig):
    """Parameters of the learner."""

    period_s: Period = 30.0
    """Window after which it looks at what came of its last move."""
    step: Annotated[int, Field(ge=1, strict=True, json_schema_extra={"unit": "count"})] = 8
    """Requests by which the limit goes up or down (20 in the paper, for web requests)."""
    start: Annotated[int, Field(ge=1, strict=True, json_schema_extra={"unit": "count"})] | None = None
    """Limit at the beginning; default: half of the engine's."""
    learning_rate: _Rate = 0.5
    """How much of a new estimate is taken over (alpha)."""
    discount: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """What a reward one window later is worth (gamma)."""
    explore: _Rate = 0.1
    """Chance of a random move at the beginning."""
    explore_least: _Rate = 0.01
    """The same in the end; it falls by 2 % a window."""


class KnativeRl:
    """Learns how many requests a replica should run at a time, for throughput and latency; the number of replicas stays.

    Rule: after each window the state is the limit over `step`, the tenth of the busy time and the tenth of the mean latency over
    the longest one seen; the reward is throughput over the best seen plus the best latency seen over the mean latency, or -1
    where the mean time to first token or per token misses the objective. Tabular Q-learning, epsilon-greedy, moves the limit
    down, not at all, or up. The limit is the scheduler's `max_seqs`, at most what the scenario says, and holds from the next step
    on.

    References
    ----------
    L. Schuler, S. Jamil, N. Kühl, "AI-based Resource Allocation: Reinforcement Learning for Adaptive Auto-scaling in Serverless
    Environments", CCGrid 2021, arXiv:2005.14410.
    """

    Config: ClassVar = KnativeRlConfig

    def __init__(self, config: KnativeRlConfig, rng: Generator, pool: PoolState) -> None:
        self.period_s = config.period_s
        self._config, self._rng, self._pool = config, rng, pool
        self.max_seqs: int | None = min(config.start or max(pool.max_seqs // 2, 1), pool.max_seqs)
        self._values: dict[_State, list[float]] = {}
        self._last: tuple[_State, int] | None = None
        self._explore = config.explore
        self._best_rate = 0.0
        self._best_s = self._worst_s = 0.0

    def tick(self) -> int:
        """As many replicas as there are wanted; `max_seqs` is what changes."""
        pool, window, config = self._pool, self._pool.window, self._config
        if window.finished and pool.elapsed_s > 0.0:
            latency_s = window.latency_sum_s / window.finished
            rate = window.output_tokens / pool.elapsed_s
            self._best_rate = max(self._best_rate, rate)
            self._best_s = min(self._best_s or latency_s, latency_s)
            self._worst_s = max(self._worst_s, latency_s)
            state = self._state(latency_s)
            if self._last is not None:
                before, move = self._last
                target = self._reward(rate, latency_s) + config.discount * max(self._q(state))
                values = self._q(before)
                values[move] += config.learning_rate * (target - values[move])
            self._move(state)
        return pool.wanted

    def _state(self, latency_s: float) -> _State:
        assert self.max_seqs is not None
        tenth = min(int(10.0 * self._pool.busy_ratio), 9)
        return self.max_seqs // self._config.step, tenth, min(int(10.0 * latency_s / self._worst_s), 9)

    def _reward(self, rate: float, latency_s: float) -> float:
        window, pool = self._pool.window, self._pool
        late = isfinite(window.ttft_s) and window.ttft_s > pool.ttft_limit_s
        slow = isfinite(window.tpot_s) and window.tpot_s > pool.tpot_limit_s
        return -1.0 if late or slow else rate / self._best_rate + self._best_s / latency_s

    def _q(self, state: _State) -> list[float]:
        return self._values.setdefault(state, [0.0, 0.0, 0.0])

    def _move(self, state: _State) -> None:
        config, values = self._config, self._q(state)
        if self._rng.random() < self._explore:
            move = int(self._rng.integers(len(_MOVES)))
        else:
            move = max(range(len(_MOVES)), key=lambda i: (values[i], i == 1))
        self._explore = max(self._explore * 0.98, config.explore_least)
        self._last = state, move
        assert self.max_seqs is not None
        wish = self.max_seqs + _MOVES[move] * config.step
        self.max_seqs = min(max(wish, min(config.step, self._pool.max_seqs)), self._pool.max_seqs)
