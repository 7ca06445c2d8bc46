"""What a rebalancer sees and what it answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from fleetsim.engine.replica import Replica
from fleetsim.routing.api import Borrow, Migrate, MoveQueued, Recall
from fleetsim.workload.request import Request

__all__ = [
    "Borrow",
    "LoanState",
    "Migrate",
    "Move",
    "MoveQueued",
    "Moving",
    "Rebalancer",
    "Recall",
    "ReplicaState",
    "RequestState",
]

Move = MoveQueued | Migrate | Borrow | Recall
"""What a rebalancer may ask for."""


class RequestState:
    """What a replica knows of a request of its own."""

    __slots__ = ("_replica", "_request")

    def __init__(self, replica: Replica, request: Request) -> None:
        self._replica = replica
        self._request = request

    @property
    def id(self) -> int:
        """Unique in the run."""
        return self._request.id

    @property
    def prompt_tokens(self) -> int:
        """Prompt length [tokens]."""
        return self._request.prompt_tokens

    @property
    def context_tokens(self) -> int:
        """Tokens of prompt and answer so far; what it will hold once it runs, while it waits."""
        return self._replica.context_tokens(self._request)

    @property
    def arrival_s(self) -> float:
        """Arrival at the gateway [s]."""
        return self._request.arrival_s

    @property
    def deadline_s(self) -> float:
        """Latest first token that keeps the limit of its class [s]; infinite without one."""
        return self._request.deadline_s

    @property
    def priority(self) -> int:
        """Higher is more urgent."""
        return self._request.priority

    @property
    def predicted_tokens(self) -> float:
        """Output length that the gateway's predictor expects [tokens]; below zero where there is none."""
        return self._request.predicted_tokens

    @property
    def decoding(self) -> bool:
        """Whether its prompt is computed and it gets tokens: only then can it migrate, or borrow memory."""
        return self._request.finish_step >= 0

    @property
    def remote_blocks(self) -> int:
        """KV blocks of it that lie on other replicas."""
        return self._request.remote_blocks

    @property
    def lendable_blocks(self) -> int:
        """KV blocks of it that another replica may hold: whole ones that lie here and that no other request can share."""
        if self._request.finish_step < 0:
            return 0
        return self._replica.batches[self._request.rank].lendable_blocks(self._request, self.context_tokens - 1)


class ReplicaState:
    """What a replica reports of itself, exact and without delay."""

    __slots__ = ("_replica", "block_tokens", "capacity_blocks", "pool")

    def __init__(self, replica: Replica, pool: str) -> None:
        batch = replica.batches[0]
        self._replica = replica
        self.pool = pool
        """Name of its pool."""
        self.block_tokens = batch.block_tokens
        """Tokens per block."""
        self.capacity_blocks = batch.cache.capacity * len(replica.batches)
        """KV blocks, over all ranks."""

    @property
    def present(self) -> bool:
        """Whether it takes requests: not while it starts, leaves, is off or down."""
        return self._replica.present

    @property
    def used_blocks(self) -> int:
        """KV blocks in use, those reserved for requests on their way here included."""
        return self._replica.kv_used_blocks(self._replica.clock.now_s)

    @property
    def free_blocks(self) -> int:
        """KV blocks that are not in use."""
        return self.capacity_blocks - self.used_blocks

    @property
    def hosted_blocks(self) -> int:
        """Of those in use, what it keeps for requests that decode on other replicas."""
        return sum(loan.blocks for batch in self._replica.batches for loan in batch.hosted)

    @property
    def borrows(self) -> bool:
        """Whether requests that decode here have blocks elsewhere."""
        return any(batch.borrowed for batch in self._replica.batches)

    @property
    def decoding_count(self) -> int:
        """Requests that get a token in each step."""
        return sum(batch.decoding for batch in self._replica.batches)

    @property
    def read_tokens(self) -> int:
        """Tokens of context that the next decode step reads here."""
        replica = self._replica
        done = 0 if replica.has_chunks else replica.steps_done(replica.clock.now_s)
        return sum(b.ctx_tokens - b.remote_tokens + b.growing * done for b in replica.batches)

    @property
    def preemptions(self) -> int:
        """Requests that it preempted since the start."""
        return sum(batch.preemptions for batch in self._replica.batches)

    @property
    def running_count(self) -> int:
        """Requests that hold blocks."""
        return sum(len(batch.running) for batch in self._replica.batches)

    @property
    def waiting_count(self) -> int:
        """Requests in the queue or on their way into it."""
        return sum(len(batch.waiting) for batch in self._replica.batches) + len(self._replica.inbox)

    def running(self) -> Iterator[RequestState]:
        """Requests that hold blocks, in order of admission."""
        for batch in self._replica.batches:
            for request in batch.running:
                yield RequestState(self._replica, request)

    def waiting(self) -> Iterator[RequestState]:
        """Requests in the queues, rank by rank, the next one first, then those on their way into them."""
        replica = self._replica
        now_s = replica.clock.now_s
        # who came during a leap is in the queue although the replica looks at it at the next boundary only
        here = [request for request in replica.inbox if request.ready_s <= now_s]
        for rank, batch in enumerate(replica.batches):
            for request in (*batch.waiting, *(request for request in here if request.rank == rank)):
                yield RequestState(replica, request)
        for request in replica.inbox:
            if request.ready_s > now_s:
                yield RequestState(replica, request)

    def first_waiting(self) -> RequestState | None:
        """The request that runs next, if one waits."""
        return next(self.waiting(), None)

    def blocks_of(self, tokens: int) -> int:
        """Blocks that so many tokens take."""
        return -(-tokens // self.block_tokens)


class LoanState(NamedTuple):
    """Blocks of a request that lie on another replica."""

    request: int
    """Its id."""
    source: int
    """Where it decodes."""
    target: int
    """Where they lie."""
    blocks: int
    began: bool
    """Whether they have got there."""


class Moving(Protocol):
    """What a rebalancer knows beside the replicas."""

    now_s: float
    """Time of this tick [s]."""

    def migrating(self, position: int) -> int:
        """Migrations under way from or to a replica."""
        ...

    def step_s(self, position: int, batch: int, tokens: int) -> float:
        """Predicted duration of a decode step of `batch` requests that reads `tokens` of context [s]."""
        ...

    def loan_s(self, source: int, target: int, tokens: int) -> tuple[float, float]:
        """Time that each step of `source` spends on the way, and each of `target` on attention, if it holds `tokens` for it [s]."""
        ...

    def loans(self) -> Sequence[LoanState]:
        """Loans of memory between the replicas, in the order in which they were asked for."""
        ...


class Rebalancer(Protocol):
    """Moves waiting or running requests between the replicas that serve one LLM.

    Built as ``Policy(config, rng, replicas, moving)``: its parameters, its own random stream, what it sees of the replicas, and
    what is on the move. Its attribute `period_s` says how often it is asked.
    """

    period_s: float

    def tick(self) -> Sequence[Move]:
        """What to move now. What cannot be done any more (the request ended, or runs already) is left undone."""
        ...
