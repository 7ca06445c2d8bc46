"""What a router sees and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import inf

from fleetsim.errors import PolicyError
from fleetsim.routing.router import Router
from fleetsim.workload.prefixes import Path, Segment, private_path
from fleetsim.workload.request import Request

__all__ = ["ADMIT", "KV_FULL", "Admit", "Defer", "FleetView", "MinIndex", "Reject", "RequestView", "Route", "Router"]

KV_FULL = 1 << 40
"""A full KV cache in the whole numbers of `FleetView.index_kv`: sums of shares that cancel exactly."""
_CAPACITY_TOKENS = 1 << 18


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

    @property
    def deadline_s(self) -> float:
        """Latest first token that keeps the limit of its class [s]; infinite without one."""
        return self._request.deadline_s

    @property
    def priority(self) -> int:
        """Higher is more urgent."""
        return self._request.priority

    @property
    def weight(self) -> float:
        """Its tenant's share where tenants compete."""
        return self._request.weight

    @property
    def predicted_tokens(self) -> float:
        """Output length that the gateway's predictor expects [tokens]; below zero where there is none."""
        return self._request.predicted_tokens

    @property
    def attempt(self) -> int:
        """Times it was sent before: 0 unless its first token took too long."""
        return self._request.attempt

    @property
    def tried(self) -> int:
        """Number over the whole fleet of the replica it was sent to last; -1 if none."""
        return self._request.replica

    def prefix(self, block_tokens: int) -> Path:
        """Keys of the prompt's whole blocks of `block_tokens` tokens, as a hash chained over its tokens would give them.

        Two prompts begin with the same tokens as far as their keys are equal. Costs nothing for routers that do not ask.

        Raises
        ------
        PolicyError
            If the prompt is known by a trace's hashes only, whose blocks cannot be cut or joined to `block_tokens`.
        """
        request = self._request
        left = request.prompt_tokens // block_tokens
        segments: list[Segment] = []
        blocks = left
        if request.content is not None:
            try:
                known = request.content.path(block_tokens)
            except ValueError as error:
                raise PolicyError(f"a router reads prefixes in blocks of {block_tokens} tokens: {error}") from error
            for segment in known:
                if not left:
                    break
                size = len(segment)
                segments.append(segment if size <= left else segment[:left])
                left -= min(size, left)
        if left:
            segments.append(private_path(request.id, blocks - left, left))
        return tuple(segments)


@dataclass(frozen=True, slots=True)
class Route:
    """Decision where a request goes, with more to say than the number of a replica."""

    replica: int
    """Number in the view."""
    decode: int = -1
    """Number, in the view's `decode`, of the replica that computes the tokens after the first; -1 leaves that to others: the same
    replica, or where that computes prompts only, what the decode router says when the prompt is computed."""
    hedge_after_s: float = inf
    """Time without a first token after which a copy is sent too: the router is asked again, with `attempt` one higher [s]."""
    retry_after_s: float = inf
    """Time without a first token after which the request is taken back and the router is asked again [s]."""


@dataclass(frozen=True, slots=True)
class Reject:
    """Decision not to serve a request."""

    reason: str


@dataclass(frozen=True, slots=True)
class Defer:
    """Decision to decide later."""

    until_s: float
    """When to ask again [s], later than now."""


class Admit:
    """Decision to let a request in: `ADMIT`."""


