"""What an autoscaler of several pools sees and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Protocol

from fleetsim.scaling.api import PoolState


class NamesPool:
    """Marks a policy's parameter as the name of a pool, or of several; scenarios are checked for it."""


PoolName = Annotated[str, NamesPool()]
"""Type of such a parameter."""


@dataclass(slots=True)
class ReplicaState:
    """One replica that is not off, as its metrics show it at a tick."""

    number: int
    """Over the whole fleet."""
    state: str
    """``ready``, ``starting``, ``draining`` or ``down``."""
    running: int
    """Requests running."""
    waiting: int
    """Requests in its queue."""
    max_seqs: int
    """Requests that one data-parallel rank runs at a time at most, as set last."""
    classes: Mapping[str | None, int]
    """Requests sent there and not ended, by class, as the gateway counts them."""
    busy_s: float
    """Time in which steps ran, since the last tick [s]."""
    steps: int
    """Steps since the last tick."""
    output_tokens: int
    """Tokens of answers since the last tick."""


@dataclass(frozen=True, slots=True)
class Held:
    """A request that waits at the gateway, for a router that holds it or for a replica to come."""

    klass: str | None
    arrival_s: float
    """Arrival at the gateway [s]."""
    deadline_s: float
    """Latest first token that keeps the limit of its class [s]; infinite without one."""
    prompt_tokens: int


@dataclass(slots=True)
class Way:
    """A way in which replicas of one pool become replicas of another (`conversions` of a scenario)."""

    source: str
    target: str
    seconds: float
    """What it takes, if nothing else moves, from when nothing of the old replica is waited for [s]."""
    serves: bool
    """Whether the old replica goes on serving meanwhile."""
    under_way: int = 0
    """Replicas that are on it."""


@dataclass(slots=True)
class FleetState:
    """All pools as their metrics show them at a tick; nothing of the future, and no output length before it has happened."""

    pools: Mapping[str, PoolState]
    """By name. What a pool's `wanted` counts are its replicas that start or serve and those that will have turned into its own."""
    replicas: Mapping[str, Sequence[ReplicaState]]
    """Those that are not off, by pool."""
    ways: Mapping[tuple[str, str], Way]
    """By source and target."""
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Objectives for the time to first token and per output token of classes that have their own; infinite without one [s]."""
    held: Sequence[Held] = ()
    """Requests that wait at the gateway, in the order in which they began to."""
    now_s: float = 0.0
    """Time of this tick [s]."""
    elapsed_s: float = 0.0
    """Time since the last one [s]."""

    def limits_of(self, klass: str | None) -> tuple[float, float]:
        """Objectives of a class, its own or those of all [s]."""
        pool = next(iter(self.pools.values()))
        return self.limits.get(klass or "", (pool.ttft_limit_s, pool.tpot_limit_s))


@dataclass(frozen=True, slots=True)
class Scale:
    """Decision that a pool has so many replicas, those that are starting included; it is brought into the pool's bounds."""

    pool: str
    replicas: int


@dataclass(frozen=True, slots=True)
class Convert:
    """Decision that ready replicas of one pool, those with the least to do, become replicas of another one.

    As many as the bounds of both pools and the replicas that are ready allow; the scenario's `conversions` say how.
    """

    source: str
    target: str
    replicas: int = 1


@dataclass(frozen=True, slots=True)
class Seat:
    """Decision that so many requests run at a time on each data-parallel rank of a replica, from the next step on."""

    replica: int
    """Number over the whole fleet."""
    max_seqs: int
    """From 1 to what the scenario's scheduler says."""


Action = Scale | Convert | Seat


class FleetAutoscaler(Protocol):
    """Says how many replicas each pool should have, and which turn into replicas of another one.

    Built as ``Policy(config, rng, fleet)``: its parameters, its own random stream, and the state of the fleet, which is brought up
    to date before each tick. Its attribute `period_s` says how often it is asked.
    """

    period_s: float

    def tick(self) -> Sequence[Action]:
        """What is to change, in this order; nothing is an answer."""
        ...
