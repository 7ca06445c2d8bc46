"""What a router sees and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from fleetsim.routing.router import Router
from fleetsim.workload.request import Request

__all__ = ["FleetView", "MinIndex", "Reject", "RequestView", "Router"]


class RequestView:
    """What the gateway knows of a request. The output length is not known to anybody before it happens."""

    __slots__ = ("_request",)

    def __init__(self, request: Request) -> None:
        self._request = request

    @property
    def id(self) -> int:
        """Unique in the run."""
        return self._request.id

    @property
    def arrival_s(self) -> float:
        """Arrival at the gateway [s]."""
        return self._request.arrival_s

    @property
    def prompt_tokens(self) -> int:
        """Prompt length [tokens]."""
        return self._request.prompt_tokens

    @property
    def session(self) -> int:
        """Conversation it belongs to; -1 if none."""
        return self._request.session

    @property
    def tenant(self) -> str | None:
        """Who pays for it, if known."""
        return self._request.tenant

    @property
    def klass(self) -> str | None:
        """Service class, if known."""
        return self._request.klass


@dataclass(frozen=True, slots=True)
class Reject:
    """Decision not to serve a request."""

    reason: str


class MinIndex:
    """Position of the smallest of many counters, kept up to date at a cost that does not grow with their number.

    A heap of (value, time of change, position) in which old entries are dropped when they surface; among equal values the one
    unchanged for longest comes first.
    """

    __slots__ = ("_heap", "_stamp", "_stamps", "values")

    def __init__(self, values: Sequence[int]) -> None:
        self.values = list(values)
        self._stamps = list(range(len(self.values)))
        self._heap = [(value, position, position) for position, value in enumerate(self.values)]
        heapify(self._heap)
        self._stamp = len(self.values)

    def add(self, position: int, change: int) -> None:
        """Change one counter."""
        value = self.values[position] + change
        self.values[position] = value
        self._stamp += 1
        self._stamps[position] = self._stamp
        heap = self._heap
        heappush(heap, (value, self._stamp, position))
        if len(heap) > 8 * len(self.values) + 64:
            stamps = self._stamps
            self._heap = [entry for entry in heap if stamps[entry[2]] == entry[1]]
            heapify(self._heap)

    def smallest(self) -> int:
        """Position of the smallest counter."""
        heap, stamps = self._heap, self._stamps
        while stamps[heap[0][2]] != heap[0][1]:
            heappop(heap)
        return heap[0][2]


class FleetView:
    """The replicas that may serve a request, as the gateway knows them: its own counts, exact and without delay.

    Replicas are numbered 0 to `count` - 1; a router answers with such a number.
    """

    __slots__ = (
        "by_outstanding",
        "by_work",
        "decode_weight_tokens",
        "decoding",
        "now_s",
        "outstanding",
        "pending_tokens",
        "pools",
    )

    def __init__(self, pools: Sequence[str]) -> None:
        self.pools = tuple(pools)
        """Pool name of each replica."""
        self.now_s = 0.0
        """Time of this decision [s]."""
        self.outstanding = [0] * len(self.pools)
        """Requests sent and not ended yet, per replica."""
        self.decoding = [0] * len(self.pools)
        """Requests that have their first token and are not done, per replica; counted where a router asked for `index_work`."""
        self.pending_tokens = [0] * len(self.pools)
        """Prompt tokens sent whose first output token has not come yet, per replica; counted like `decoding`."""
        self.by_outstanding: MinIndex | None = None
        self.by_work: MinIndex | None = None
        self.decode_weight_tokens = 0

    @property
    def count(self) -> int:
        """Number of replicas."""
        return len(self.pools)

    def index_outstanding(self) -> MinIndex:
        """Ask, at construction, for an index of the replica with the fewest outstanding requests."""
        self.by_outstanding = MinIndex(self.outstanding)
        return self.by_outstanding

    def index_work(self, decode_weight_tokens: int) -> MinIndex:
        """Ask, at construction, for an index of the replica with the least work.

        Work is the pending prompt tokens, plus `decode_weight_tokens` for each request that has its first token and is not done.
        """
        weight = self.decode_weight_tokens = decode_weight_tokens
        self.by_work = MinIndex([p + weight * d for p, d in zip(self.pending_tokens, self.decoding, strict=True)])
        return self.by_work

    def begin_like(self, position: int, other: FleetView, other_position: int) -> None:
        """Take over the counts that another view has of the same replica."""
        self.outstanding[position] = other.outstanding[other_position]
        self.decoding[position] = other.decoding[other_position]
        self.pending_tokens[position] = other.pending_tokens[other_position]

    def sent(self, position: int, prompt_tokens: int) -> None:
        """Count a request that goes to a replica (called by the gateway)."""
        self.outstanding[position] += 1
        if self.by_outstanding is not None:
            self.by_outstanding.add(position, 1)
        if self.by_work is not None:
            self.pending_tokens[position] += prompt_tokens
            self.by_work.add(position, prompt_tokens)

    def started(self, position: int, prompt_tokens: int) -> None:
        """Count a first token (called by the gateway where a router asked for `index_work`)."""
        if self.by_work is not None:
            self.pending_tokens[position] -= prompt_tokens
            self.decoding[position] += 1
            self.by_work.add(position, self.decode_weight_tokens - prompt_tokens)

    def ended(self, position: int) -> None:
        """Count the end of a request that had its first token (called by the gateway)."""
        self.outstanding[position] -= 1
        if self.by_outstanding is not None:
            self.by_outstanding.add(position, -1)
        if self.by_work is not None:
            self.decoding[position] -= 1
            self.by_work.add(position, -self.decode_weight_tokens)
