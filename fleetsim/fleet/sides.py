"""Where requests for one LLM can go, and what its policies see of these replicas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fleetsim.engine.replica import Replica
from fleetsim.fleet.pool import Pool
from fleetsim.kernel.clock import Timer
from fleetsim.routing.api import FleetView, Reject, RequestView
from fleetsim.workload.request import Request


class Side:
    """Replicas that a router chooses from, and what it sees of them."""

    __slots__ = ("capacity_tokens", "prefills_only", "replicas", "router", "view")

    def __init__(self, replicas: Sequence[Replica], pools: Sequence[Pool], view: FleetView) -> None:
        self.replicas = tuple(replicas)
        self.capacity_tokens = tuple(pool.capacity_tokens for pool in pools)
        self.prefills_only = tuple(pool.config.role == "prefill" for pool in pools)
        self.view = view
        self.router: Any = _NOBODY
        """Not trusted to keep its Protocol: where this module is compiled, a `Router` here would have its answers converted."""

    def position(self, index: int, otherwise: int) -> int:
        """Number of a replica of the fleet among these; `otherwise` if it is not one of them."""
        for position, replica in enumerate(self.replicas):
            if replica.index == index:
                return position
        return otherwise


class Group:
    """Where requests for one LLM go: to be admitted, to have their prompts computed, and to have their answers computed."""

    __slots__ = (
        "admission",
        "collects",
        "decode",
        "delay_s",
        "encoders",
        "energy_j",
        "entry",
        "held",
        "most",
        "swaps",
        "timer",
    )

    def __init__(self, entry: Side, decode: Side | None) -> None:
        self.entry = entry
        self.decode = decode
        """Only where prompts and answers may be computed apart."""
        self.encoders: tuple[Replica, ...] = ()
        """Replicas that encode images."""
        self.admission: Any = None
        self.delay_s = 0.0
        """Time that a decision takes."""
        self.energy_j = 0.0
        """Energy of a decision."""
        self.collects = False
        """Whether the router decides about several requests at once."""
        self.held: dict[Request, None] = {}
        """Those that wait for its next decision."""
        self.most = 0
        """How many it waits for."""
        self.timer: Timer | None = None
        """When it waits for no more; None while nobody has come."""
        self.swaps = False
        """Whether its replicas change their LLM: then a placement policy decides in the router's place."""


class _Nobody:
    """Stands where no pool serves the LLM that was asked for."""

    def route(self, request: RequestView) -> Reject:
        return Reject("no pool serves this model")


_NOBODY = _Nobody()
