"""Clocks, caps and batch sizes by the clock on the wall."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Self

from numpy.random import Generator
from pydantic import Field, model_validator

from fleetsim.plugins import PolicyConfig
from fleetsim.power.api import Cap, Clock, Row, Seats, Setting


class Stage(PolicyConfig):
    """What holds from a time on, until the next stage says otherwise."""

    at_s: Annotated[float, Field(ge=0)]
    """When [s]."""
    clock_ratio: Annotated[float, Field(ge=0.1, le=1)] | None = None
    """Clock over the usual one; none leaves it as it is."""
    cap_w: Annotated[float, Field(gt=0)] | None = None
    """Cap of each accelerator [W], cut to what the chip allows; none leaves it as it is."""
    uncap: bool = False
    """Lift the cap."""
    max_seqs: Annotated[int, Field(ge=1)] | None = None
    """Requests that a rank runs at a time, at most what its scheduler says; none leaves it as it is."""
    pools: tuple[str, ...] = ()
    """Only of these pools; default: of all."""


class ScheduleConfig(PolicyConfig):
    """Parameters of schedule."""

    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    """What holds when; each as soon as its time has come."""
    period_s: Annotated[float, Field(gt=0)] = 1.0
    """Time between two looks at the clock: an assumption [s]."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        times = [stage.at_s for stage in self.stages]
        if times != sorted(times):
            raise ValueError("stages must be in order of time (at_s)")
        return self


class Schedule:
    """Clocks, caps and batch sizes that were written down beforehand.

    Rule: the first time it is asked at or after a stage's time, it sets what the stage says, once, for the replicas of the pools
    that it names.
    """

    Config: ClassVar = ScheduleConfig

    def __init__(self, config: ScheduleConfig, rng: Generator, row: Row) -> None:
        self.period_s = config.period_s
        self._row = row
        self._left = list(config.stages)

    def tick(self) -> Sequence[Setting]:
        """What to set."""
        settings: list[Setting] = []
        while self._left and self._left[0].at_s <= self._row.now_s * (1.0 + 1e-9):
            settings += self._settings(self._left.pop(0))
        return settings

    def _settings(self, stage: Stage) -> Iterator[Setting]:
        row = self._row
        for number, pool in enumerate(row.pools):
            if stage.max_seqs is not None and (not stage.pools or pool.name in stage.pools):
                yield Seats(number, min(stage.max_seqs, pool.most_slots))
        for number, replica in enumerate(row.replicas):
            pool = row.pools[replica.pool]
            if stage.pools and pool.name not in stage.pools:
                continue
            if stage.clock_ratio is not None:
                yield Clock(number, stage.clock_ratio)
            if stage.uncap:
                yield Cap(number, None)
            elif stage.cap_w is not None:
                yield Cap(number, min(max(stage.cap_w, pool.idle_w * 1.01), pool.limit_w))
