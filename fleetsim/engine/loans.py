"""Keys and values of a decoding request that lie on another replica: what that costs both."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from fleetsim.workload.request import Request


class Terms(NamedTuple):
    """What each step of a debtor costs because some blocks of a request lie elsewhere."""

    wire_s: float
    """Queries out and partial results back, layer by layer [s]."""
    work_s: float
    """Attention over the blocks, on the creditor [s]."""
    energy_j: float
    """What that attention takes above static power [J]."""
    wire_bytes: float
    """Sent over the network in both directions together [bytes]."""


class Loan:
    """Memory of one replica (the creditor) that holds the oldest own blocks of a request that decodes on another (the debtor)."""

    __slots__ = ("blocks", "creditor", "ended", "request", "serving", "terms")

    def __init__(
        self, request: Request, creditor: int, blocks: int, terms: Terms, ended: Callable[[Loan], None]
    ) -> None:
        self.request = request
        self.creditor = creditor
        """Index of the replica."""
        self.blocks = blocks
        self.terms = terms
        self.ended = ended
        """Called when the request needs the blocks no more."""
        self.serving = False
        """Whether the creditor computes attention over the blocks in each of its steps."""


def remote_wait_s(loans: Iterable[Loan]) -> float:
    """Time from sending the queries of a step to having all partial results: creditors work side by side [s].

    What one creditor does for several requests adds up, and so does what it takes to reach it.
    """
    waits: dict[int, float] = {}
    for loan in loans:
        waits[loan.creditor] = waits.get(loan.creditor, 0.0) + loan.terms.wire_s + loan.terms.work_s
    return max(waits.values(), default=0.0)
