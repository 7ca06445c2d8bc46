"""Sessions that stay where they are, in front of any other router."""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated, Any, ClassVar

from mypy_extensions import mypyc_attr
from numpy.random import Generator
from pydantic import Field, GetJsonSchemaHandler
from pydantic_core import core_schema

from fleetsim.plugins import Choice, PolicyConfig, PolicyField, names
from fleetsim.routing.api import FleetView, Reject, RequestView, Route, Router
from fleetsim.routing.basic import LeastOutstandingConfig

_SESSIONS = 1 << 20
"""Sessions that are remembered; the one that was silent for longest goes first."""


class InnerRouter(PolicyField):
    """Annotation of a router's field that holds another router's block."""

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Names only: the parameters of all routers, of which this is one, would have no end."""
        known = {"type": "string", "enum": names(self.kind)}
        return {"oneOf": [known, {"type": "object", "properties": {self.key: known}}]}


class StickyConfig(PolicyConfig):
    """Parameters of sticky sessions."""

    inner: Annotated[Choice, InnerRouter("routers", default="least-outstanding")] = Field(
        default_factory=lambda: Choice("routers", "least-outstanding", LeastOutstandingConfig())
    )
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