ADMIT = Admit()


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
        "_kv_scale",
        "by_kv",
        "by_most_outstanding",
        "by_outstanding",
        "by_work",
        "capacity_tokens",
        "decode",
        "decode_weight_tokens",
        "decoding",
        "expected_output_tokens",
        "in_flight",
        "now_s",
        "outstanding",
        "pending_tokens",
        "pools",
    )

    def __init__(self, pools: Sequence[str], capacity_tokens: Sequence[int] = ()) -> None:
        self.pools = tuple(pools)
        """Pool name of each replica."""
        self.capacity_tokens = tuple(capacity_tokens) or (_CAPACITY_TOKENS,) * len(self.pools)
        """Tokens that each replica's KV cache holds (all equal where nobody says)."""
        self.decode: FleetView | None = None
        """View of the replicas that may decode what these have begun; None where every replica does all of a request itself."""
        self.in_flight = 0
        """Requests sent and not ended yet, on all replicas."""
        self.now_s = 0.0
        """Time of this decision [s]."""
        self.outstanding = [0] * len(self.pools)
        """Requests sent and not ended yet, per replica."""
        self.decoding = [0] * len(self.pools)
        """Requests that have their first token and are not done, per replica; counted where a router asked for `index_work`."""
        self.pending_tokens = [0] * len(self.pools)
        """Prompt tokens sent whose first output token has not come yet, per replica; counted like `decoding`."""
        self.by_outstanding: MinIndex | None = None
        self.by_most_outstanding: MinIndex | None = None
        self.by_work: MinIndex | None = None
        self.by_kv: MinIndex | None = None
        self.decode_weight_tokens = 0
        self.expected_output_tokens = 0
        self._kv_scale = [KV_FULL // max(1, capacity) for capacity in self.capacity_tokens]

    @property
    def count(self) -> int:
        """Number of replicas."""
        return len(self.pools)

    def index_outstanding(self) -> MinIndex:
        """Ask, at construction, for an index of the replica with the fewest outstanding requests."""
        self.by_outstanding = MinIndex(self.outstanding)
        return self.by_outstanding

    def index_most_outstanding(self) -> MinIndex:
        """Ask, at construction, for an index whose `smallest` has the most outstanding requests (its values are negative)."""
        self.by_most_outstanding = MinIndex([-value for value in self.outstanding])
        return self.by_most_outstanding

    def index_kv(self, expected_output_tokens: int) -> MinIndex:
        """Ask, at construction, for an index of the replica whose KV cache the gateway takes for the least used.

        Its estimate counts every request sent and not ended with its prompt and `expected_output_tokens`, as a share of the
        replica's capacity; `MinIndex.values` are such shares times `KV_FULL`. Shared prefixes are counted once per request.
        Requests that another view of the same replicas sent before are not counted.
        """
        self.expected_output_tokens = expected_output_tokens
        self.by_kv = MinIndex([0] * len(self.pools))
        return self.by_kv

    def index_work(self, decode_weight_tokens: int) -> MinIndex:
        """Ask, at construction, for an index of the replica with the least work.

        Work is the pending prompt tokens, plus `decode_weight_tokens` for each request that has its first token and is not done.
        """
        weight = self.decode_weight_tokens = decode_weight_tokens
        self.by_work = MinIndex([p + weight * d for p, d in zip(self.pending_tokens, self.decoding, strict=True)])
        return self.by_work

    def begin_like(self, position: int, other: FleetView, other_position: int) -> None:
        """Take over the counts that another view has of the same replica."""
        self.in_flight += other.outstanding[other_position] - self.outstanding[position]
        self.outstanding[position] = other.outstanding[other_position]
        self.decoding[position] = other.decoding[other_position]
        self.pending_tokens[position] = other.pending_tokens[other_position]

    def sent(self, position: int, prompt_tokens: int) -> None:
        """Count a request that goes to a replica (called by the gateway)."""
        self.in_flight += 1
        self.outstanding[position] += 1
        if self.by_outstanding is not None:
            self.by_outstanding.add(position, 1)
        if self.by_most_outstanding is not None:
            self.by_most_outstanding.add(position, -1)
        if self.by_kv is not None:
            self.by_kv.add(position, self._kv_scale[position] * (prompt_tokens + self.expected_output_tokens))
        if self.by_work is not None:
            self.pending_tokens[position] += prompt_tokens
            self.by_work.add(position, prompt_tokens)

    def started(self, position: int, prompt_tokens: int) -> None:
        """Count a first token (called by the gateway where a router asked for `index_work`)."""
        if self.by_work is not None:
            self.pending_tokens[position] -= prompt_tokens
            self.decoding[position] += 1
            self.by_work.add(position, self.decode_weight_tokens - prompt_tokens)

    def ended(self, position: int, prompt_tokens: int) -> None:
        """Count the end of a request that had its first token (called by the gateway)."""
        self.in_flight -= 1
        self.outstanding[position] -= 1
        if self.by_outstanding is not None:
            self.by_outstanding.add(position, -1)
        if self.by_most_outstanding is not None:
            self.by_most_outstanding.add(position, 1)
        if self.by_kv is not None:
            self.by_kv.add(position, -self._kv_scale[position] * (prompt_tokens + self.expected_output_tokens))
        if self.by_work is not None:
            self.decoding[position] -= 1
            self.by_work.add(position, -self.decode_weight_tokens)
