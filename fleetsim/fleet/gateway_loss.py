"""Gateways that are gone for a while, and what their clients do meanwhile.

Requests that are at a replica go on, and their answers come: these do not pass the gateway. What a gateway would decide about them
(to send them again, to hedge them, where an answer is computed) waits until it is back. New requests find nobody; their clients try
again, later each time, or give up (`gateway.clients`).
"""

from __future__ import annotations

from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

from fleetsim.engine.batch import Parked
from fleetsim.engine.replica import Replica
from fleetsim.workload.draws import share_of
from fleetsim.workload.request import FAILED, TIMED_OUT, Request

if TYPE_CHECKING:
    from fleetsim.fleet.fleet import Fleet


class GatewayLoss:
    """Stands before and behind the gateways while some of them are gone.

    Which of several gateways a client has is drawn by its session, or by request where there are none: the same under every policy.

    Parameters
    ----------
    fleet : Fleet
        Built completely, its lifecycle excepted.
    note : callable
        Told events of the whole fleet: kind.
    """

    def __init__(self, fleet: Fleet, note: Any) -> None:
        self._fleet = fleet
        self._gateway = fleet.gateway
        self._note = note
        self._clients = fleet.gateway.config.clients
        self._shares: list[float] = []
        """Of the gateways that are gone, one for each fault."""
        self.share = 0.0
        """Of the gateways that are gone: several faults strike the same ones first."""
        self._trying: dict[Request, int] = {}
        """Requests whose clients found no gateway, and how often they have tried."""
        self._prefilled: dict[Request, tuple[Replica, Parked]] = {}
        """Requests whose prompt is computed and whose gateway is to say where the answer will be."""
        self.failed_tries = 0
        """Times that clients found no gateway."""

    def begin(self, share: float) -> None:
        """Lose a share of the gateways."""
        self._shares.append(share)
        self._set_share()

    def end(self, share: float) -> None:
        """Have them back."""
        self._shares.remove(share)
        self._set_share()

    def _set_share(self) -> None:
        before, self.share = self.share, max(self._shares, default=0.0)
        if self.share == before:
            return
        self._note("gateway_lost" if self.share > before else "gateway_back")
        presence = self._gateway.presence
        if self.share and not before:
            presence.gone += 1  # who routes looks whether somebody is away
        elif not self.share:
            presence.gone -= 1
        presence.gateways = self if self.share else None
        self._fleet.take = self.take if self.share else self._fleet.front
        for request, (_, parked) in list(self._prefilled.items()):
            if not self.lacks(request):
                del self._prefilled[request]
                self._gateway.prefilled(request, parked)
        presence.send_waiting()
        if self._gateway.swapping is not None:
            self._gateway.swapping.ask()

    def lacks(self, request: Request) -> bool:
        """Whether a request's gateway is gone."""
        return share_of(request.session if request.session >= 0 else request.id) < self.share

    # --- new requests -------------------------------------------------------------------------------------------------

    def take(self, request: Request) -> None:
        """Take a request that arrives now, unless its gateway is gone."""
        if not self.lacks(request):
            self._fleet.front(request)
            return
        self._gateway.outside[request] = None
        self._try_later(request, 0)

    def _try_later(self, request: Request, tries: int) -> None:
        """A client has found no gateway."""
        clients, now_s = self._clients, self._fleet.clock.now_s
        self.failed_tries += 1
        limit_s = request.arrival_s + min(
            self._gateway.config.timeout or inf, self._gateway.config.first_token_timeout or inf
        )
        if tries >= clients.max_retries:
            self._end(request, FAILED, "no gateway")
            return
        wait_s = min(clients.first_wait * clients.factor**tries, clients.longest_wait)
        wait_s *= 1.0 - clients.jitter * share_of(request.id * 64 + tries)
        self._trying[request] = tries + 1
        if now_s + wait_s >= limit_s:
            self._fleet.clock.at(limit_s, partial(self._end, request, TIMED_OUT, "no gateway in time"))
        else:
            self._fleet.clock.at(now_s + wait_s, partial(self._try, request))

    def _try(self, request: Request) -> None:
        tries = self._trying.pop(request)
        if self.share and self.lacks(request):
            self._try_later(request, tries)
            return
        del self._gateway.outside[request]
        self._fleet.front(request)

    def _end(self, request: Request, status: int, reason: str) -> None:
        self._trying.pop(request, None)
        self._gateway.outside.pop(request, None)
        request.reason = reason
        self._gateway.end_unseen(request, status)

    # --- decisions ----------------------------------------------------------------------------------------------------

    def holds_prefilled(self, request: Request, replica: Replica, parked: Parked) -> bool:
        """Whether the way of a computed prompt has to wait for its gateway: then it does."""
        if not self.lacks(request):
            return False
        if self._gateway.ledger is not None:
            self._gateway.ledger.charge(request)
        self._prefilled[request] = (replica, parked)
        return True

    def let_go(self, request: Request) -> bool:
        """Give up a computed prompt that waits for its gateway; False if it does not."""
        held = self._prefilled.pop(request, None)
        if held is None:
            return False
        replica, parked = held
        replica.unpark(request.rank, parked)
        return True

    def crashed(self, replica: Replica) -> list[Request]:
        """Computed prompts that wait and are lost with their replica."""
        lost = [request for request, (source, _) in self._prefilled.items() if source is replica]
        for request in lost:
            self.let_go(request)
        return lost

    def held(self) -> list[Request]:
        """Computed prompts that wait."""
        return [*self._prefilled]
