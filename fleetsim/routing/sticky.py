"""Sessions that stay where they are, in front of any other router."""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated, ClassVar

from mypy_extensions import mypyc_attr
from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import FleetView, Reject, RequestView, Route, Router
from fleetsim.routing.inner import Inner, decision_s, least_outstanding

_SESSIONS = 1 << 20
"""Sessions that are remembered; the one that was silent for longest goes first."""


class StickyConfig(PolicyConfig):
    """Parameters of sticky sessions."""

    inner: Inner = Field(default_factory=least_outstanding)
    """Router of first turns, of sessions that have to move and of requests without a session: a name or a block with `policy`."""
    overload_ratio: "Annotated[float, Field(ge=1, json_schema_extra={'unit': 'ratio'})]" = 2.0
    """A session moves where its replica has more than this times the mean number of outstanding requests, …"""
    overload_requests: "Annotated[int, Field(ge=0, strict=True, json_schema_extra={'unit': 'requests'})]" = 8
    """… and more than this many of them."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Sticky:
    """The replica of the session's last turn, unless that is overloaded; all else is left to an inner router.

    A replica is overloaded where its outstanding requests exceed both `overload_requests` and `overload_ratio` times the mean. The
    session then moves, for good, to where the inner router sends it. The inner router sees the same view, but only the requests
    that are left to it.

    References
    ----------
    "Session affinity" of load balancers, e.g. Envoy's stateful session filter; the threshold as in AIBrix's prefix routing, which
    leaves replicas far above the mean load (arXiv:2504.03648).
    """

    Config: ClassVar = StickyConfig

    def __init__(self, config: StickyConfig, rng: Generator, fleet: FleetView) -> None:
        self._inner: Router = config.inner.create(rng, fleet)
        self.decision_s = decision_s(self._inner)
        self._fleet = fleet
        self._ratio = config.overload_ratio / fleet.count
        self._requests = config.overload_requests
        self._homes: OrderedDict[int, int] = OrderedDict()

    def route(self, request: RequestView) -> int | Route | Reject:
        """Choose a replica."""
        session = request.session
        if session < 0:
            return self._inner.route(request)
        homes, fleet = self._homes, self._fleet
        home = homes.get(session)
        if home is not None and fleet.outstanding[home] <= max(self._requests, self._ratio * fleet.in_flight):
            homes.move_to_end(session)
            return home
        chosen = self._inner.route(request)
        if not isinstance(chosen, Reject):
            homes[session] = chosen.replica if isinstance(chosen, Route) else chosen
            homes.move_to_end(session)
            if len(homes) > _SESSIONS:
                homes.popitem(last=False)
        return chosen
