"""Least slack first."""

from __future__ import annotations

from typing import ClassVar

from fleetsim.engine.orders.order import Key, Order
from fleetsim.plugins import PolicyConfig
from fleetsim.workload.request import Request


class LeastSlackConfig(PolicyConfig):
    """Deadlines stand in the scenario's `slo`."""


class LeastSlack(Order):
    """Least slack first: by the deadline for the first token, less the time that the prompt will take to compute.

    Rule: slack = deadline - now - predicted prefill time; all waiting requests lose slack at the same pace, so their order by
    deadline less prefill time does not change while they wait. The prefill time is that of a quadratic fitted to the replica's own
    step times, for the whole prompt: what the prefix cache will hold is not known yet. Blocks lacking: the running request with
    the most slack gives way. Deciding costs nothing.

    References
    ----------
    A. K. Mok, "Fundamental Design Problems of Distributed Systems for the Hard-Real-Time Environment", MIT/LCS/TR-297, 1983.
    """

    Config: ClassVar = LeastSlackConfig
    needs_deadlines: ClassVar[bool] = True

    def key(self, request: Request) -> Key:
        """Latest instant at which its prompt must be begun [s]."""
        return request.deadline_s - self.outlook.prefill.seconds(request.prompt_tokens)
