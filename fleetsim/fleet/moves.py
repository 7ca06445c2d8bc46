"""Requests that go on at another replica: those that wait, and decoding ones with their keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from fleetsim.engine.replica import Replica
from fleetsim.errors import PolicyError
from fleetsim.fleet.migration import Migration
from fleetsim.routing.api import Borrow, Migrate, MoveQueued, Recall
from fleetsim.workload.request import WAITING, Request

if TYPE_CHECKING:
    from fleetsim.fleet.gateway import Gateway


class Moves:
    """Moves requests as routers and rebalancers say, where they still are what these policies think, and counts what moved."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        replicas = len(gateway.replicas)
        self.by_id: dict[int, Request] | None = None
        """Requests under way, where somebody may want to move them."""
        self.under_way: dict[Request, Migration] = {}
        self.migrating = [0] * replicas
        """Migrations under way from or to each replica."""
        self.completed = 0
        """Migrations that came to their end."""
        self.given_up = 0
        """Those that did not."""
        self.copied_bytes = 0.0
        """Sent by migrations."""
        self.completed_in = [0] * replicas
        """Migrations completed to each replica."""
        self.given_up_in = [0] * replicas
        """Migrations to each replica that were given up."""
        self.paused_in_s = [0.0] * replicas
        """Time from leaving their source to joining the queue of each replica, summed over the migrations completed."""

    def follow(self) -> None:
        """Keep every request by its id from now on: somebody may want to move it."""
        if self.by_id is None:
            self.by_id = {}

    def movable(self, move: MoveQueued | Migrate | Borrow | Recall, replicas: Sequence[Replica]) -> Request | None:
        """The request of a move, if it still is where the policy thinks.

        Raises
        ------
        PolicyError
            If the policy names a replica that is not there.
        """
        count = len(replicas)
        if not (0 <= move.source < count and 0 <= move.target < count and move.source != move.target):
            raise PolicyError(f"cannot do {move!r}: there are {count} replicas")
        assert self.by_id is not None
        gateway = self._gateway
        outages = gateway.presence.outages
        if outages is not None and {replicas[move.source].index, replicas[move.target].index} & outages.behind.keys():
            return None  # what it is told does not arrive
        request = self.by_id.get(move.request)
        if request is None or request in gateway.outside or request.reason is not None:
            return None
        return request if request.replica == replicas[move.source].index else None

    def move_queued(self, move: MoveQueued, replicas: Sequence[Replica]) -> None:
        """Let a waiting request wait elsewhere; nothing, if it does not wait any more."""
        request = self.movable(move, replicas)
        if request is None or request.status != WAITING or request.generated or request.carrier is not None:
            return
        if request in self._gateway.images.encoding:
            return
        target = replicas[move.target]
        if target.present and self._fits(request, target):
            self._gateway.withdraw(request, partial(self._resend, target))

    def _fits(self, request: Request, target: Replica) -> bool:
        capacity_tokens: int = self._gateway.pools[target.index].capacity_tokens
        return request.prompt_tokens + request.output_tokens <= capacity_tokens

    def _resend(self, target: Replica, request: Request) -> None:
        gateway = self._gateway
        if not gateway.presence.present[target.index]:
            gateway.route(gateway.groups[request.model], request)
            return
        request.migrations += 1
        way_s = 0.0 if gateway.ways is None else gateway.ways.between_s(request.replica, target.index)
        gateway.forward(request, target, max(gateway.clock.now_s, request.ready_s) + way_s)

    def migrate(self, move: Migrate, replicas: Sequence[Replica]) -> None:
        """Begin to move a decoding request; nothing, if it does not decode any more or is on the move."""
        gateway = self._gateway
        request = self.movable(move, replicas)
        if request is None or request in self.under_way or request in gateway.patience.twins:
            return
        source, target = replicas[move.source], replicas[move.target]
        if gateway.lending.of(request) or not source.is_decoding(request, request.rank):
            return
        if not target.present or not self._fits(request, target):
            return
        token_bytes = gateway.pools[source.index].kv_bytes_per_token
        for replica in (source, target):
            self.migrating[replica.index] += 1
        self.under_way[request] = Migration(
            gateway.network(),
            request,
            source,
            target,
            token_bytes,
            self._left,
            partial(self._join, target),
            self._moved,
        )

    def _left(self, request: Request) -> None:
        self._gateway.outside[request] = None
        self._gateway.leave(request)

    def _join(self, target: Replica, request: Request, rank: int) -> bool:
        """A request that has been copied joins its new replica, unless it was given up meanwhile."""
        gateway = self._gateway
        if request not in gateway.outside:
            return False
        del gateway.outside[request]
        if not gateway.presence.present[target.index]:
            request.carried_tokens = 0
            gateway.presence.recover(request)
            return False
        request.migrations += 1
        gateway.arrive(request, target, rank)
        return True

    def _moved(self, migration: Migration) -> None:
        del self.under_way[migration.request]
        for replica in (migration.source, migration.target):
            self.migrating[replica.index] -= 1
        index = migration.target.index
        if migration.completed:
            self.completed += 1
            self.completed_in[index] += 1
            self.paused_in_s[index] += self._gateway.clock.now_s - migration.left_s
        else:
            self.given_up += 1
            self.given_up_in[index] += 1
        self.copied_bytes += migration.bytes

    def call_off(self, request: Request) -> None:
        """Stop the migration of a request, if it is on the move: another object stands for it now."""
        if request in self.under_way:
            self.under_way[request].call_off(self._gateway.presence.recover)
