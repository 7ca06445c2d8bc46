"""One request, from arrival to its terminal state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from fleetsim.workload.prefixes import Content

WAITING, RUNNING, FINISHED, REJECTED, TIMED_OUT, FAILED, UNFINISHED = range(7)
STATUS = ("unfinished", "unfinished", "finished", "rejected", "timed_out", "failed", "unfinished")
"""Name in the tables of each state; a request that still waits or runs at the horizon is unfinished."""

_NEVER = float("nan")


class Request:
    """A prompt with a wish for tokens.

    The first block of attributes comes from the workload. `output_tokens` is the true length and is hidden from policies. The rest
    is the engine's book-keeping.
    """

    __slots__ = (
        "arrival_s",
        "blocks",
        "cached_tokens",
        "computed",
        "content",
        "cost_mark",
        "cost_share_s",
        "end_s",
        "energy_j",
        "energy_mark",
        "finish_step",
        "first_scheduled_s",
        "first_token_s",
        "generated",
        "id",
        "itl_max_s",
        "klass",
        "last_token_s",
        "model",
        "node",
        "output_tokens",
        "preemptions",
        "prompt_tokens",
        "queued_s",
        "rank",
        "reason",
        "replica",
        "segment_mark",
        "session",
        "shared_blocks",
        "status",
        "target",
        "tenant",
        "turn",
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
        # life so far
        self.status = WAITING
        self.reason: str | None = None
        self.replica = -1
        self.rank = 0
        self.queued_s = _NEVER
        self.first_scheduled_s = _NEVER
        self.first_token_s = _NEVER
        self.last_token_s = _NEVER
        self.end_s = _NEVER
        self.cached_tokens = 0
        self.preemptions = 0
        self.generated = 0
        self.finish_step = -1
        self.segment_mark = -1
        self.itl_max_s = 0.0
        self.energy_j = 0.0
        self.cost_share_s = 0.0


class Workload(Protocol):
    """A stream of requests in order of arrival, and what the end of one releases."""

    skipped_rows: int
    """Rows of a trace that could not be read, once all requests have been taken."""

    def requests(self) -> Iterator[Request]:
        """Requests that arrive by themselves, `arrival_s` not falling."""
        ...

    def released_by(self, request: Request, now_s: float) -> Request | None:
        """The request (not earlier than `now_s`) that the end of `request` releases, if any."""
        ...
