"""No more requests at a time than leave decode steps within the objective."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.power.api import PoolState, ReplicaState, Row, Seats, Setting


class BatchCapConfig(PolicyConfig):
    """Parameters of batch-cap."""

    margin_ratio: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of the objective that a predicted decode step may reach: an assumption."""
    least: Annotated[int, Field(ge=1)] = 1
    """Fewest requests that may run at a time."""
    period_s: Annotated[float, Field(gt=0)] = 5.0
    """Time between two decisions: an assumption [s]."""


class BatchCap:
    """As many requests run at a time as keep a decode step within the objective at the clock in force.

    Rule: of each pool, the slowest clock and the largest mean context of a request of its replicas count. By bisection the largest
    number of requests up to the scheduler's own is found whose predicted decode step is within `margin_ratio` of the objective for
    the time per output token; at least `least`. Where clocks or caps are low, who comes waits instead of slowing down those that
    run. Without such an objective, or where nothing runs, nothing changes.
    """

    Config: ClassVar = BatchCapConfig

    def __init__(self, config: BatchCapConfig, rng: Generator, row: Row) -> None:
        self.period_s = config.period_s
        self._config = config
        self._row = row

    def tick(self) -> Sequence[Setting]:
        """What to set."""
        settings: list[Setting] = []
        for number, pool in enumerate(self._row.pools):
            running = [r for r in self._row.replicas if r.pool == number and r.running]
            if running and pool.tpot_limit_s < inf:
                settings.append(Seats(number, self._largest(pool, running)))
        return settings

    def _largest(self, pool: PoolState, replicas: Sequence[ReplicaState]) -> int:
        ratio = min([r.clock_ratio for r in replicas])
        context = max([r.ctx_tokens / r.running for r in replicas])
        limit_s = self._config.margin_ratio * pool.tpot_limit_s
        low, high = min(self._config.least, pool.most_slots), pool.most_slots
        while low < high:
            middle = (low + high + 1) // 2
            if pool.step_s(ratio, middle, max(int(middle * context), middle)) <= limit_s:
                low = middle
            else:
                high = middle - 1
        return low
