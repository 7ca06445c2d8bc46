"""The load balancer in front of vLLM's data-parallel engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from mypy_extensions import mypyc_attr
from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import FleetView, MinIndex, RequestView


class VllmDpConfig(PolicyConfig):
    """Parameters of vLLM's data-parallel load balancer."""

    waiting_weight: "Annotated[int, Field(ge=0, strict=True, json_schema_extra={'unit': 'ratio'})]" = 4
    """What a waiting request counts for, a running one being 1."""
    stats_interval_s: "Annotated[float, Field(ge=0, json_schema_extra={'unit': 's'})]" = 0.1
    """Time between two reports of the engines. 0: as fresh as the gateway's view is."""


@mypyc_attr(allow_interpreted_subclasses=True)
class VllmDp:
    """The least of four times the waiting requests plus the running ones, from reports every 100 ms and what was sent since.

    Rule: ``score = waiting_weight x waiting + running``; argmin. Scores come from the engines' reports, read at the first decision
    `stats_interval_s` or more after the last reading; each request sent since then adds `waiting_weight` to its replica's score.
    Among equal scores the one unchanged for longest comes first.

    What is charged: nothing.

    References
    ----------
    vLLM, "Data Parallel Deployment", internal load balancing (docs.vllm.ai); ``DPLBAsyncMPClient`` in ``vllm/v1/engine``.
    """

    Config: ClassVar = VllmDpConfig

    def __init__(self, config: VllmDpConfig, rng: Generator, fleet: FleetView) -> None:
        self._fleet = fleet
        self._board = fleet.watch_load()
        self._changed = self._board.watch()
        self._weight = config.waiting_weight
        self._interval_s = config.stats_interval_s
        self._next_s = fleet.now_s
        self._index = MinIndex([0] * fleet.count)

    def route(self, request: RequestView) -> int:
        """Choose a replica."""
        index, now_s = self._index, self._fleet.now_s
        if now_s >= self._next_s:
            self._next_s = now_s + self._interval_s
            if self._interval_s > 0.0:
                self._index = index = MinIndex([self._score(i) for i in range(self._fleet.count)])
            else:
                for position in self._changed:
                    index.add(position, self._score(position) - index.values[position])
            self._changed.clear()
        chosen = index.smallest()
        if not self._fleet.present[chosen] and self._fleet.members:
            chosen = min(self._fleet.members, key=index.values.__getitem__)
        index.add(chosen, self._weight)
        if self._interval_s <= 0.0:
            self._changed.append(chosen)
        return chosen

    def explain(self, request: RequestView) -> Mapping[int, Mapping[str, float]]:
        """Score of each replica, as of the last reading."""
        return {i: {"score": float(score)} for i, score in enumerate(self._index.values)}

    def _score(self, position: int) -> int:
        board = self._board
        return int(self._weight * board.waiting[position] + board.running[position])
