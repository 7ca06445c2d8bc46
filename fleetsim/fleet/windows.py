"""Requests that a router decides about together."""

from __future__ import annotations

from functools import partial
from heapq import heapreplace
from math import inf
from typing import TYPE_CHECKING, Any

from fleetsim.errors import PolicyError
from fleetsim.routing.api import RequestView, Window
from fleetsim.workload.request import Request

if TYPE_CHECKING:
    from fleetsim.fleet.gateway import Gateway
    from fleetsim.fleet.sides import Group, Side

_GONE: Any = object()


class Windows:
    """Holds requests until a window is full or over, then asks the router about all of them."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.held: dict[Request, Group] = {}
        """Those of them that wait for a decision about several at once."""

    def collect(self, group: Group, request: Request) -> None:
        """Hold a request until the router decides about it and others."""
        self._gateway.outside[request] = None
        self.held[request] = group
        group.held[request] = None
        if group.timer is None:
            now_s = group.entry.view.now_s = self._gateway.clock.now_s
            window = group.entry.router.window()
            if not (isinstance(window, Window) and window.max_requests >= 1 and 0.0 <= window.max_wait_s < inf):
                raise PolicyError(f"router answered {window!r} for a window")
            group.most = window.max_requests
            group.timer = self._gateway.clock.at(now_s + window.max_wait_s, partial(self._close, group))
        if len(group.held) >= group.most:
            self._close(group)

    def _close(self, group: Group) -> None:
        """Wait for no more requests: decide, as soon as somebody is free to."""
        assert group.timer is not None
        group.timer.cancel()
        group.timer = None
        requests = list(group.held)
        group.held = {}
        if not requests:
            return
        start_s = now_s = self._gateway.clock.now_s
        if self._gateway.free_s:
            start_s = max(self._gateway.free_s[0], now_s)
            heapreplace(self._gateway.free_s, start_s + group.delay_s)
        if start_s > now_s:
            self._gateway.clock.at(start_s, partial(self._decide_together, group, requests))
        else:
            self._decide_together(group, requests)

    def _decide_together(self, group: Group, requests: list[Request]) -> None:
        """Ask the router about those of these requests that still want an answer, and send them where it says."""
        requests = [request for request in requests if self.let_go(request)]
        presence = self._gateway.presence
        if presence.gone:
            for request in [request for request in requests if presence.must_wait(group, request)]:
                requests.remove(request)
                presence.wait(group, request)
        if not requests:
            return
        side = group.entry
        now_s = side.view.now_s = self._gateway.clock.now_s
        if group.decode is not None:
            group.decode.view.now_s = now_s
        views = [RequestView(request) for request in requests]
        answers = (
            side.router.route_window(views)
            if self._gateway.decisions is None
            else self._explained_together(side, views)
        )
        if len(answers) != len(requests):
            raise PolicyError(f"router gave {len(answers)} answers about {len(requests)} requests")
        self._gateway.energy_j += group.energy_j
        for request, answer in zip(requests, answers, strict=True):
            self._gateway.charge_decision(request, group.energy_j / len(requests))
            self._gateway.follow(group, request, answer, now_s + group.delay_s)

    def _explained_together(self, side: Side, views: list[RequestView]) -> Any:
        """Ask the router, and keep what it knew of those requests of which somebody wants to hear."""
        log, router = self._gateway.decisions, side.router
        assert log is not None
        known: list[Any] = [None] * len(views)
        wanted = [number for number, view in enumerate(views) if view.id in log.requests]
        if wanted and hasattr(router, "explain_window"):
            known = router.explain_window(views)
        candidates = {n: log.candidates(router, side.view, views[n], known[n]) for n in wanted}
        answers = router.route_window(views)
        for number in wanted[: len(answers)]:
            log.note(router, side.view, views[number], candidates[number], answers[number])
        return answers

    def let_go(self, request: Request) -> bool:
        """Hold a request no longer; False if it was not held."""
        group = self.held.pop(request, None)
        if group is None:
            return False
        group.held.pop(request, None)
        del self._gateway.outside[request]
        return True
