"""Replicas by the hour, as a plan says."""

from __future__ import annotations

from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.scaling.api import PoolState
from fleetsim.scaling.behaviour import Period, Seconds

_HOUR_S = 3600.0
_SLACK_S = 1e-6
"""Ticks that lie this close before an hour belong to it."""


class CronConfig(PolicyConfig):
    """Parameters of a schedule."""

    schedule: tuple[Annotated[int, Field(ge=0, strict=True)], ...] = ()
    """Replicas wanted in each hour; it begins again after the last one, so that 24 make a day and 168 a week. Empty: as many as
    there are."""
    begin_hour: Annotated[float, Field(ge=0, json_schema_extra={"unit": "h"})] = 0.0
    """Place in the list at which the run begins."""
    lead_s: Seconds | None = None
    """How long before an hour with more replicas they are asked for; default: as long as starting one takes by itself."""
    period_s: Period = 60.0
    """Time between two looks."""


class Cron:
    """As many replicas as a schedule says for the hour.

    Rule: the number of the hour; of two hours the higher one, where the next begins within `lead_s`, so that replicas are ready
    when their hour begins and leave when it is over. This is KEDA's `cron` scaler with one window per hour; planners write such
    schedules (`fleetsim plan`, kind `procurement`).

    References
    ----------
    KEDA documentation, scaler ``cron``.
    """

    Config: ClassVar = CronConfig

    def __init__(self, config: CronConfig, rng: Generator, pool: PoolState) -> None:
        self.period_s = config.period_s
        self._schedule = config.schedule
        self._begin_s = config.begin_hour * _HOUR_S
        self._lead_s = config.lead_s
        self._pool = pool

    def tick(self) -> int:
        """Replicas wanted."""
        if not self._schedule:
            return self._pool.wanted
        now_s = self._pool.now_s + self._begin_s + _SLACK_S
        lead_s = self._pool.startup_s if self._lead_s is None else self._lead_s
        return max(self._of(now_s), self._of(now_s + lead_s + self.period_s))

    def _of(self, time_s: float) -> int:
        return self._schedule[int(time_s // _HOUR_S) % len(self._schedule)]
