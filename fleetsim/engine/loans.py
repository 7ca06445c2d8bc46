"""Keys and values of a request that lie on another replica: what that costs both."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from fleetsim.workload.request import Request


class Terms(NamedTuple):
    """What one step of a debtor costs because keys and values of a request lie elsewhere."""

    wire_s: float
    """Queries out and partial results back, layer by layer [s]."""
    work_s: float
    """Attention over them, on the creditor [s]."""
    energy_j: float
    """What that attention takes above static power [J]."""
    wire_bytes: float
    """Sent over the network in both directions together [bytes]."""


class Lender(Protocol):
    """Who looks after a loan where its blocks lie (`fleetsim/fleet/borrowing.py`)."""

    def serve(self, on: bool) -> None:
        """The request decodes from now on, or does not: each step of the creditor computes attention over the blocks, or none."""
        ...

    def chunk(self, tokens: int, keys: int, written: int) -> tuple[Terms, float]:
        """A step computes `tokens` of the prompt after `keys` that lie there, and writes `written` of them there.

        Answers with the cost, and with the time that the writing takes [s].
        """
        ...

    def end(self) -> None:
        """The request needs the blocks no more."""
        ...


class Loan:
    """Memory of one replica (the creditor) that holds blocks of a request that runs on another (the debtor).

    A loan that was taken before the request was sent holds the beginning of its prompt and lasts until the request leaves its
    replica; one taken while it decodes holds its oldest own blocks then, and ends when it is preempted too.
    """

    __slots__ = ("blocks", "creditor", "lender", "request", "serving", "terms")

    def __init__(self, request: Request, creditor: int, blocks: int, terms: Terms, lender: Lender) -> None:
        self.request = request
        self.creditor = creditor
        """Index of the replica."""
        self.blocks = blocks
        self.terms = terms
        """Of each step in which the request decodes."""
        self.lender = lender
        self.serving = False
        """Whether the creditor computes attention over the blocks in each of its steps."""


class RemoteChunk(NamedTuple):
    """A chunk of a prompt whose beginning lies elsewhere, planned for the next step."""

    request: Request
    computed: int
    """Tokens before it."""
    tokens: int


def remote_wait_s(costs: Iterable[tuple[int, Terms]]) -> float:
    """Time from sending the queries of a step to having all partial results: creditors work side by side [s].

    What one creditor (by index) does adds up, and so does what it takes to reach it.
    """
    waits: dict[int, float] = {}
    for creditor, terms in costs:
        waits[creditor] = waits.get(creditor, 0.0) + terms.wire_s + terms.work_s
    return max(waits.values(), default=0.0)


def chunk_costs(chunks: Iterable[RemoteChunk], block_tokens: int) -> tuple[list[tuple[int, Terms]], float]:
    """What the chunks of a step cost on each creditor, and the time that writing their keys and values takes [s]."""
    costs: list[tuple[int, Terms]] = []
    write_s = 0.0
    for request, computed, tokens in chunks:
        begin = 0
        for loan in request.lenders:
            end = begin + loan.blocks * block_tokens
            keys = min(max(computed - begin, 0), end - begin)
            written = max(min(computed + tokens, end) - max(computed, begin), 0)
            if keys or written:
                terms, seconds = loan.lender.chunk(tokens, keys, written)
                costs.append((loan.creditor, terms))
                write_s += seconds
            begin = end
    return costs, write_s
