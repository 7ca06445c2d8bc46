"""The lowest clock that meets the objectives, replica by replica."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Annotated, ClassVar, Self

from numpy.random import Generator
from pydantic import Field, model_validator

from fleetsim.plugins import PolicyConfig
from fleetsim.power.api import Clock, PoolState, ReplicaState, Row, Setting

_SERVING = ("ready", "draining")


class SloClockConfig(PolicyConfig):
    """Parameters of slo-clock."""

    clocks: tuple[Annotated[float, Field(ge=0.1, le=1)], ...] = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    """Clocks over the usual one that there are, rising to 1; DynamoLLM's go from 0.8 to 1.98 GHz on an H100."""
    margin_ratio: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of an objective that a predicted latency may reach: an assumption, since predictions know nothing of bursts."""
    emergency_s: Annotated[float, Field(ge=0)] = 15.0
    """For so long the highest clock is kept after an emergency: an assumption [s]."""
    memory: Annotated[int, Field(ge=1)] = 12
    """Ticks for which the longest prompt is remembered: an assumption."""
    period_s: Annotated[float, Field(gt=0)] = 5.0
    """Time between two decisions [s]."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if list(self.clocks) != sorted(set(self.clocks)) or self.clocks[-1] != 1.0:
            raise ValueError("clocks must rise to 1")
        return self


class SloClock:
    """Each replica runs at the lowest clock whose predicted latencies meet the objectives; in an emergency at the highest.

    Rule: per clock, from the lowest on, latencies are predicted from the load of the last period: prompts take `u` of a replica's
    time, at the rate at which prompt tokens were computed or came to wait. The time per output token is a decode step of the
    requests that are there over 1 - u; the time to first token is that of the longest prompt seen lately over 1 - u, which is a
    queue's wait, and a step. The first clock at which both are within `margin_ratio` of the scenario's objectives is set; 1 if none
    is. It is an emergency if a request of the replica waits for its first token beyond the objective, or if a larger share of those
    that got theirs since the last tick missed it than the objective allows: then the clock is 1 for `emergency_s`. Without an
    objective the lowest clock is always enough.

    Charged: the row's `actuation` and `stall`; longer steps.

    This is DynamoLLM's instance manager without re-ordering and squashing; its upper levels are autoscalers of pools.

    References
    ----------
    Stojkovic et al., "DynamoLLM: Designing LLM Inference Clusters for Performance and Energy Efficiency", HPCA 2025,
    arXiv:2408.00741.
    """

    Config: ClassVar = SloClockConfig

    def __init__(self, config: SloClockConfig, rng: Generator, row: Row) -> None:
        self.period_s = config.period_s
        self._config = config
        self._row = row
        self._prompts: list[list[int]] = [[] for _ in row.pools]
        """Longest prompts of the last ticks, by pool."""
        self._calm_s: dict[int, float] = {}
        """When the emergency of a replica is over."""

    def tick(self) -> Sequence[Setting]:
        """What to set."""
        row, config = self._row, self._config
        for kept, pool in zip(self._prompts, row.pools, strict=True):
            kept.append(pool.window.longest_prompt)
            del kept[: -config.memory]
        settings = []
        for number, replica in enumerate(row.replicas):
            if replica.state not in _SERVING:
                continue
            pool = row.pools[replica.pool]
            if self._alarming(replica, pool):
                self._calm_s[number] = row.now_s + config.emergency_s
            emergency = row.now_s < self._calm_s.get(number, -inf)
            settings.append(Clock(number, 1.0 if emergency else self._lowest(replica, pool)))
        return settings

    def _alarming(self, replica: ReplicaState, pool: PoolState) -> bool:
        late = replica.oldest_s > pool.ttft_limit_s
        return late or replica.missed > (1.0 - self._row.attainment) * replica.ttfts

    def _lowest(self, replica: ReplicaState, pool: PoolState) -> float:
        margin = self._config.margin_ratio
        for ratio in self._config.clocks:
            ttft_s, tpot_s = self._predicted(ratio, replica, pool)
            if ttft_s <= margin * pool.ttft_limit_s and tpot_s <= margin * pool.tpot_limit_s:
                return max(ratio, pool.lowest_ratio)
        return 1.0

    def _predicted(self, ratio: float, replica: ReplicaState, pool: PoolState) -> tuple[float, float]:
        """Times to first token and per output token at a clock [s]."""
        longest = max(self._prompts[replica.pool])
        batch = max(replica.running + replica.waiting, 1)
        step_s = pool.step_s(ratio, batch, max(replica.ctx_tokens + replica.waiting_tokens, batch))
        busy = 0.0
        if longest:
            rate = (replica.prompt_tokens + replica.waiting_tokens) / self._row.elapsed_s
            busy = rate * pool.prefill_s(ratio, longest) / longest
        if busy >= 1.0:
            return inf, inf
        return pool.prefill_s(ratio, longest) / (1.0 - busy) + step_s, step_s / (1.0 - busy)
