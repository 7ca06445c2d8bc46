"""What a fault model knows of a fleet and what it says will happen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from fleetsim.errors import Finding, InputError, nearest

FaultKind = Literal[
    "fail",
    "repair",
    "warn",
    "slow",
    "link",
    "link_back",
    "gateway",
    "gateway_back",
    "lose_cache",
    "corrupt_cache",
    "end",
]
Edge = tuple[str, str]
"""A link of the network, one way."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that happens to replicas at a time."""

    time_s: float
    """When; not before the last one of its model [s]."""
    kind: FaultKind
    """``fail``: all that is in their memory is lost; ``repair``: they may be started again; ``warn``: they will fail, so they take
    no more requests and drain; ``slow``: their steps last `factor` times as long from now on; ``link``: `links` carry the share
    `factor` of their bandwidth, nothing where it is 0, until ``link_back`` with the same links and share; ``gateway``: the share
    `factor` of the gateways is gone, until ``gateway_back`` with the same share; ``lose_cache``: what lies in `tier` is gone;
    ``corrupt_cache``: the share `factor` of it is not what it should be, which shows when it is read; ``end``: the
    model knows no further, and a run that goes on is refused."""
    replicas: tuple[int, ...] = ()
    """Numbers over the fleet."""
    factor: float = 1.0
    """For ``slow``, where 1 is the usual speed (> 0), and for links and gateways, where it is a share (0 to 1)."""
    name: str = "replica_failed"
    """Kind of the event in the table, of failures."""
    links: tuple[Edge, ...] = ()
    """Of the network, as `Site` names them."""
    tier: Literal["host", "ssd", "store"] = "host"
    """Which place below the replicas' memory is struck: that of `replicas`, or the store that all share."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where replicas stand: what fails together."""

    pools: dict[str, tuple[int, ...]]
    """Replicas of each pool, by their numbers over the fleet."""
    servers: tuple[tuple[int, ...], ...]
    """Replicas of each server, over the whole fleet."""
    racks: tuple[tuple[int, ...], ...]
    """Replicas of each rack: of the servers below one leaf of the network."""
    replica_links: tuple[tuple[Edge, ...], ...] = ()
    """Links of each replica to its server and to its neighbours there, both ways; by number over the fleet."""
    server_links: tuple[tuple[Edge, ...], ...] = ()
    """Links of each server's adapters to its leaf; in the order of `servers`."""
    rack_links: tuple[tuple[Edge, ...], ...] = ()
    """Links of each leaf to the others, to the store and to the gateway; in the order of `racks`."""
    gateway_links: tuple[Edge, ...] = ()
    """The gateway's adapter."""
    store_links: tuple[Edge, ...] = ()
    """The remote store's, if there is one."""
    sites: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Replicas of each site of the scenario; empty where it has none."""
    site_links: dict[str, tuple[Edge, ...]] = field(default_factory=dict)
    """Links of each site to all others."""
    accelerators: tuple[int, ...] = ()
    """Of each replica, by number over the fleet; one each where nobody says."""

    def accelerators_of(self, replica: int) -> int:
        """Accelerators of a replica."""
        return self.accelerators[replica] if self.accelerators else 1

    def members(self, pool: str) -> tuple[int, ...]:
        """Replicas of a pool.

        Raises
        ------
        InputError
            If there is none of this name.
        """
        if pool not in self.pools:
            raise InputError(Finding(f'faults name the pool "{pool}"', hint=nearest(pool, self.pools, "pools")))
        return self.pools[pool]

    def links_of(self, pool: str | None, scope: Literal["replica", "server", "rack"]) -> list[tuple[Edge, ...]]:
        """Links of the replicas, servers or racks of one pool, in their order there; of all pools where none is named."""
        if scope == "replica":
            numbers = [i for members in self.pools.values() for i in members] if pool is None else self.members(pool)
            return [self.replica_links[i] for i in numbers]
        groups, links = (self.servers, self.server_links) if scope == "server" else (self.racks, self.rack_links)
        members = {i for each in self.pools.values() for i in each} if pool is None else set(self.members(pool))
        return [link for group, link in zip(groups, links, strict=True) if members.intersection(group)]

    def of_pool(self, pool: str | None, groups: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Groups of replicas, cut down to those of one pool; of all pools where none is named."""
        if pool is None:
            return [tuple(group) for group in groups]
        members = set(self.members(pool))
        cut = [tuple(i for i in group if i in members) for group in groups]
        return [group for group in cut if group]


class FaultModel(Protocol):
    """Says what breaks. It does not know what the fleet does: the same faults strike under every policy.

    Built as ``Policy(config, rng, site)``: its parameters, its own random stream, and where replicas stand.
    """

    def faults(self) -> Iterator[Fault]:
        """What happens, in order of time; it may go on for ever."""
        ...
