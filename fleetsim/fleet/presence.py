"""Which replicas take requests, and what becomes of requests whose replica is gone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fleetsim.engine.batch import Parked
from fleetsim.engine.replica import Replica
from fleetsim.fleet.handover import Fetch, Handover
from fleetsim.routing.api import FleetView, Migrate, Route
from fleetsim.workload.request import FAILED, LOCAL, RUNNING, TIMED_OUT, Request

if TYPE_CHECKING:
    from fleetsim.fleet.copies import Copies
    from fleetsim.fleet.gateway import Gateway
    from fleetsim.fleet.gateway_loss import GatewayLoss
    from fleetsim.fleet.outages import Outages
    from fleetsim.fleet.sides import Group

_GONE: Any = object()


class Presence:
    """Who is there: requests go to nobody else, wait while nobody is, and begin again where theirs has gone."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.present = [True] * len(gateway.replicas)
        """Whether each replica takes requests."""
        self.gone = 0
        """Replicas that do not."""
        self.waiting_room: dict[Request, Group] = {}
        """Requests that wait for a replica to come, in the order in which they began to."""
        self.stand_ins = 0
        """Requests that went elsewhere because the replica that the router named was gone."""
        self.lost_tokens = 0
        """Tokens whose keys and values were given up because nobody was there to go on with them."""
        self.lost_j = 0.0
        """Energy that had gone into what was lost, or was computed in vain [J]."""
        self.lost_s = 0.0
        """Time of accelerators that had [s]."""
        self.recoveries = 0
        """Requests that were sent again because their replica was gone."""
        self._lost: dict[int, list[Request]] = {}
        """What was at each replica that is gone without anybody having noticed, and what was sent to one that cannot be reached."""
        self.outages: Outages | None = None
        """What cuts in the network do, where links may fail."""
        self.copies: Copies | None = None
        """Copies of keys and values from which requests go on, where any are made."""
        self.gateways: GatewayLoss | None = None
        """Gateways that are gone, while any are."""

    def set_present(self, replica: Replica, present: bool) -> None:
        """Let a replica take requests, or no more; those that wait for one to come are sent."""
        index = replica.index
        if self.present[index] == present:
            return
        if present and self.outages is not None and index in self.outages.behind:
            return  # nobody hears of it
        self.present[index] = replica.present = present
        if present:
            replica.dead = False
        self.gone += -1 if present else 1
        for view, position in self._gateway.views[index]:
            view.set_present(position, present)
        if present and self.waiting_room:
            self.send_waiting()
        if present:
            self._gateway.holding.ask()

    def send_waiting(self) -> None:
        """Send those that wait for a replica, or for their gateway, to come, as far as they need not any more."""
        for request, group in list(self.waiting_room.items()):
            if request in self.waiting_room and not self.must_wait(group, request):
                del self.waiting_room[request]
                if self._gateway.outside.pop(request, _GONE) is not _GONE:
                    self._gateway.route(group, request)

    def kill(self, replica: Replica) -> None:
        """Take everything from a replica now; what is sent to it until `notice` is lost too.

        Requests whose last blocks are on their way from it in a migration are taken to have got them.
        """
        lost = replica.crash()
        for encoding in self._gateway.images.encoding.values():
            encoding.source_failed(replica)
        if self.outages is not None:
            lost = self.outages.crashed(replica, lost)
        if self.gateways is not None:
            lost += self.gateways.crashed(replica)
        for request in lost:
            self.count_lost(request, 0)
        self._lost[replica.index] = [*self._lost.get(replica.index, ()), *lost]
        replica.dead = True

    def lost_at(self, replica: Replica) -> list[Request]:
        """What was at a replica that is gone, while nobody has noticed."""
        return self._lost.get(replica.index, [])

    def count_lost(self, request: Request, tokens: int) -> None:
        """Count what a request had taken at its replica, where it has to begin again, and tokens that nobody has counted."""
        self.lost_tokens += tokens
        self.lost_j += request.energy_j - request.energy_before_j
        pool = self._gateway.pools[request.replica]
        ledger = self._gateway.ledger
        share_s = request.cost_share_s if ledger is None else ledger.share_s(request)
        self.lost_s += share_s * pool.config.parallelism.accelerators

    def hold(self, replica: Replica) -> None:
        """Keep what is sent to a replica that cannot be reached."""
        self._lost.setdefault(replica.index, [])

    def undelivered(self, replica: Replica) -> list[Request]:
        """What was kept, and is kept no more."""
        return self._lost.pop(replica.index, [])

    def in_doubt(self) -> list[Request]:
        """All requests that are at no replica since nobody has noticed that theirs is gone or cannot be reached."""
        return [request for lost in self._lost.values() for request in lost]

    def notice(self, replica: Replica) -> None:
        """See that a replica is gone: its requests begin again elsewhere, or have failed."""
        self.set_present(replica, False)
        lost = self._lost.pop(replica.index, [])
        for loan in [loan for batch in replica.batches for loan in batch.hosted]:
            self._withdraw_if_here(loan.request)
        for request in self._fed_by(replica):
            self._withdraw_if_here(request)
        for request in [
            request for request, encoding in self._gateway.images.encoding.items() if encoding.uses(replica)
        ]:
            self._withdraw_if_here(request)
        for request in lost:
            if request.embedded_at == replica.index:
                request.embedded_at = -1
            self._gateway.withdrawn(self.recover, request)

    def deliver(self, replica: Replica, request: Request, ready_s: float, rank: int = -1) -> None:
        """Hand a request to a replica, or to nobody where that is gone and nobody has noticed."""
        if not replica.dead:
            if self.copies is not None:
                self.copies.watch(replica)
            replica.enqueue(request, ready_s, rank)
            return
        self._lost.setdefault(replica.index, []).append(request)
        for batch in replica.batches:
            batch.unreserve(request)

    def send_elsewhere(self, replica: Replica) -> None:
        """Let requests that wait at a replica wait elsewhere, and those that decode there migrate to where there is room."""
        if self.outages is not None and replica.index in self.outages.behind:
            return
        waiting = [r for batch in replica.batches for r in batch.waiting] + [*replica.inbox, *replica.held]
        for request in sorted(waiting, key=lambda r: (r.arrival_s, r.id, r.attempt)):
            if not request.generated and request.carrier is None and request not in self._gateway.patience.twins:
                self._gateway.withdraw(request, self._moved_on)
        decoding = [r for batch in replica.batches for r in batch.running if r.finish_step >= 0]
        for request in decoding:
            target = self._roomiest(replica, request)
            if target is not None and self._gateway.moves.by_id is not None:
                self._gateway.moves.migrate(Migrate(request.id, 0, 1), [replica, target])

    def _moved_on(self, request: Request) -> None:
        request.migrations += 1
        self._gateway.route(self._gateway.groups[request.model], request)

    def _roomiest(self, source: Replica, request: Request) -> Replica | None:
        """The replica of the same LLM with most free blocks that has room for a request; None if none has."""
        pool = self._gateway.pools[source.index]
        best, room = None, source.context_tokens(request) // source.batches[0].block_tokens + 2
        for replica, other in zip(self._gateway.replicas, self._gateway.pools, strict=True):
            if not replica.present or other.llm.name != pool.llm.name or other.config.role == "prefill":
                continue
            if other.config.engine.kv.dtype == pool.config.engine.kv.dtype:
                free = max(replica.free_blocks())
                if free > room:
                    best, room = replica, free
        return best

    def _fed_by(self, replica: Replica) -> list[Request]:
        """Requests of other replicas whose keys and values are still at this one."""
        found = []
        for other in self._gateway.replicas:
            here = [r for batch in other.batches for r in (*batch.loading, *batch.waiting)]
            found += [request for request in (*here, *other.inbox) if _comes_from(request, replica)]
        return found

    def send_again(self, request: Request) -> None:
        """Take a request back from a replica that waits for something in vain, and send it once more."""
        self._withdraw_if_here(request)

    def _withdraw_if_here(self, request: Request) -> None:
        if self.outages is not None and request in self.outages.ghosts:
            return
        if (
            request not in self._gateway.outside
            and request.status <= RUNNING
            and request not in self._gateway.patience.losers
        ):
            self._gateway.withdraw(request, self.recover)

    def recover(self, request: Request) -> None:
        """Send a request again whose replica is gone, if its turn is not over."""
        if self._gateway.patience.goes_on_without(request):
            return
        config = self._gateway.config.on_failure
        if request.reason is not None:
            self._gateway.end(request, TIMED_OUT)
            return
        if not config.retry or request.attempt >= config.max_retries:
            request.reason = "its replica failed"
            self._gateway.end(request, FAILED)
            return
        request.attempt += 1
        self.recoveries += 1
        request.decode_at = LOCAL
        if not request.generated:
            request.cached_tokens = 0
        self._gateway.route(self._gateway.groups[request.model], request)

    def strand(self, request: Request, source: Replica, parked: Parked) -> None:
        """A prompt is computed and nobody is there who could go on: what was computed is given up."""
        source.unpark(request.rank, parked)
        request.decode_at = LOCAL
        self.lost_tokens += request.computed
        self._gateway.leave(request)
        self.recover(request)

    def wait(self, group: Group, request: Request) -> None:
        """Let a request wait until a replica is there that can take it; another model may answer where there is a choice."""
        answering = self._gateway.answering
        if answering is not None and answering.takes_back(group, request):
            return
        self._gateway.outside[request] = None
        self.waiting_room[request] = group

    def must_wait(self, group: Group, request: Request) -> bool:
        """Whether nobody can take a request now, or nobody can send it."""
        if request.images and group.encoders and not any(encoder.present for encoder in group.encoders):
            return True
        return not self.is_open(group) or (self.gateways is not None and self.gateways.lacks(request))

    def is_open(self, group: Group) -> bool:
        """Whether replicas are there that can take a request to its end."""
        if not group.entry.view.members:
            return not group.entry.replicas  # nobody serves this model at all: the router says so
        if group.decode is None or not all(group.entry.prefills_only[i] for i in group.entry.view.members):
            return True
        return bool(group.decode.view.members)

    def standing_in(self, group: Group, decision: int, route: Route) -> tuple[int, Route]:
        """What a router decided, with replicas that are there in place of those that are not."""
        view = group.entry.view
        if not view.present[decision]:
            self.stand_ins += 1
            decision = _least(view)
            if route.replica >= 0:  # the router said more than a number
                route = replace(route, replica=decision, fetch_from=-1, fetch_tokens=0, borrow=())
        if group.decode is not None and route.decode >= 0 and not group.decode.view.present[route.decode]:
            self.stand_ins += 1
            members = group.decode.view.members
            route = replace(route, replica=decision, decode=_least(group.decode.view) if members else -1)
        if route.borrow and not all(view.present[i] for i, _ in route.borrow):
            route = replace(route, replica=decision, borrow=())
        return decision, route

    def decoder(self, request: Request) -> Replica | None:
        """A replica that can compute an answer in place of one that is gone; None if none is there."""
        decode = self._gateway.groups[request.model].decode
        if decode is None or not decode.view.members:
            return None
        self.stand_ins += 1
        return decode.replicas[_least(decode.view)]


def _comes_from(request: Request, replica: Replica) -> bool:
    """Whether keys and values of a request are still at a replica where it is not."""
    return isinstance(request.carrier, Handover | Fetch) and request.carrier.source is replica


def _least(view: FleetView) -> int:
    """Of the replicas that are there, the one with the fewest outstanding requests."""
    return min(view.members, key=view.outstanding.__getitem__)
