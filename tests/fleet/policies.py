"""Policies that try what gateways and replicas must bear, named by import path in the tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from numpy.random import Generator

from fleetsim.plugins import PolicyConfig
from fleetsim.rebalancing.api import Borrow, Migrate, Move, MoveQueued, Moving, Recall, ReplicaState
from fleetsim.routing.api import FleetView, Reject, RequestView, Route, Window
from fleetsim.scaling.api import PoolState


class RestlessConfig(PolicyConfig):
    """How restless."""

    period_s: float = 0.05
    moves: int = 2
    last_s: float = 6.0
    """Then it rests: what is moved for ever never ends."""


class Restless:
    """Moves random requests to random replicas all the time."""

    Config: ClassVar = RestlessConfig

    def __init__(
        self, config: RestlessConfig, rng: Generator, replicas: Sequence[ReplicaState], moving: Moving
    ) -> None:
        self.period_s = config.period_s
        self._config, self._rng, self._replicas, self._moving = config, rng, replicas, moving

    def tick(self) -> list[Move]:
        if self._moving.now_s > self._config.last_s:
            return []
        count = len(self._replicas)
        moves: list[Move] = []
        for _ in range(self._config.moves):
            source, target = (int(i) for i in self._rng.permutation(count)[:2])
            running = [r.id for r in self._replicas[source].running() if r.decoding]
            waiting = [r.id for r in self._replicas[source].waiting()]
            if running:
                moves.append(Migrate(int(self._rng.choice(running)), source, target))
            if waiting:
                moves.append(MoveQueued(int(self._rng.choice(waiting)), source, target))
        return moves


class LavishConfig(PolicyConfig):
    """How lavish."""

    period_s: float = 0.05
    moves: int = 2
    last_s: float = 6.0
    """Then it rests."""
    also_moves: bool = False
    """Whether requests migrate meanwhile."""


class Lavish:
    """Lends random blocks of random requests to random replicas, and recalls some."""

    Config: ClassVar = LavishConfig

    def __init__(self, config: LavishConfig, rng: Generator, replicas: Sequence[ReplicaState], moving: Moving) -> None:
        self.period_s = config.period_s
        self._config, self._rng, self._replicas, self._moving = config, rng, replicas, moving

    def tick(self) -> list[Move]:
        if self._moving.now_s > self._config.last_s:
            return []
        moves: list[Move] = []
        for _ in range(self._config.moves):
            source, target = (int(i) for i in self._rng.permutation(len(self._replicas))[:2])
            running = [r for r in self._replicas[source].running() if r.decoding]
            if not running:
                continue
            request = running[int(self._rng.integers(len(running)))]
            if request.lendable_blocks:
                blocks = int(self._rng.integers(1, request.lendable_blocks + 1))
                moves.append(Borrow(request.id, source, target, blocks))
            if self._config.also_moves:
                moves.append(Migrate(running[0].id, source, target))
        moves += [Recall(r, s, t) for r, s, t, _, began in self._moving.loans() if began and self._rng.random() < 0.2]
        return moves


class SkewedConfig(PolicyConfig):
    """No parameters."""


class Skewed:
    """Two of three requests to the first replica."""

    Config: ClassVar = SkewedConfig

    def __init__(self, config: SkewedConfig, rng: Generator, fleet: FleetView) -> None:
        self._rng, self._count = rng, fleet.count

    def route(self, request: RequestView) -> int:
        return 0 if self._rng.random() < 0.67 else int(self._rng.integers(1, self._count))


class FidgetyConfig(PolicyConfig):
    """How fidgety."""

    period_s: float = 0.2
    last_s: float = 6.0
    """Then it rests."""


class Fidgety:
    """Wants a random number of replicas all the time."""

    Config: ClassVar = FidgetyConfig

    def __init__(self, config: FidgetyConfig, rng: Generator, pool: PoolState) -> None:
        self.period_s = config.period_s
        self._config, self._rng, self._pool = config, rng, pool

    def tick(self) -> int:
        if self._pool.now_s > self._config.last_s:
            return self._pool.maximum
        return int(self._rng.integers(self._pool.minimum, self._pool.maximum + 1))


class ImpatientConfig(PolicyConfig):
    """When to lose patience."""

    hedge_after_s: float = float("inf")
    retry_after_s: float = float("inf")
    max_attempts: int = 3


class Impatient:
    """The replicas in turn, with hedges and retries."""

    Config: ClassVar = ImpatientConfig

    def __init__(self, config: ImpatientConfig, rng: Generator, fleet: FleetView) -> None:
        self._config, self._count, self._last = config, fleet.count, -1
        self._present = fleet.present

    def route(self, request: RequestView) -> Route:
        self._last = (self._last + 1) % self._count
        while not self._present[self._last] and any(self._present):
            self._last = (self._last + 1) % self._count
        if request.attempt >= self._config.max_attempts:
            return Route(self._last)
        return Route(self._last, hedge_after_s=self._config.hedge_after_s, retry_after_s=self._config.retry_after_s)


class CrosswiseConfig(PolicyConfig):
    """No parameters."""


class Crosswise:
    """Prompts to the replicas in turn, answers to the next one."""

    Config: ClassVar = CrosswiseConfig
    pairs: ClassVar[bool] = True

    def __init__(self, config: CrosswiseConfig, rng: Generator, fleet: FleetView) -> None:
        self._count, self._last = fleet.count, -1

    def route(self, request: RequestView) -> Route:
        self._last = (self._last + 1) % self._count
        return Route(self._last, decode=(self._last + 1) % self._count)


class PatientConfig(ImpatientConfig):
    """How long to collect requests."""

    most: int = 4
    wait_s: float = 0.1
    rejects: int = 0
    """Every so many-th of a window is rejected."""


class Patient(Impatient):
    """Like `Impatient`, but about several requests at once; notes at what times and about whom."""

    Config: ClassVar = PatientConfig
    noted: ClassVar[list[tuple[float, list[int]]]] = []

    def __init__(self, config: PatientConfig, rng: Generator, fleet: FleetView) -> None:
        super().__init__(config, rng, fleet)
        self._patience, self._fleet = config, fleet

    def window(self) -> Window:
        return Window(self._patience.most, self._patience.wait_s)

    def route_window(self, requests: Sequence[RequestView]) -> list[Route | Reject]:
        Patient.noted.append((self._fleet.now_s, [request.id for request in requests]))
        rejects = self._patience.rejects
        return [
            Reject("one of many") if rejects and number % rejects == rejects - 1 else self.route(request)
            for number, request in enumerate(requests)
        ]
