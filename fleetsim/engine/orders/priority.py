"""By the priority of a request's class."""

from __future__ import annotations

from typing import ClassVar

from fleetsim.engine.orders.order import Key, Order
from fleetsim.plugins import PolicyConfig
from fleetsim.workload.request import Request


class PriorityConfig(PolicyConfig):
    """Priorities stand in the scenario's `classes`."""


class Priority(Order):
    """Highest priority first, as vLLM's priority scheduling; blocks lacking, the lowest gives way.

    Rule: waiting requests are sorted by the priority of their class, then by arrival. A running request is preempted for lack of
    blocks only: the one of the lowest priority that arrived last. A request without a class has priority 0. Preemption is charged
    as the scheduler does it; deciding costs nothing.

    References
    ----------
    vLLM documentation, ``vllm.v1.core.sched.scheduler`` (policy ``priority``), where lower numbers are more urgent.
    """

    Config: ClassVar = PriorityConfig

    def key(self, request: Request) -> Key:
        """Most urgent first."""
        return -request.priority
