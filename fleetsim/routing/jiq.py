"""Join the idle queue."""

from __future__ import annotations

from collections import deque
from typing import Annotated, ClassVar

from mypy_extensions import mypyc_attr
from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import FleetView, RequestView
from fleetsim.routing.basic import draws


class JoinIdleQueueConfig(PolicyConfig):
    """Parameters of join-idle-queue."""

    idle_below: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'requests'})]" = 1
    """A replica counts as idle while it has fewer outstanding requests than this. An engine that batches is not full with one."""


@mypyc_attr(allow_interpreted_subclasses=True)
class JoinIdleQueue:
    """A replica that has nothing to do, the one idle for longest first; if there is none, any replica with equal chance.

    Rule: replicas join a queue when their outstanding requests fall below `idle_below`, and leave it when they are chosen or are no
    longer idle when their turn comes. A decision costs the same for any number of replicas.

    What is charged: nothing.

    References
    ----------
    Y. Lu et al., "Join-Idle-Queue: A Novel Load Balancing Algorithm for Dynamically Scalable Web Services", Performance Evaluation
    68(11), 2011, doi:10.1016/j.peva.2011.07.015.
    """

    Config: ClassVar = JoinIdleQueueConfig

    def __init__(self, config: JoinIdleQueueConfig, rng: Generator, fleet: FleetView) -> None:
        self._fleet = fleet
        self._outstanding = fleet.outstanding
        self._changed = fleet.watch_outstanding()
        self._draws = draws(rng, fleet.count, 1)
        self._below = config.idle_below
        self._idle: deque[int] = deque()
        self._listed = [False] * fleet.count

    def route(self, request: RequestView) -> int:
        """Choose a replica."""
        outstanding, listed, idle = self._outstanding, self._listed, self._idle
        if self._changed:
            for position in self._changed:
                if outstanding[position] < self._below and not listed[position]:
                    listed[position] = True
                    idle.append(position)
            self._changed.clear()
        while idle:
            position = idle.popleft()
            listed[position] = False
            if outstanding[position] < self._below:
                return position
        return self._fleet.here(next(self._draws)[0])
