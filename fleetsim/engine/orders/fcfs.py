"""First come, first served."""

from __future__ import annotations

from typing import ClassVar

from fleetsim.engine.orders.order import Key, Order
from fleetsim.plugins import PolicyConfig
from fleetsim.workload.request import Request


class FcfsConfig(PolicyConfig):
    """First come, first served has no parameters."""


class Fcfs(Order):
    """First come, first served; who was preempted is first.

    Rule: requests run in the order in which they joined the replica's queue. Blocks lacking: the request admitted last gives way
    and is first in the queue again. The engine keeps a plain queue for this order; it charges nothing.
    """

    Config: ClassVar = FcfsConfig

    def key(self, request: Request) -> Key:
        """All are alike: who joined first is first."""
        return request.queued_s
