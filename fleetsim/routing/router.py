"""What a router is. Not compiled, so that routers in plain Python can inherit from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from fleetsim.routing.api import Reject, RequestView, Route


class Router(Protocol):
    """Chooses the replica of an admitted request.

    Built as ``Policy(config, rng, fleet)``: its parameters, its own random stream, and the view of the replicas that serve one LLM.
    """

    def route(self, request: RequestView) -> int | Route | Reject:
        """Number of a replica in the view, a `Route` that says more than a number, or a rejection."""
        ...
