"""Consistent hashing with bounded loads."""

from __future__ import annotations

from bisect import bisect_right
from hashlib import blake2b
from itertools import chain, islice
from math import ceil
from typing import Annotated, ClassVar

from mypy_extensions import mypyc_attr
from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import FleetView, RequestView


class ConsistentHashConfig(PolicyConfig):
    """Parameters of consistent hashing with bounded loads."""

    load_bound: "Annotated[float, Field(gt=1, json_schema_extra={'unit': 'ratio'})]" = 1.25
    """No replica gets more than this times the mean number of outstanding requests, rounded up."""
    block_tokens: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'tokens'})]" = 16
    """Tokens per block in which the gateway reads prompts."""
    key_blocks: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'blocks'})]" = 16
    """Of a request without a session, the prompt's first blocks that choose its replica."""
    virtual_nodes: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'count'})]" = 100
    """Places of each replica on the ring."""


@mypyc_attr(allow_interpreted_subclasses=True)
class ConsistentHash:
    """The next replica on a hash ring after the session, or the prompt's first blocks, whose load is not above a bound.

    Replicas stand on a ring at `virtual_nodes` places each. A request starts at the hash of its key and goes to the first replica
    on whose outstanding requests one more would not exceed ``ceil(load_bound x (all outstanding + 1) / replicas)``; there always
    is one. The search is logarithmic, and the walk takes a number of steps that depends on the bound only while keys are many;
    where one key makes most of the load, it passes all replicas that the key has filled.

    References
    ----------
    V. Mirrokni, M. Thorup, M. Zadimoghaddam, "Consistent Hashing with Bounded Loads", SODA 2018, arXiv:1608.01350.
    """

    Config: ClassVar = ConsistentHashConfig

    def __init__(self, config: ConsistentHashConfig, rng: Generator, fleet: FleetView) -> None:
        places = sorted(
            (_place(f"replica/{position}/{copy}"), position)
            for position in range(fleet.count)
            for copy in range(config.virtual_nodes)
        )
        self._places = [place for place, _ in places]
        self._owners = [position for _, position in places]
        self._bound = config.load_bound
        self._block_tokens = config.block_tokens
        self._key_blocks = config.key_blocks
        self._fleet = fleet

    def route(self, request: RequestView) -> int:
        """Choose a replica."""
        fleet, owners = self._fleet, self._owners
        outstanding = fleet.outstanding
        limit = ceil(self._bound / max(len(fleet.members), 1) * (fleet.in_flight + 1))
        at = bisect_right(self._places, _place(self._key(request)))
        size = len(owners)
        for step in range(at, at + size):
            owner = owners[step % size]
            if outstanding[owner] < limit:
                return owner
        raise AssertionError("not all replicas that are there can be above the mean")

    def _key(self, request: RequestView) -> str:
        if request.session >= 0:
            return f"session/{request.session}"
        path = request.prefix(self._block_tokens)
        keys = tuple(islice(chain.from_iterable(path), self._key_blocks))
        return f"prefix/{keys}" if keys else f"request/{request.id}"


def _place(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big")
