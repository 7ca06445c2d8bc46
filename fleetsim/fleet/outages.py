"""Links that are cut or slow: what becomes of transfers, and of requests at replicas that the gateway cannot reach.

Such a replica goes on with what it has. Nobody sees its tokens and ends until it is reached again, and what is sent to it meanwhile
does not arrive before. Once the gateway has noticed (`gateway.on_failure.detect`), it sends nothing more there, and either waits or
gives the requests there up: each goes on as an *heir*, with the tokens that its client had got, while the copy behind the cut is
computed in vain until the replica hears of it. The request bears the cost of both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from math import nan
from typing import TYPE_CHECKING, Any

from fleetsim.engine.batch import Parked
from fleetsim.engine.kv_tiers.replica_tiers import ReplicaTiers
from fleetsim.engine.replica import Replica
from fleetsim.errors import DataError, Finding
from fleetsim.faults.api import Edge
from fleetsim.fleet.copies import Restore
from fleetsim.fleet.handover import Fetch, Handover, gpu
from fleetsim.fleet.stories import bearer
from fleetsim.workload.request import RUNNING, WAITING, Request

if TYPE_CHECKING:
    from fleetsim.fleet.fleet import Fleet


class _Behind:
    """A replica that cannot be reached, and what nobody has heard of it."""

    __slots__ = ("answers", "first_tokens", "noticed", "prefilled", "replica", "seen", "since_s")

    def __init__(self, replica: Replica, now_s: float) -> None:
        self.replica = replica
        self.since_s = now_s
        self.noticed = False
        self.seen: dict[Request, tuple[int, float]] = {}
        """Tokens that the clients of its requests have got, and when the first came."""
        self.first_tokens: dict[Request, None] = {}
        """Requests whose first token is on its way to the gateway."""
        self.answers: dict[Request, None] = {}
        """Those whose last one is."""
        self.prefilled: dict[Request, Parked] = {}
        """Those whose prompt is computed and who are to go elsewhere."""


class Outages:
    """What cuts do to a fleet.

    Parameters
    ----------
    fleet : Fleet
        Built completely, its lifecycle excepted.
    note : callable
        Told events of replicas: kind, replica.
    """

    def __init__(self, fleet: Fleet, note: Callable[[str, Replica], None]) -> None:
        self._fleet = fleet
        self._gateway = fleet.gateway
        self._note = note
        self._faults: dict[Edge, list[float]] = {}
        """Shares of the bandwidth of links that are not whole, one for each fault."""
        self.behind: dict[int, _Behind] = {}
        """Replicas that cannot be reached, by number."""
        self._hooks: dict[int, tuple[Any, Any, Any]] = {}
        """Whom a replica told before it could not be reached."""
        self.ghosts: dict[Request, Replica] = {}
        """Copies that are computed in vain, and where."""
        self._debts: dict[int, list[Request]] = {}
        """Copies that are over, by the id of the request whose row bears their cost."""
        self._rows: dict[int, Request] = {}
        """Requests that have ended and bear the cost of a copy that is not over, by id."""
        self._log: Callable[[Request], None] | None = None
        self.resent = 0
        """Transfers that were given up at a cut."""
        fleet.gateway.presence.outages = self
        if self._gateway.config.on_failure.transfers == "recompute":
            for tiers in self._tiers():
                tiers.avoids_cuts = True

    # --- links --------------------------------------------------------------------------------------------------------

    def begin(self, links: tuple[Edge, ...], share: float) -> None:
        """Let links carry a share of their bandwidth."""
        for link in links:
            self._faults.setdefault(link, []).append(share)
        self._scale(links)

    def end(self, links: tuple[Edge, ...], share: float) -> None:
        """One fault of these links is over."""
        for link in links:
            self._faults[link].remove(share)
        self._scale(links)

    def _scale(self, links: tuple[Edge, ...]) -> None:
        """Several faults of one link are as bad as the worst of them."""
        network = self._fleet.network()
        by_share: dict[float, list[Edge]] = {}
        for link in links:
            by_share.setdefault(min(self._faults[link], default=1.0), []).append(link)
        before = set(network.cuts)
        for share, edges in by_share.items():
            network.scale(edges, share)
        if network.cuts == before:
            return
        if any(replica.encoder is not None for replica in self._fleet.replicas):
            message = "a link is cut in a fleet with encoders: what becomes of images behind it is not modelled"
            raise DataError(Finding(message, hint="let it be throttled, or replicas fail"))
        if self._gateway.swapping is not None:
            message = "a link is cut in a fleet with replicas that change their LLM (`models`): that is not modelled"
            hint = "a load cannot be asked for behind a cut: let the link be throttled, or replicas fail"
            raise DataError(Finding(message, hint=hint))
        lifecycle = self._fleet.lifecycle
        if lifecycle is not None and lifecycle.conversions.ways:
            message = "a link is cut in a fleet whose replicas change their pool (`conversions`): that is not modelled"
            raise DataError(Finding(message, hint="let it be throttled, or replicas fail"))
        if any(batch.hosted or batch.borrowed for replica in self._fleet.replicas for batch in replica.batches):
            message = "a link is cut while replicas compute with blocks of each other: that is not modelled"
            raise DataError(Finding(message, hint="take a router and a rebalancer that lend no memory, or `throttle`"))
        reached = self._reached()
        for replica in self._fleet.replicas:
            there, behind = gpu(replica) in reached, replica.index in self.behind
            if not there and not behind:
                self._lose(replica)
            elif there and behind:
                self._find(replica)
        if network.cuts - before and self._gateway.config.on_failure.transfers == "recompute":
            self._fleet.clock.at(self._fleet.clock.now_s + self._fleet.detect_s, self._give_up_stalled)

    def _tiers(self) -> list[ReplicaTiers]:
        return [tiers for pool in self._fleet.pools for tiers in pool.tiers]

    def _reached(self) -> set[str]:
        """Nodes of the network that the gateway reaches and that reach it: cuts are both ways."""
        network = self._fleet.network()
        found, stack = {"gateway"}, ["gateway"]
        while stack:
            node = stack.pop()
            for other in network.graph.successors(node):
                if other not in found and not {(node, other), (other, node)} & network.cuts:
                    found.add(other)
                    stack.append(other)
        return found

    # --- replicas that cannot be reached ------------------------------------------------------------------------------

    def _lose(self, replica: Replica) -> None:
        """Nothing comes from a replica any more, and nothing arrives there."""
        now_s = self._fleet.clock.now_s
        behind = self.behind[replica.index] = _Behind(replica, now_s)
        self._note("replica_unreachable", replica)
        for request in _requests_at(replica):
            if request not in self.ghosts:
                tokens = replica.context_tokens(request) - request.prompt_tokens
                behind.seen[request] = (tokens, request.first_token_s)
        replica.dead = True
        self._gateway.presence.hold(replica)
        self._listen(replica)
        self._fleet.clock.at(now_s + self._fleet.detect_s, partial(self._notice, behind))

    def _listen(self, replica: Replica) -> None:
        """Keep what a replica would tell the gateway."""
        if replica.index in self._hooks:
            return
        self._hooks[replica.index] = (replica.on_finish, replica.on_first_token, replica.on_prefilled)
        replica.on_finish = partial(self._finished, replica)
        replica.on_first_token = partial(self._first_token, replica)
        if replica.on_prefilled is not None:
            replica.on_prefilled = partial(self._prefilled, replica)

    def _forward_again(self, replica: Replica) -> None:
        """Tell the gateway at once again, where no copy is left of which it must not hear."""
        index = replica.index
        if index in self._hooks and index not in self.behind and replica not in self.ghosts.values():
            replica.on_finish, replica.on_first_token, replica.on_prefilled = self._hooks.pop(index)

    def _first_token(self, replica: Replica, request: Request) -> None:
        if request in self.ghosts:
            return
        behind = self.behind.get(replica.index)
        if behind is not None:
            behind.first_tokens[request] = None
        elif self._hooks[replica.index][1] is not None:
            self._hooks[replica.index][1](request)

    def _finished(self, replica: Replica, request: Request) -> None:
        if request in self.ghosts:
            self._bury(request)
            return
        behind = self.behind.get(replica.index)
        if behind is not None:
            self._charge(request)
            behind.answers[request] = None
        else:
            self._gateway.done(request)

    def _prefilled(self, replica: Replica, request: Request, parked: Parked) -> None:
        if request in self.ghosts:
            replica.unpark(request.rank, parked)
            self._bury(request)
            return
        behind = self.behind.get(replica.index)
        if behind is not None:
            self._charge(request)
            behind.prefilled[request] = parked
        else:
            self._hooks[replica.index][2](request, parked)

    def _charge(self, request: Request) -> None:
        """Charge a request that leaves its replica unseen, at the prices of now, where these change."""
        if self._gateway.ledger is not None:
            self._gateway.ledger.charge(request)

    def _notice(self, behind: _Behind) -> None:
        """The gateway sees that a replica does not answer."""
        replica, gateway = behind.replica, self._gateway
        if self.behind.get(replica.index) is not behind:
            return
        behind.noticed = True
        gateway.presence.set_present(replica, False)
        if gateway.config.on_failure.unreachable == "wait" or not self._alive(replica):
            return
        for request in gateway.presence.undelivered(replica):
            gateway.withdrawn(gateway.presence.recover, request)
        for request in self._untold(behind):
            gateway.presence.count_lost(request, request.computed)
            gateway.withdrawn(gateway.presence.recover, request)
        for request in sorted(_requests_at(replica), key=_by_arrival):
            if request not in self.ghosts and request.status <= RUNNING:
                gateway.presence.recover(self.give_up(request))

    def _untold(self, behind: _Behind) -> list[Request]:
        """Requests that are over at a replica without the gateway having heard: as their clients have seen them."""
        found = []
        for request, parked in behind.prefilled.items():
            behind.replica.unpark(request.rank, parked)
            found.append(request)
        found += behind.answers
        behind.prefilled.clear()
        behind.answers.clear()
        for request in found:
            self._as_seen(behind, request)
        return sorted(found, key=_by_arrival)

    def _as_seen(self, behind: _Behind, request: Request) -> None:
        """Forget what a request has got and its client has not."""
        tokens, first_s = behind.seen.get(request, (0, nan))
        request.generated, request.first_token_s, request.end_s, request.status = tokens, first_s, nan, WAITING
        request.last_token_s = behind.since_s if tokens else nan
        behind.first_tokens.pop(request, None)

    def _alive(self, replica: Replica) -> bool:
        """Whether it serves what it has."""
        return self._fleet.lives[replica.index].state in ("ready", "draining")

    def give_up(self, request: Request) -> Request:
        """Go on with a request without its replica, which cannot be told: its heir."""
        gateway, replica = self._gateway, self._gateway.replicas[request.replica]
        behind = self.behind[replica.index]
        heir = request.copy()
        heir.generated, heir.first_token_s = behind.seen.get(request, (0, nan))
        for name in _KEPT:
            setattr(heir, name, getattr(request, name))
        heir.last_token_s = behind.since_s if heir.generated else nan
        gateway.presence.lost_j += request.energy_j - request.energy_before_j  # the rest when the copy is over
        heir.energy_j, request.energy_j = request.energy_j, 0.0
        heir.energy_before_j, request.energy_before_j = heir.energy_j, 0.0
        heir.paid_usd, request.paid_usd = request.paid_usd, 0.0
        heir.host_energy_j, request.host_energy_j = request.host_energy_j, 0.0
        ledger = gateway.ledger
        if ledger is not None:
            settled_s = ledger.share_s(request) - request.cost_share_s
            heir.bill, request.bill = request.bill, None
            ledger.bill(request).settled_s = settled_s
        self.ghosts[request] = replica
        self._debts.setdefault(bearer(request).id, [])
        if self._log is None:
            self._log, self._fleet.on_end = self._fleet.on_end, self._write
        behind.first_tokens.pop(request, None)
        if request.decode_at >= 0:
            gateway.promise(request, -1)
        gateway.inherit(request, heir)
        gateway.leave(heir, queued=False)
        return heir

    def take_from(self, request: Request, then: Callable[[Request], None]) -> None:
        """Take a request back from a replica that cannot be told: `then` is called with its heir, or with itself if it is over."""
        behind = self.behind[request.replica]
        parked = behind.prefilled.pop(request, None)
        if parked is None and request not in behind.answers:
            then(self.give_up(request))
            return
        if parked is not None:
            behind.replica.unpark(request.rank, parked)
        behind.answers.pop(request, None)
        self._as_seen(behind, request)
        self._gateway.withdrawn(then, request)

    def crashed(self, replica: Replica, lost: list[Request]) -> list[Request]:
        """What the gateway loses with a replica that fails behind a cut, as its clients have seen it."""
        behind = self.behind.get(replica.index)
        left = []
        for request in lost:
            if request in self.ghosts:
                self.bury_unfinished(request)
                continue
            if behind is not None:
                self._as_seen(behind, request)
            left.append(request)
        if behind is not None:
            left += self._untold(behind)
        return left

    def _find(self, replica: Replica) -> None:
        """A replica is reached again: it hears of what was sent to it and of what is not wanted any more, and tells what it has."""
        behind = self.behind.pop(replica.index)
        self._note("replica_reachable", replica)
        gateway = self._gateway
        state, now_s = self._fleet.lives[replica.index].state, self._fleet.clock.now_s
        if not self._alive(replica):
            if state != "down":  # who is down loses what was sent to it when that is noticed
                for request in gateway.presence.undelivered(replica):
                    gateway.withdrawn(gateway.presence.recover, request)
            self._forward_again(replica)
            return
        replica.dead = False
        if gateway.presence.copies is not None:
            gateway.presence.copies.watch(replica)
        self._tell(behind, now_s)
        for ghost in [ghost for ghost, where in self.ghosts.items() if where is replica]:
            replica.withdraw(ghost, self.bury_unfinished)
        for request in gateway.presence.undelivered(replica):
            if request.carrier is None:
                request.carried_tokens = 0
            replica.enqueue(request, now_s)
        gateway.presence.set_present(replica, state == "ready")
        self._forward_again(replica)

    def _tell(self, behind: _Behind, now_s: float) -> None:
        """Let the gateway hear of all that has happened behind a cut."""
        _, on_first_token, on_prefilled = self._hooks[behind.replica.index]
        for request, (tokens, _) in behind.seen.items():
            if tokens and request not in self.ghosts:
                request.itl_max_s = max(request.itl_max_s, now_s - behind.since_s)
        for request in behind.first_tokens:
            request.first_token_s = now_s
            if on_first_token is not None:
                on_first_token(request)
        for request, parked in list(behind.prefilled.items()):
            on_prefilled(request, parked)
        for request in list(behind.answers):
            request.end_s = now_s
            self._gateway.done(request)

    # --- copies that are computed in vain -----------------------------------------------------------------------------

    def bury_unfinished(self, ghost: Request) -> None:
        """A copy has been taken out of its replica."""
        listener = self.ghosts[ghost].listener
        if listener is not None:
            listener.left(ghost, False)
        self._bury(ghost)

    def _bury(self, ghost: Request) -> None:
        """A copy is over: its request bears its cost."""
        replica = self.ghosts.pop(ghost)
        if ghost.carrier is not None:
            ghost.carrier.release()
            ghost.carrier = None
        if ghost.cost_share_s or ghost.energy_j:
            self._gateway.presence.count_lost(ghost, ghost.computed)
        self._gateway.pay(ghost)
        number = bearer(ghost).id
        self._debts[number].append(ghost)
        self._fleet.last_end_s = self._fleet.clock.now_s
        row = self._rows.pop(number, None)
        if row is not None:
            self._write(row)
        self._forward_again(replica)

    def _write(self, request: Request) -> None:
        """Write the row of a request that has ended, once all its copies have."""
        if request.id in self._debts:
            if any(bearer(ghost).id == request.id for ghost in self.ghosts):
                self._rows[request.id] = request
                return
            if request.call is None:  # a story's calls have paid
                self._gateway.pay(request)
            for ghost in self._debts.pop(request.id):
                self._gateway.bear(request, ghost)
        assert self._log is not None
        self._log(request)

    def stop(self, left: Iterable[Request]) -> list[Request]:
        """The run ends here: of what is left at replicas, the requests that stand for themselves, and those nobody knows of."""
        alone = []
        for request in left:
            if request in self.ghosts:
                self._bury(request)
            else:
                alone.append(request)
        for behind in self.behind.values():
            for request in [*behind.prefilled, *behind.answers]:
                self._as_seen(behind, request)
                alone.append(request)
            for request in behind.first_tokens:
                request.first_token_s = nan
        return alone

    # --- transfers ----------------------------------------------------------------------------------------------------

    def _give_up_stalled(self) -> None:
        """Have computed again what was on its way and has come to a cut."""
        network, gateway = self._fleet.network(), self._gateway
        if not network.cuts:
            return
        for migration in list(gateway.moves.under_way.values()):
            if migration.stalled:
                self.resent += 1
                migration.call_off(gateway.presence.recover)
        for tiers in self._tiers():
            self.resent += tiers.give_up_stalled()
        for replica in self._fleet.replicas:
            if replica.index in self.behind:
                continue  # its requests wait with it, or are given up when it is noticed
            for request in sorted(_requests_at(replica), key=_by_arrival):
                carrier = request.carrier
                if isinstance(carrier, Handover | Fetch):
                    stalled = network.is_cut(gpu(carrier.source), gpu(replica))
                else:
                    stalled = isinstance(carrier, Restore) and carrier.stalled
                if stalled:
                    self.resent += 1
                    gateway.presence.send_again(request)


_KEPT = (
    "attempt",
    "replica",
    "rank",
    "queued_s",
    "first_scheduled_s",
    "cached_tokens",
    "loaded_tokens",
    "load_s",
    "preemptions",
    "migrations",
    "approximate_tokens",
    "prefill_replica",
    "reason",
    "itl_max_s",
)
"""What an heir takes over."""


def _requests_at(replica: Replica) -> list[Request]:
    """Requests that wait or run at a replica, or are on their way into its queue."""
    here = [request for batch in replica.batches for request in (*batch.running, *batch.waiting)]
    return [*here, *replica.inbox, *replica.held]


def _by_arrival(request: Request) -> tuple[float, int, int]:
    return request.arrival_s, request.id, request.attempt
