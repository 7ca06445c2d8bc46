"""Requests that a router holds at the gateway until there is room for them."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from fleetsim.errors import PolicyError
from fleetsim.workload.request import Request

if TYPE_CHECKING:
    from fleetsim.fleet.gateway import Gateway
    from fleetsim.fleet.sides import Group

_GONE: Any = object()


class Holding:
    """One line per LLM: its first request is asked about again whenever a request leaves a replica or a replica comes.

    While the first is held, all behind it wait: the router is not asked about them.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._lines: dict[str | None, deque[Request]] = {}
        self._asked_again: Request | None = None
        self._due = False
        """Whether routers will be asked again at this instant."""

    def hold(self, group: Group, request: Request) -> None:
        """Let a request wait in line: behind the others, or first again.

        Raises
        ------
        PolicyError
            If its router does not say that it holds requests, or decides about several at once.
        """
        if group.collects or not getattr(group.entry.router, "holds", False):
            raise PolicyError("a router that answers Hold says `holds = True`, and decides about one request at a time")
        self._gateway.outside[request] = None
        line = self._lines.setdefault(request.model, deque())
        if request is self._asked_again:
            self._asked_again = None
            line.appendleft(request)
        else:
            line.append(request)

    def requests(self) -> list[Request]:
        """All that are held, line by line."""
        outside = self._gateway.outside
        return [request for line in self._lines.values() for request in line if request in outside]

    def ask(self) -> None:
        """Have the routers asked again at this instant, after all that happens at it."""
        if not self._due and any(self._lines.values()):
            self._due = True
            self._gateway.clock.at(self._gateway.clock.now_s, self._ask)

    def _ask(self) -> None:
        self._due = False
        gateway = self._gateway
        for model, line in self._lines.items():
            group = gateway.groups[model]
            while line:
                request = line.popleft()
                if gateway.outside.pop(request, _GONE) is _GONE:
                    continue  # its client has given up
                self._asked_again = request
                gateway.route(group, request)
                if self._asked_again is None:
                    break  # it is still held
                self._asked_again = None
