"""Llumnix: the replica with the most room for each request it has."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from mypy_extensions import mypyc_attr
from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import FleetView, RequestView
from fleetsim.routing.memory_scan import MemoryScan


class LlumnixConfig(PolicyConfig):
    """Parameters of dispatch by freeness."""

    queued: 'Literal["first", "all", "none"]' = "first"
    """Whose demand counts as used: that of the request that waits first, as published; of all that wait, as in the repository;
    or of none: free memory over active requests, the variant without migration that others compare with as "llumnix--"."""
    headroom_ratio: "Annotated[float, Field(ge=0, le=1, json_schema_extra={'unit': 'ratio'})]" = 0.0
    """Part of the KV cache that counts as used on a replica that runs requests of a priority above 0. The same as the
    rebalancer's."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Llumnix:
    """The replica with the most freeness: decode steps that its free memory lasts for all it serves.

    Rule: ``freeness = (capacity - used - wanted - headroom) / (running + waiting)`` in tokens per request, where `wanted` is
    what the first waiting request will take when it runs (`queued`), and `headroom` is ``headroom_ratio`` of the capacity where
    requests of a priority above 0 run. The highest is chosen; a replica without requests is infinitely free, and the first one
    of several. To be used with the rebalancer of the same name.

    What is charged: nothing for the decision. Loads are telemetry; where several look equally free in an old view, all requests
    go to one until the next report.

    References
    ----------
    B. Sun et al., "Llumnix: Dynamic Scheduling for Large Language Model Serving", OSDI 2024, arXiv:2406.03243; the load
    ``remaining_steps`` of the repository AlibabaPAI/llumnix.
    """

    Config: ClassVar = LlumnixConfig

    def __init__(self, config: LlumnixConfig, rng: Generator, fleet: FleetView) -> None:
        figures = {"all": ["kv_wanted"], "first": ["kv_first"], "none": []}[config.queued]
        if config.headroom_ratio:
            figures.append("urgent")
        board = fleet.watch_load(demand=figures)
        self._board = board
        self._fleet = fleet
        self._queued = config.queued != "none"
        self._headroom = config.headroom_ratio
        self._scan = MemoryScan(fleet, self._freeness)
        self._capacity: Any = np.array(fleet.capacity_tokens, dtype=float)
        # views of the board's arrays: they change with it
        self._kv_used: Any = np.frombuffer(board.watch_kv(fleet.now_s))
        self._demand = board.kv_wanted if config.queued == "all" else board.kv_first
        self._kv_wanted: Any = np.frombuffer(self._demand)
        self._urgent: Any = np.frombuffer(board.urgent)
        self._running: Any = np.frombuffer(board.running)
        self._waiting: Any = np.frombuffer(board.waiting)

    def route(self, request: RequestView) -> int:
        """Choose a replica."""
        room = 1.0 - self._kv_used
        if self._queued:
            room = room - self._kv_wanted
        if self._headroom:
            room = room - self._headroom * (self._urgent > 0.0)
        requests = self._running + self._waiting
        scores = np.full(len(room), inf)
        np.divide(room * self._capacity, requests, out=scores, where=requests > 0.0)
        return self._scan.best(self._fleet.keep_present(scores, -inf))

    def _freeness(self, position: int, used: float) -> float:
        """Tokens per request that a replica with this part of its cache in use has room for [tokens]."""
        board = self._board
        requests: float = board.running[position] + board.waiting[position]
        if requests <= 0.0:
            return inf
        room = 1.0 - used
        if self._queued:
            room = room - self._demand[position]
        if self._headroom and board.urgent[position] > 0.0:
            room = room - self._headroom
        return room * float(self._fleet.capacity_tokens[position]) / requests

    def explain(self, request: RequestView) -> Mapping[int, Mapping[str, float]]:
        """Freeness of each replica."""
        used = self._fleet.kv_used
        return {i: {"freeness": self._freeness(i, used(i))} for i in range(self._fleet.count)}
