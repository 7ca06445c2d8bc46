"""By the priority of a request's class, which running requests give way to."""

from __future__ import annotations

from typing import ClassVar

from fleetsim.engine.orders.priority import Priority, PriorityConfig
from fleetsim.workload.request import Request


class PreemptivePriority(Priority):
    """Highest priority first, and a running request of a lower one gives way to a waiting one that finds no seat or blocks.

    Rule: as `priority`; besides, running requests of a lower priority than a waiting one's are preempted for it, the lowest that
    arrived last first, as far as that gets it a seat and the blocks of its prompt; not one whose prompt is under way. So
    interactive work takes the place of batch work on replicas that do both. Charged: preemption, as `engine.kv.preemption` says.

    References
    ----------
    A. Patke et al., "Hierarchical Autoscaling for Large Language Model Serving with Chiron", arXiv:2501.08090 (interactive requests
    evict batch requests from mixed instances).
    """

    Config: ClassVar = PriorityConfig
    preemptive: ClassVar[bool] = True
    eager: ClassVar[bool] = True

    def gives_way(self, running: Request, waiting: Request) -> bool:
        """Whether its class is less urgent."""
        return running.priority < waiting.priority
