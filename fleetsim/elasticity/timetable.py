"""Changes at given times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Self

from numpy.random import Generator
from pydantic import Field, model_validator

from fleetsim.elasticity.api import Action, Convert, FleetState, PoolName, Scale
from fleetsim.plugins import PolicyConfig
from fleetsim.scaling.behaviour import Period, Seconds

_Count = Annotated[int, Field(ge=0, strict=True, json_schema_extra={"unit": "count"})]


class Change(PolicyConfig):
    """One change: a number of replicas of a pool, or replicas of a pool that become replicas of another one."""

    at_s: Seconds
    """When, from the beginning of the run."""
    pool: PoolName = ""
    """Pool that has `replicas` from then on; or …"""
    source: PoolName = ""
    """… pool of which `replicas` …"""
    target: PoolName = ""
    """… become replicas of this one."""
    replicas: _Count
    """How many."""

    @model_validator(mode="after")
    def _one_thing(self) -> Self:
        if bool(self.pool) == bool(self.source) or bool(self.source) != bool(self.target):
            raise ValueError("give `pool`, or `source` and `target`")
        return self


class TimetableConfig(PolicyConfig):
    """Parameters of the timetable."""

    changes: Annotated[tuple[Change, ...], Field(min_length=1)]
    """What happens when; each at the first look that is not before its time."""
    period_s: Period = 1.0
    """Time between two looks."""
    every_s: Period | None = None
    """Time after which all is repeated, such as a day of 86,400 s; default: never."""


class Timetable:
    """Changes the fleet at given times, whatever the load: hours of business, or an experiment.

    Rule: at each look, every `period_s`, all changes whose time has come since the last one are asked for, in the order of their
    times. With `every_s` the table begins anew after that time.
    """

    Config: ClassVar = TimetableConfig

    def __init__(self, config: TimetableConfig, rng: Generator, fleet: FleetState) -> None:
        self.period_s = config.period_s
        self._fleet = fleet
        self._every_s = config.every_s
        self._changes = sorted(config.changes, key=lambda change: change.at_s)
        self._next = 0
        self._round = 0

    def tick(self) -> Sequence[Action]:
        """What is due."""
        actions: list[Action] = []
        while self._due_s() <= self._fleet.now_s + 1e-9:
            change = self._changes[self._next]
            if change.pool:
                actions.append(Scale(change.pool, change.replicas))
            else:
                actions.append(Convert(change.source, change.target, change.replicas))
            self._next += 1
            if self._next == len(self._changes) and self._every_s is not None:
                self._next = 0
                self._round += 1
        return actions

    def _due_s(self) -> float:
        if self._next == len(self._changes):
            return float("inf")
        return self._changes[self._next].at_s + (self._every_s or 0.0) * self._round
