"""What a fault model knows of a fleet and what it says will happen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

FaultKind = Literal["fail", "repair", "warn", "slow", "end"]


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that happens to replicas at a time."""

    time_s: float
    """When; not before the last one of its model [s]."""
    kind: FaultKind
    """``fail``: all that is in their memory is lost; ``repair``: they may be started again; ``warn``: they will fail, so they take
    no more requests and drain; ``slow``: their steps last `factor` times as long from now on; ``end``: the model knows no further,
    and a run that goes on is refused."""
    replicas: tuple[int, ...]
    """Numbers over the fleet."""
    factor: float = 1.0
    """For ``slow``; 1 is the usual speed. > 0."""
    name: str = "replica_failed"
    """Kind of the event in the table."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where replicas stand: what fails together."""

    pools: dict[str, tuple[int, ...]]
    """Replicas of each pool, by their numbers over the fleet."""
    servers: tuple[tuple[int, ...], ...]
    """Replicas of each server, over the whole fleet."""
    racks: tuple[tuple[int, ...], ...]
    """Replicas of each rack: of the servers below one leaf of the network."""
    sites: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Replicas of each site of the scenario; empty where it has none."""

    def of_pool(self, pool: str | None, groups: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Groups of replicas, cut down to those of one pool; of all pools where none is named."""
        if pool is None:
            return [tuple(group) for group in groups]
        members = set(self.pools[pool])
        cut = [tuple(i for i in group if i in members) for group in groups]
        return [group for group in cut if group]


class FaultModel(Protocol):
    """Says what breaks. It does not know what the fleet does: the same faults strike under every policy.

    Built as ``Policy(config, rng, site)``: its parameters, its own random stream, and where replicas stand.
    """

    def faults(self) -> Iterator[Fault]:
        """What happens, in order of time; it may go on for ever."""
        ...
