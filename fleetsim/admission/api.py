"""What an admission policy is."""

from __future__ import annotations

from typing import Protocol

from fleetsim.routing.api import ADMIT, Admit, Defer, FleetView, Reject, RequestView

__all__ = ["ADMIT", "Admission", "Admit", "Defer", "FleetView", "Reject", "RequestView"]


class Admission(Protocol):
    """Decides at the gateway whether a request may go on to the router.

    Built as ``Policy(config, rng, fleet)``: its parameters, its own random stream, and the view of the replicas that serve one LLM.
    It is asked when a request arrives, and again when a time to which it was put off has come.
    """

    def decide(self, request: RequestView) -> Admit | Defer | Reject:
        """`ADMIT`, or when to ask again, or why not.

        A policy with a method ``ended(request)`` is also told of every request's end, whether it let it in or not.
        """
        ...
