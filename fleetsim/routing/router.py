"""What a router is. Not compiled, so that routers in plain Python can inherit from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from fleetsim.routing.api import Hold, Reject, RequestView, Route, Window
    from fleetsim.workload.prefixes import Path


class Prompt(Protocol):
    """What a view needs to know of a request to tell which replicas hold how much of it; a `RequestView` is one."""

    @property
    def id(self) -> int:
        """Unique in the run."""
        ...

    def reusable(self, block_tokens: int) -> Path:
        """Keys of the blocks that a cache could hold."""
        ...


class Router(Protocol):
    """Chooses the replica of an admitted request.

    Built as ``Policy(config, rng, fleet)``: its parameters, its own random stream, and the view of the replicas that serve one LLM.
    """

    def route(self, request: RequestView) -> int | Route | Reject:
        """Number of a replica in the view, a `Route` that says more than a number, or a rejection."""
        ...


class HoldingRouter(Protocol):
    """A router that may also let requests wait at the gateway, where it is asked about the first of them again when there is room.

    Not inside another router.
    """

    holds: ClassVar[bool] = True

    def route(self, request: RequestView) -> int | Route | Reject | Hold:
        """What any router answers, or `HOLD`."""
        ...


class WindowRouter(Router, Protocol):
    """A router that decides about several requests at once.

    The gateway holds what comes, and asks when the window is full or its time is over; who is given up meanwhile is not in it.
    What a decision costs is charged once for all of them: each leaves when its time is over. `route` is asked where nobody
    collects: by routers around this one, and for answers that are computed apart.

    An optional ``explain_window(requests)`` answers, like ``explain(request)`` of any router, with figures of each candidate, for
    each request as they are when its turn comes; it changes nothing.
    """

    def window(self) -> Window:
        """How many requests to wait for and for how long, asked when the first one comes."""
        ...

    def route_window(self, requests: Sequence[RequestView]) -> Sequence[int | Route | Reject]:
        """Decisions about these requests, at least one, which came in this order; as many, in the same order."""
        ...
