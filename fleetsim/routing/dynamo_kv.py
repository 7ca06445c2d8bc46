"""The cost function of NVIDIA Dynamo's KV router."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from math import inf
from typing import Annotated, Any, ClassVar

import numpy as np
from mypy_extensions import mypyc_attr
from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import FleetView, RequestView
from fleetsim.routing.prefix_index import PrefixNode, first_holders

_FEW = 128
"""Replicas that are looked at one by one, which is faster than in arrays."""


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

    What is charged: nothing; the scan grows with the fleet, in large ones in vector operations; a `temperature` above 0 asks each
    replica.

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
        self._board = board
        self._pending: Any = np.frombuffer(board.pending_tokens)
        self._known_used = board.watch_kv(fleet.now_s)
        self._changed = board.watch()
        self._exact = fleet.freshness.kind == "exact"
        self._least_used = array("d", [0.0] * fleet.count)
        """Blocks that are in use on each replica at least: when it was asked last, or when it changed if that was later."""
        self._used: Any = np.frombuffer(self._least_used)
        self._few = fleet.count <= _FEW and config.temperature == 0.0
        self._pending_of = [0.0] * fleet.count
        self._used_of = [0.0] * fleet.count
        """In a small fleet, what `_pending` and `_used` are in a large one, in lists."""

    def route(self, request: RequestView) -> int:
        """Choose a replica."""
        if self._few and self._fleet.members:
            best = self._least_of_few(request.prompt_tokens, self._fleet.levels(request, self._holders))
            return best[0] if len(best) == 1 else best[self._rng.integers(len(best))]
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
        fleet, used, capacity = self._fleet, self._least_used, self._capacity
        self._catch_up()
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

    def _catch_up(self) -> None:
        """Bring what is in use at least, and in a small fleet what is pending, to what is known now."""
        changed, capacity = self._changed, self._capacity
        if not self._exact:
            changed.extend(range(len(capacity)))  # what is shown may change without a change
        if not changed:
            return
        known = self._known_used
        if self._few:
            used_of, pending_of, pending = self._used_of, self._pending_of, self._board.pending_tokens
            for place in changed:
                used_of[place] = known[place] * capacity[place]
                pending_of[place] = pending[place]
        else:
            used = self._least_used
            for place in changed:
                used[place] = known[place] * capacity[place]
        changed.clear()

    def _least_of_few(self, tokens: int, levels: list[tuple[PrefixNode, int]]) -> list[int]:
        """Replicas of the least cost for a prompt of so many tokens, as `_least` finds them, one by one."""
        self._catch_up()
        used, pending, per_token, here = self._used_of, self._pending_of, self._per_token, self._fleet.present
        held = [0] * len(used)
        while levels:
            run, hit = levels.pop()
            room = self._holders
            for place in run.holders:
                held[place] = hit
                room -= 1
                if not room:
                    break
        exact: list[int] = []
        while True:
            least, best = inf, -1
            ties: list[int] = []
            for place, used_blocks in enumerate(used):
                if not here[place]:
                    continue
                cost = (pending[place] + float(tokens - held[place])) * per_token + used_blocks
                if cost < least:
                    least, best = cost, place
                    if ties:
                        ties = []
                elif cost == least:
                    ties.append(place)
            seeming = [place for place in (best, *ties) if place not in exact]
            if not seeming:
                return [best, *ties]
            for place in seeming:
                exact.append(place)
                used[place] = self._fleet.kv_used(place) * self._capacity[place]

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
