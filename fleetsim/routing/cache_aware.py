"""The cache-aware policy of SGLang's gateway."""

from __future__ import annotations

from typing import Annotated, ClassVar

from mypy_extensions import mypyc_attr
from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import FleetView, RequestView
from fleetsim.routing.prefix_index import PrefixIndex


class CacheAwareConfig(PolicyConfig):
    """Parameters of cache-aware routing; defaults are those of SGLang's gateway."""

    match_threshold: "Annotated[float, Field(ge=0, le=1, json_schema_extra={'unit': 'ratio'})]" = 0.3
    """A prefix decides where more than this part of the prompt matches."""
    imbalance_requests: "Annotated[int, Field(ge=0, strict=True, json_schema_extra={'unit': 'requests'})]" = 64
    """Load decides where the most and the least loaded replica differ by more than this, and …"""
    imbalance_ratio: "Annotated[float, Field(ge=1, json_schema_extra={'unit': 'ratio'})]" = 1.5
    """… the most loaded one has more than this times the requests of the least loaded one."""
    tree_tokens: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'tokens'})]" = 1 << 24
    """Tokens that the gateway remembers per replica. The default takes a token for 4 of SGLang's 67,108,864 characters."""
    eviction_interval_s: "Annotated[float, Field(gt=0, json_schema_extra={'unit': 's'})]" = 120.0
    """Time between two looks for replicas of which more than `tree_tokens` are remembered."""
    block_tokens: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'tokens'})]" = 16
    """Tokens per block in which the gateway reads prompts."""


@mypyc_attr(allow_interpreted_subclasses=True)
class CacheAware:
    """The replica that was sent the longest prefix of the prompt before; the least loaded one while loads are far apart.

    The gateway remembers what it sent to each replica, not what is in their caches: it learns of no eviction there. Loads are far
    apart where most - least > `imbalance_requests` and most > `imbalance_ratio` x least (outstanding requests). Else a prompt of
    which more than `match_threshold` was sent before goes to the replica that was sent it first (of those that still remember
    it), any other to the replica of which least is remembered.

    References
    ----------
    SGLang's model gateway, policy ``cache_aware`` (docs.sglang.ai, "SGLang Model Gateway"; first in SGLang v0.4, December 2024).
    """

    Config: ClassVar = CacheAwareConfig

    def __init__(self, config: CacheAwareConfig, rng: Generator, fleet: FleetView) -> None:
        self._fleet = fleet
        self._least = fleet.index_outstanding()
        self._most = fleet.index_most_outstanding()
        self._index = PrefixIndex(fleet.count)
        self._block_tokens = config.block_tokens
        self._threshold = config.match_threshold
        self._gap = config.imbalance_requests
        self._ratio = config.imbalance_ratio
        self._tree_blocks = config.tree_tokens // config.block_tokens
        self._interval_s = config.eviction_interval_s
        self._eviction_s = fleet.now_s + config.eviction_interval_s

    def route(self, request: RequestView) -> int:
        """Choose a replica."""
        fleet, index = self._fleet, self._index
        if fleet.now_s >= self._eviction_s:
            self._eviction_s = fleet.now_s + self._interval_s
            for replica in range(fleet.count):
                index.trim(replica, self._tree_blocks)
        path = request.prefix(self._block_tokens)
        chosen = self._least.smallest()
        least, most = fleet.outstanding[chosen], fleet.outstanding[self._most.smallest()]
        if not fleet.whole:
            most = max([fleet.outstanding[position] for position in fleet.members], default=0)
        if most - least <= self._gap or most <= self._ratio * least:
            blocks, node = index.longest(path)
            if blocks * self._block_tokens > self._threshold * request.prompt_tokens:
                chosen = next((holder for holder in node.holders if fleet.present[holder]), chosen)
            else:
                smallest = index.sizes.smallest()
                if not fleet.present[smallest] and fleet.members:
                    smallest = min(fleet.members, key=index.sizes.values.__getitem__)
                chosen = smallest
            index.insert_behind(blocks, node, path, chosen)
        else:
            index.insert(path, chosen)
        return chosen
