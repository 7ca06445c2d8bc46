"""Idle replicas take waiting requests from busy ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.rebalancing.api import MoveQueued, Moving, ReplicaState


class WorkStealingConfig(PolicyConfig):
    """Parameters of work stealing."""

    period_s: float = Field(default=0.1, gt=0)
    """Time between two looks at the queues [s]."""
    min_waiting: int = Field(default=2, ge=1, strict=True)
    """Requests that must wait at a replica before one is taken from it."""


class WorkStealing:
    """Replicas with nothing waiting take the last request of the longest queue.

    Rule: every period, each replica whose queue is empty takes one request from the replica where most wait, from the end of its
    queue, if at least `min_waiting` wait there. Only waiting requests move, so that no keys and values are copied; what the old
    replica's cache held of a prompt is lost.

    References
    ----------
    R. D. Blumofe and C. E. Leiserson, "Scheduling multithreaded computations by work stealing", Journal of the ACM 46(5), 1999,
    doi:10.1145/324133.324234.
    """

    Config: ClassVar = WorkStealingConfig

    def __init__(
        self, config: WorkStealingConfig, rng: Generator, replicas: Sequence[ReplicaState], moving: Moving
    ) -> None:
        self.period_s = config.period_s
        self._min_waiting = config.min_waiting
        self._replicas = replicas

    def tick(self) -> list[MoveQueued]:
        """One request for each replica without a queue."""
        waiting = [replica.waiting_count for replica in self._replicas]
        if max(waiting) < self._min_waiting:
            return []
        moves: list[MoveQueued] = []
        queues: dict[int, list[int]] = {}
        for thief, count in enumerate(waiting):
            if count or not self._replicas[thief].present:
                continue
            victim = waiting.index(max(waiting))
            if waiting[victim] < self._min_waiting:
                break
            if victim not in queues:
                queues[victim] = [request.id for request in self._replicas[victim].waiting()]
            moves.append(MoveQueued(queues[victim].pop(), victim, thief))
            waiting[victim] -= 1
        return moves
