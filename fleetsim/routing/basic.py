"""Routers that look at load only."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from typing import Annotated, ClassVar

from mypy_extensions import mypyc_attr
from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import FleetView, RequestView

_CHUNK = 4096


class RandomConfig(PolicyConfig):
    """Random choice has no parameters."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Random:
    """Any replica with equal chance."""

    Config: ClassVar = RandomConfig

    def __init__(self, config: RandomConfig, rng: Generator, fleet: FleetView) -> None:
        self._fleet = fleet
        self._draws = draws(rng, fleet.count, 1)

    def route(self, request: RequestView) -> int:
        """Choose a replica."""
        return self._fleet.here(next(self._draws)[0])


class RoundRobinConfig(PolicyConfig):
    """Round robin has no parameters."""


@mypyc_attr(allow_interpreted_subclasses=True)
class RoundRobin:
    """The replicas in turn."""

    Config: ClassVar = RoundRobinConfig

    def __init__(self, config: RoundRobinConfig, rng: Generator, fleet: FleetView) -> None:
        self._count = fleet.count
        self._present = fleet.present
        self._last = -1

    def route(self, request: RequestView) -> int:
        """Choose a replica."""
        for _ in range(self._count):
            self._last = (self._last + 1) % self._count
            if self._present[self._last]:
                break
        return self._last


class LeastOutstandingConfig(PolicyConfig):
    """Least outstanding has no parameters."""


@mypyc_attr(allow_interpreted_subclasses=True)
class LeastOutstanding:
    """The replica with the fewest requests sent and not ended; ties go to the one whose count has not changed for longest."""

    Config: ClassVar = LeastOutstandingConfig

    def __init__(self, config: LeastOutstandingConfig, rng: Generator, fleet: FleetView) -> None:
        self._index = fleet.index_outstanding()

    def route(self, request: RequestView) -> int:
        """Choose a replica."""
        return self._index.smallest()


class JoinShortestQueueConfig(PolicyConfig):
    """Parameters of join-shortest-queue by tokens."""

    decode_weight_tokens: "Annotated[int, Field(ge=0, strict=True, json_schema_extra={'unit': 'tokens'})]" = 64
    """How many pending prompt tokens a request that already decodes counts for."""


@mypyc_attr(allow_interpreted_subclasses=True)
class JoinShortestQueue:
    """The replica with the least work in tokens: prompts not yet answered, plus a weight for each request that decodes.

    Requests are not equal: with heavy-tailed prompts the number of requests says little about the time to the next free slot.
    """

    Config: ClassVar = JoinShortestQueueConfig

    def __init__(self, config: JoinShortestQueueConfig, rng: Generator, fleet: FleetView) -> None:
        self._index = fleet.index_work(config.decode_weight_tokens)

    def route(self, request: RequestView) -> int:
        """Choose a replica."""
        return self._index.smallest()


class PowerOfTwoChoicesConfig(PolicyConfig):
    """Parameters of the power of d choices."""

    choices: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'count'})]" = 2
    """Replicas sampled (with equal chance, without repetition). 1 is random."""


@mypyc_attr(allow_interpreted_subclasses=True)
class PowerOfTwoChoices:
    """Of two (or `choices`) replicas drawn at random, the one with fewer outstanding requests; the first drawn wins ties.

    References
    ----------
    M. Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", IEEE TPDS 12(10), 2001, doi:10.1109/71.963420.
    """

    Config: ClassVar = PowerOfTwoChoicesConfig

    def __init__(self, config: PowerOfTwoChoicesConfig, rng: Generator, fleet: FleetView) -> None:
        self._fleet = fleet
        self._choices = min(config.choices, fleet.count)
        self._outstanding = fleet.outstanding
        self._draws = draws(rng, fleet.count, self._choices)

    def route(self, request: RequestView) -> int:
        """Choose a replica."""
        outstanding = self._outstanding
        if self._choices == 2:
            first, second = next(self._draws)
            if second >= first:
                second += 1
            return self._fleet.here(second if outstanding[second] < outstanding[first] else first)
        drawn: list[int] = []
        for position in next(self._draws):
            for earlier in sorted(drawn):
                position += position >= earlier
            drawn.append(position)
        return self._fleet.here(min(drawn, key=outstanding.__getitem__))


class SessionAffinityConfig(PolicyConfig):
    """Session affinity has no parameters."""


@mypyc_attr(allow_interpreted_subclasses=True)
class SessionAffinity:
    """All turns of a session to the same replica, by rendezvous hashing; requests without a session to the least outstanding.

    References
    ----------
    D. Thaler, C. Ravishankar, "Using Name-Based Mappings to Increase Hit Rates", IEEE/ACM ToN 6(1), 1998, doi:10.1109/90.663936.
    """

    Config: ClassVar = SessionAffinityConfig

    def __init__(self, config: SessionAffinityConfig, rng: Generator, fleet: FleetView) -> None:
        self._fleet = fleet
        self._count = fleet.count
        self._index = fleet.index_outstanding()
        self._homes: dict[int, int] = {}

    def route(self, request: RequestView) -> int:
        """Choose a replica."""
        session = request.session
        if session < 0:
            return self._index.smallest()
        home = self._homes.get(session)
        if home is None:
            home = self._homes[session] = max(range(self._count), key=lambda position: _weight(session, position))
            if len(self._homes) > 1 << 20:  # a cache only: the hash gives the same answer again
                self._homes.pop(next(iter(self._homes)))
        if not self._fleet.present[home] and self._fleet.members:
            return max(self._fleet.members, key=lambda position: _weight(session, position))
        return home


def _weight(session: int, position: int) -> bytes:
    return blake2b(f"{session}/{position}".encode(), digest_size=8).digest()


def draws(rng: Generator, below: int, count: int) -> Iterator[tuple[int, ...]]:
    """Tuples of uniform integers below `below`, `below` - 1, … (`count` of them), drawn in chunks."""
    while True:
        yield from zip(*(rng.integers(0, below - i, _CHUNK).tolist() for i in range(count)), strict=True)
