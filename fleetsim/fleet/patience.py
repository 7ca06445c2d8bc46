"""How long is waited for requests: time-outs of clients, hedges and retries of routers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import inf
from typing import TYPE_CHECKING

from fleetsim.errors import PolicyError
from fleetsim.fleet.sides import Group
from fleetsim.kernel.clock import Timer
from fleetsim.workload.request import FINISHED, RUNNING, TIMED_OUT, UNFINISHED, Request

if TYPE_CHECKING:
    from fleetsim.fleet.gateway import Gateway


class Patience:
    """Gives requests up that take too long, and sends copies of those whose first token is late.

    Of two copies, the first that answers goes on; the other one is taken back, which may take until the end of a step, and what
    it cost is charged to the one that stays. A request that ends meanwhile is told of when its copy is out.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._whole_s = gateway.config.timeout
        self._first_token_s = gateway.config.first_token_timeout
        self.times_out = bool(self._whole_s or self._first_token_s)
        """Whether clients give up."""
        self.twins: dict[Request, Request] = {}
        """Requests that are at two replicas at once: both by each other."""
        self.losers: dict[Request, None] = {}
        """Copies that are being taken back because their twin answered first."""
        self._heirs: dict[Request, Request] = {}
        """Who stands for a copy that was taken back."""
        self._timers: dict[Request, list[Timer]] = {}
        """Timers of hedges and retries of requests without a first token."""
        self._won: dict[Request, int] = {}
        """How requests ended while their twins are still being taken back."""

    # --- time-outs ---------------------------------------------------------------------------------------------------

    def begin(self, request: Request) -> None:
        """Start the clocks of a request's client."""
        clock = self._gateway.clock
        if self._whole_s is not None:
            clock.at(max(request.arrival_s + self._whole_s, clock.now_s), partial(self._expire, request, False))
        if self._first_token_s is not None:
            clock.at(max(request.arrival_s + self._first_token_s, clock.now_s), partial(self._expire, request, True))

    def _expire(self, request: Request, first_token: bool) -> None:
        """The client has waited for long enough."""
        gateway = self._gateway
        request = self._heir(request)
        if request in self.losers:
            request = self.twins[request]
        if request.status > RUNNING or request in self._won:
            return
        if first_token and request.first_token_s == request.first_token_s:
            return
        if request.reason is not None:
            return  # being taken back already
        request.reason = "no first token in time" if first_token else "not finished in time"
        if request in self.twins:
            self._lose(self.twins[request])
            gateway.withdraw(request, self._won_by_nobody)
        elif gateway.forget_outside(request):
            if gateway.swapping is not None:
                gateway.swapping.gone(request)
            gateway.end(request, TIMED_OUT)
        else:
            gateway.withdraw(request, self.timed_out)

    def timed_out(self, request: Request) -> None:
        """A request that its client gave up is at no replica any more."""
        self._gateway.end(request, TIMED_OUT)

    def _won_by_nobody(self, request: Request) -> None:
        if request in self.twins:
            self._won[request] = TIMED_OUT  # until its twin is out too
        else:
            self.timed_out(request)

    # --- hedges and retries ------------------------------------------------------------------------------------------

    def watch(self, group: Group, request: Request, hedge_after_s: float, retry_after_s: float) -> None:
        """Wait for the first token of a request no longer than its router wants to.

        Raises
        ------
        PolicyError
            If that is no time at all.
        """
        if (hedge_after_s == inf and retry_after_s == inf) or request in self.twins:
            return
        if request.first_token_s == request.first_token_s:
            return  # it came while the request was being taken back
        clock = self._gateway.clock
        for side in (group.entry, group.decode):
            for replica in side.replicas if side is not None else ():
                replica.on_first_token = self._gateway.started
        timers = self._timers.setdefault(request, [])
        for after_s, act in ((hedge_after_s, self._hedge), (retry_after_s, self._retry)):
            if not after_s > 0.0:
                raise PolicyError(f"router gives request {request.id} {after_s} s until its first token")
            if after_s < inf:
                timers.append(clock.at(clock.now_s + after_s, partial(act, group, request)))

    def calm(self, request: Request) -> None:
        """Stop waiting for its first token."""
        for timer in self._timers.pop(request, ()):
            timer.cancel()

    def _hedge(self, group: Group, request: Request) -> None:
        """Send a copy of a request without a first token to another replica too; the first of both to answer goes on."""
        request = self._heir(request)
        if request in self.twins or request.reason is not None:
            return
        twin = request.copy()
        twin.attempt = request.attempt + 1
        twin.replica = request.replica
        self.twins[request] = twin
        self.twins[twin] = request
        self._gateway.route(group, twin)

    def _retry(self, group: Group, request: Request) -> None:
        """Take a request without a first token back and send it once more; not one that was sent twice already."""
        request = self._heir(request)
        if request in self.twins or request.reason is not None or request in self._gateway.windows.held:
            return
        self._gateway.withdraw(request, partial(self._again, group))

    def _again(self, group: Group, request: Request) -> None:
        request.attempt += 1
        request.cached_tokens = 0
        self._gateway.route(group, request)

    # --- two copies --------------------------------------------------------------------------------------------------

    def twin_at(self, request: Request) -> int:
        """Replica where the other copy of a request is; -2 if there is none."""
        twin = self.twins.get(request)
        return -2 if twin is None or twin in self.losers else twin.replica

    def answered(self, request: Request) -> None:
        """A request has its first token: it is waited for no more, and its copy is taken back."""
        self.calm(request)
        twin = self.twins.get(request)
        if twin is not None and request not in self.losers:
            self.calm(twin)
            self._lose(twin)

    def _lose(self, request: Request) -> None:
        """Take one of two copies back, if that is not on its way already."""
        if request not in self.losers:
            self.losers[request] = None
            self._gateway.withdraw(request, self.settle)

    def ends_later(self, request: Request, status: int) -> bool:
        """Whether a request that ends now is told of when its copy is out."""
        if request not in self.twins:
            return False
        self._won[request] = status
        return True

    def finishes_later(self, request: Request) -> bool:
        """Whether a request with its last token is told of when its copy is out, or is itself the copy that nobody waits for."""
        if request in self.losers:
            self._gateway.pay(request)
            self.settle(request)
            return True
        return self.ends_later(request, FINISHED)

    def is_spare(self, request: Request) -> bool:
        """Whether a request that is rejected is a copy, without which the first one goes on alone."""
        twin = self.twins.get(request)
        if twin is None or twin in self.losers:
            return False
        del self.twins[request], self.twins[twin]
        request.status = UNFINISHED
        self._gateway.bear(twin, request)
        return True

    def goes_on_without(self, request: Request) -> bool:
        """Whether a request that is lost has another copy that goes on, and now bears its cost."""
        self.calm(request)
        twin = self.twins.get(request)
        if twin is None or twin in self.losers:
            return False
        self.losers[request] = None
        self.settle(request)
        return True

    def settle(self, loser: Request) -> None:
        """One of two copies is out: the other one bears its cost, and ends if it was waiting for this."""
        gateway = self._gateway
        winner = self.twins.pop(loser)
        del self.twins[winner]
        self.losers.pop(loser, None)
        loser.status = UNFINISHED
        gateway.pay(winner)
        gateway.bear(winner, loser)
        self._heirs[loser] = winner
        if winner in self._won:
            status = self._won.pop(winner)
            if status == FINISHED:
                gateway.finish(winner)
            else:
                gateway.end(winner, status)

    def inherit(self, request: Request, heir: Request) -> None:
        """Let another object stand for a request from now on."""
        self._heirs[request] = heir
        twin = self.twins.pop(request, None)
        if twin is not None:
            self.twins[heir], self.twins[twin] = twin, heir
        if request in self.losers:
            del self.losers[request]
            self.losers[heir] = None
        if request in self._timers:
            self._timers[heir] = self._timers.pop(request)

    def _heir(self, request: Request) -> Request:
        """Who stands for a request now."""
        while request in self._heirs:
            request = self._heirs[request]
        return request

    # --- the end -----------------------------------------------------------------------------------------------------

    def in_doubt(self) -> list[Request]:
        """Requests that ended but wait for a copy to be taken back."""
        return [*self._won]

    def without_copies(self, left: Sequence[Request]) -> list[Request]:
        """Of the requests that are left, those that stand for themselves in the tables; they bear the cost of their copies."""
        gateway, alone = self._gateway, []
        for request in left:
            twin = self.twins.get(request)
            if twin is None or twin in self.losers or (request not in self.losers and request.attempt < twin.attempt):
                alone.append(request)
                continue
            gateway.pay(request)
            gateway.pay(twin)
            gateway.bear(twin, request)
        return alone
