"""The cost function of NVIDIA Dynamo's KV router."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
from mypy_extensions import mypyc_attr
from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import FleetView, RequestView
from fleetsim.routing.prefix_index import first_holders


class DynamoKvConfig(PolicyConfig):
    """Parameters of Dynamo's KV router."""

    overlap_weight: "Annotated[float, Field(ge=0, json_schema_extra={'unit': 'ratio'})]" = 1.0
    """What a block to prefill costs, a block in use being 1."""
    temperature: "Annotated[float, Field(ge=0, json_schema_extra={'unit': 'ratio'})]" = 0.0
    """Of the softmin by which a replica is drawn, costs being scaled to a range of 1. 0: the least cost."""
    block_tokens: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'tokens'})]" = 16
    """Tokens per block in which costs are counted."""
    holders: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'count'})]" = 64
    """Replicas with a beginning of the prompt in their caches for which it counts, those that have held it for longest."""


@mypyc_attr(allow_interpreted_subclasses=True)
class DynamoKv:
    """The least cost: blocks to prefill after what is cached, weighted, plus blocks in use by requests.

    Rule: ``cost = overlap_weight x (pending + own uncached prompt blocks) + KV blocks in use``; the replica with the least (ties at
    random), or at a `temperature` T above 0 one drawn with weight ``exp(-cost / ((most - least) T))``. Blocks in use are those at
    the view's stated time, also of caches that fill while their replicas report nothing.

    What is charged: nothing; the scan grows with the fleet, in vector operations; a `temperature` above 0 asks each replica.

    References
    ----------
    NVIDIA Dynamo, "KV cache routing", ``--kv-overlap-score-weight`` and ``--router-temperature`` (docs.nvidia.com/dynamo).
    """

    Config: ClassVar = DynamoKvConfig

    def __init__(self, config: DynamoKvConfig, rng: Generator, fleet: FleetView) -> None:
        board = fleet.watch_load()
        fleet.watch_caches()
        self._fleet = fleet
        self._rng = rng
        self._holders = config.holders
        self._per_token = config.overlap_weight / config.block_tokens
        self._temperature = config.temperature
        self._capacity = [tokens / config.block_tokens for tokens in fleet.capacity_tokens]
        self._pending: Any = np.frombuffer(board.pending_tokens)
        self._known_used = board.watch_kv(fleet.now_s)
        self._changed = board.watch()
        self._exact = fleet.freshness.kind == "exact"
        self._least_used = array("d", [0.0] * fleet.count)
        """Blocks that are in use on each replica at least: when it was asked last, or when it changed if that was later."""
        self._used: Any = np.frombuffer(self._least_used)

    def route(self, request: RequestView) -> int:
        """Choose a replica."""
        costs = self._without_use(request)
        if self._temperature > 0.0:
            costs += self._used_now()
            least = costs.min()
            spread = costs[self._fleet.members].max() - least
            if spread > 0.0:
                weights = np.exp((least - costs) / (spread * self._temperature)).cumsum()
                return int(weights.searchsorted(self._rng.random() * weights[-1], side="right"))
            best = (costs == least).nonzero()[0].tolist()
        else:
            best = self._least(costs)
        return int(best[0] if len(best) == 1 else best[self._rng.integers(len(best))])

    def _least(self, costs: Any) -> list[int]:
        """Replicas of the least cost, of costs without the blocks in use.

        A cache fills while its replica does not change, so that what was in use then, or when asked last, gives lower bounds:
        those that seem least are corrected until nobody seems to cost less.
        """
        fleet, used, capacity, changed = self._fleet, self._least_used, self._capacity, self._changed
        if not self._exact:
            changed.extend(range(len(used)))  # what is shown may change without a change
        if changed:
            known = self._known_used
            for place in changed:
                used[place] = known[place] * capacity[place]
            changed.clear()
        bounds = costs + self._used
        exact: list[int] = []
        while True:
            place = int(bounds.argmin())
            if place not in exact:
                exact.append(place)
                blocks = fleet.kv_used(place) * capacity[place]
                used[place] = blocks
                bounds[place] = costs[place] + blocks
                continue
            least = bounds[place]
            places: list[int] = (bounds == least).nonzero()[0].tolist()
            if len(places) == 1:
                return places
            seeming = [other for other in places if other not in exact]
            if not seeming:
                return places
            for other in seeming:
                exact.append(other)
                blocks = fleet.kv_used(other) * capacity[other]
                used[other] = blocks
                bounds[other] = costs[other] + blocks

    def _used_now(self) -> Any:
        return np.array([self._fleet.kv_used(place) * blocks for place, blocks in enumerate(self._capacity)])

    def explain(self, request: RequestView) -> Mapping[int, Mapping[str, float]]:
        """Cost of each replica in blocks."""
        costs = self._without_use(request) + self._used_now()
        return {i: {"cost_blocks": cost} for i, cost in enumerate(costs.tolist())}

    def _without_use(self, request: RequestView) -> Any:
        """Weighted blocks to prefill on each replica, in a new array."""
        tokens, limit = request.prompt_tokens, self._holders
        levels = self._fleet.levels(request, limit)
        if levels and limit >= len(levels[-1][0].holders) == len(self._capacity):
            costs = self._pending + (tokens - levels.pop()[1])  # everybody holds as much
        else:
            costs = self._pending + tokens
        while levels:
            run, held = levels.pop()
            holders = first_holders(run, limit)
            costs[holders] = self._pending[holders] + (tokens - held)
        costs *= self._per_token
        return self._fleet.keep_present(costs)
