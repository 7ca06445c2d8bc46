"""What a router is. Not compiled, so that routers in plain Python can inherit from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from fleetsim.routing.api import Reject, RequestView, Route
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
