"""Earliest deadline first."""

from __future__ import annotations

from typing import ClassVar

from fleetsim.engine.orders.order import Key, Order
from fleetsim.plugins import PolicyConfig
from fleetsim.workload.request import Request


class EdfConfig(PolicyConfig):
    """Deadlines stand in the scenario's `slo`."""


class Edf(Order):
    """Earliest deadline first: by arrival plus the limit on time to first token of the request's class.

    Rule: waiting requests are sorted by deadline, those without one last. Blocks lacking: the running request with the latest
    deadline gives way. Deciding costs nothing.

    References
    ----------
    C. L. Liu and J. W. Layland, "Scheduling Algorithms for Multiprogramming in a Hard-Real-Time Environment", Journal of the ACM
    20(1), 1973, doi:10.1145/321738.321743.
    """

    Config: ClassVar = EdfConfig
    needs_deadlines: ClassVar[bool] = True

    def key(self, request: Request) -> Key:
        """Latest first token that keeps the limit [s]."""
        return request.deadline_s
