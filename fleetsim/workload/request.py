"""One request, from arrival to its terminal state."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import Any, Protocol

from fleetsim.workload.prefixes import Content

WAITING, RUNNING, FINISHED, REJECTED, TIMED_OUT, FAILED, UNFINISHED = range(7)
STATUS = ("unfinished", "unfinished", "finished", "rejected", "timed_out", "failed", "unfinished")
"""Name in the tables of each state; a request that still waits or runs at the horizon is unfinished."""

_NEVER = float("nan")
LOCAL = -1
UNDECIDED = -2


class Carrier(Protocol):
    """Brings keys and values that were computed elsewhere to the replica that admitted their request."""

    def fetch(self, request: Request, tokens: int) -> None:
        """Begin to bring the last `tokens` of the request's `carried_tokens`; the replica is told by its `loaded`."""
        ...

    def drop(self, request: Request) -> None:
        """Stop bringing them: the request was preempted or withdrawn. A later `fetch` begins anew."""
        ...

    def release(self) -> None:
        """Keep nothing for the request any more."""
        ...


class Request:
    """A prompt with a wish for tokens.

    The first block of attributes comes from the workload. `output_tokens` is the true length and is hidden from policies. The rest
    is the engine's book-keeping.
    """

    __slots__ = (
        "approximate_tokens",
        "arrival_s",
        "attempt",
        "bill",
        "blocks",
        "cached_tokens",
        "call",
        "carried_tokens",
        "carrier",
        "computed",
        "content",
        "cost_mark",
        "cost_share_s",
        "deadline_s",
        "decode_at",
        "dropped_tokens",
        "embedded_at",
        "encode_end_s",
        "encode_replica",
        "encode_start_s",
        "end_s",
        "energy_before_j",
        "energy_j",
        "energy_mark",
        "finish_step",
        "first_scheduled_s",
        "first_token_s",
        "generated",
        "host_energy_j",
        "id",
        "image_tokens",
        "images",
        "itl_max_s",
        "klass",
        "last_token_s",
        "late_s",
        "lenders",
        "load_s",
        "loaded_tokens",
        "migrations",
        "model",
        "node",
        "origin",
        "output_tokens",
        "paid_usd",
        "predicted_tokens",
        "preemptions",
        "prefill_replica",
        "priority",
        "prompt_tokens",
        "queued_s",
        "rank",
        "ready_s",
        "reason",
        "remote_blocks",
        "replica",
        "segment_mark",
        "session",
        "shared_blocks",
        "stall_s",
        "status",
        "stopped_s",
        "target",
        "tenant",
        "transfer_s",
        "turn",
        "weight",
    )

    # what the engine fills in when the request is admitted
    blocks: int
    """KV blocks it holds; while it decodes, those it held when it began."""
    shared_blocks: int
    """Of these, how many are published in the prefix cache."""
    node: Any
    """Node of the prefix cache that its published blocks end with."""
    computed: int
    """Tokens whose keys and values are computed; while it decodes, those when it began."""
    target: int
    """Tokens to compute before the next token comes."""
    energy_mark: float
    cost_mark: float

    def __init__(
        self,
        id: int,
        arrival_s: float,
        prompt_tokens: int,
        output_tokens: int,
        content: Content | None = None,
        session: int = -1,
        turn: int = 0,
        klass: str | None = None,
        tenant: str | None = None,
        model: str | None = None,
        images: int = 0,
        image_tokens: int = 0,
    ) -> None:
        self.id = id
        self.arrival_s = arrival_s
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.content = content
        self.session = session
        self.turn = turn
        self.klass = klass
        self.tenant = tenant
        self.model = model
        self.images = images
        self.image_tokens = image_tokens
        """Of the prompt's tokens, those that an encoder makes of the images."""
        # what the gateway adds
        self.deadline_s = inf
        """Latest first token that keeps the limit of its class [s]."""
        self.priority = 0
        """Higher is more urgent."""
        self.weight = 1.0
        """Its tenant's share where tenants compete."""
        self.predicted_tokens = -1.0
        """Output length that a predictor expects [tokens]; below zero where there is none."""
        self.origin: str | None = None
        """Site that it comes from, if anybody says."""
        # life so far
        self.status = WAITING
        self.reason: str | None = None
        self.replica = -1
        self.prefill_replica = -1
        """Replica that computed its prompt, if another one decoded."""
        self.rank = 0
        self.queued_s = _NEVER
        self.first_scheduled_s = _NEVER
        self.first_token_s = _NEVER
        self.last_token_s = _NEVER
        self.end_s = _NEVER
        self.cached_tokens = 0
        self.loaded_tokens = 0
        """Tokens whose keys and values were loaded from lower tiers."""
        self.load_s = 0.0
        """Time for which it waited for them after its admission [s]."""
        self.stopped_s = _NEVER
        """Since when it computes nothing although it has been scheduled [s]; NaN while it does."""
        self.stall_s = 0.0
        """Time for which it ran nowhere after its first step [s]."""
        self.transfer_s = 0.0
        """Time for which it waited, admitted, for keys and values from elsewhere [s]."""
        self.late_s = 0.0
        """Of these two, what came after its first token [s]."""
        self.preemptions = 0
        self.migrations = 0
        self.dropped_tokens = 0
        """Prompt tokens that compressing took out of it."""
        self.approximate_tokens = 0
        """Tokens that were computed from an approximation of what stands before them, or are one themselves."""
        self.carried_tokens = 0
        """Tokens whose keys and values come from elsewhere when it is admitted next."""
        self.carrier: Carrier | None = None
        """Who brings them; None if they are here already, in reserved blocks."""
        self.decode_at = LOCAL
        """Replica that computes its tokens after the first; `LOCAL`, or `UNDECIDED` until its prompt is computed."""
        self.lenders: tuple[Any, ...] = ()
        """Loans that were taken before it was sent, in the order of the tokens that they hold."""
        self.remote_blocks = 0
        """Blocks of its keys and values that lie on other replicas."""
        self.attempt = 0
        """Times it was sent to a replica before, and taken back without an answer."""
        self.ready_s = _NEVER
        """When it joins the queue of the replica that it was sent to last."""
        self.encode_replica = -1
        """Replica that encoded its images."""
        self.encode_start_s = _NEVER
        self.encode_end_s = _NEVER
        self.embedded_at = -1
        """Replica that holds what the encoder made of them."""
        self.generated = 0
        self.finish_step = -1
        self.segment_mark = -1
        self.itl_max_s = 0.0
        self.energy_j = 0.0
        self.energy_before_j = 0.0
        """Of that, what it had taken when it left its last replica."""
        self.cost_share_s = 0.0
        """Its share of the busy time of the replica it is at [s]."""
        self.paid_usd = 0.0
        """What its shares on earlier replicas cost."""
        self.host_energy_j = 0.0
        """What the servers around earlier replicas drew for it."""
        self.bill: Any = None
        """What it has cost so far where prices change (`fleet/ledger.py`)."""
        self.call: Any = None
        """Where a model router decides who answers: the story that it is, or the call for one (`fleet/answering.py`)."""

    def copy(self) -> Request:
        """The same request with nothing done for it yet."""
        twin = Request(
            self.id,
            self.arrival_s,
            self.prompt_tokens,
            self.output_tokens,
            self.content,
            self.session,
            self.turn,
            self.klass,
            self.tenant,
            self.model,
            self.images,
            self.image_tokens,
        )
        twin.deadline_s = self.deadline_s
        twin.priority = self.priority
        twin.weight = self.weight
        twin.predicted_tokens = self.predicted_tokens
        twin.dropped_tokens = self.dropped_tokens
        twin.origin = self.origin
        twin.call = self.call
        return twin


Released = Request | list[Request] | None
"""What the end of a request releases."""


def each_released(released: Released) -> list[Request]:
    """The requests released, as a list."""
    if released is None:
        return []
    return released if isinstance(released, list) else [released]


class Workload(Protocol):
    """A stream of requests in order of arrival, and what the end of one releases."""

    skipped_rows: int
    """Rows of a trace that could not be read, once all requests have been taken."""

    def requests(self) -> Iterator[Request]:
        """Requests that arrive by themselves, `arrival_s` not falling."""
        ...

    def released_by(self, request: Request, now_s: float) -> Released:
        """The request, or a list of them, that the end of `request` releases (not earlier than `now_s`), if any."""
        ...
