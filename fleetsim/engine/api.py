"""What an engine asks of its plug-ins: the physics of a step, and the scheduler."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

from fleetsim.workload.prefixes import Path
from fleetsim.workload.request import Request

if TYPE_CHECKING:
    from fleetsim.engine.batch import Batch
    from fleetsim.workload.request import Request

OPERATORS = ("qkv_proj", "attn", "o_proj", "gate_up_proj", "down_proj")
"""Operators of a layer: behind each of them a step of prompt chunks may be stopped."""


class Line(NamedTuple):
    """Duration and dynamic energy of a decode step, linear in the batch's context sum while that stays below `ctx_end`."""

    time_s: float
    """Duration at context sum 0 [s]."""
    time_per_ctx_s: float
    """Added duration per token of context [s/token]."""
    energy_j: float
    """Energy above static power at context sum 0 [J]."""
    energy_per_ctx_j: float
    """Added energy per token of context [J/token]."""
    ctx_end: float
    """First context sum at which another line holds (``inf`` if none)."""


class Operators(NamedTuple):
    """Where the time of a step of prompt chunks goes, as shares of its duration: they add up to 1."""

    before: float
    """Before the first layer: the host prepares the step, the embedding is looked up."""
    layers: tuple[float, float, float, float, float]
    """Each of `OPERATORS`, over all layers; every layer is taken to last as long as the mean one."""
    after: float
    """Behind the last layer: LM head and sampler."""
    layer_count: int
    """≥ 1."""
    resume_s: float
    """Time to start the kernels again where a step was stopped [s]."""


def even_operators(layer_count: int) -> Operators:
    """What is taken where a step-time model does not say: `layer_count` layers, nothing beside them, operators of equal length."""
    return Operators(0.0, (0.2, 0.2, 0.2, 0.2, 0.2), 0.0, layer_count, 0.0)


class StepTimeModel(Protocol):
    """Duration and energy of one step on one replica: a pure function of what the step computes.

    A step of one attention data-parallel rank is described by counts; `group_tokens` is the number of tokens that all ranks of the
    replica process in that step (equal to the rank's own where dp is 1). A replica's step lasts as long as its slowest rank's. Its
    energy is ``min(static_w * time + sum of the ranks' dynamic energies, limit_w * time)``. `decode` and `mixed` agree where no
    prompt token is computed.

    A model may also have a method ``prefill_operators(tokens, sampled, prefill_pairs, prefill_ctx_tokens, prefill_sequences)``
    that answers, for a step of prompt chunks only, with the `Operators` that its duration is made of; it is asked where a
    scheduler stops such a step. Without it all operators are taken to last equally long (`even_operators`).
    """

    idle_w: float
    """Power of the whole replica while it computes nothing [W]."""
    static_w: float
    """Power of the whole replica while a step runs, before what the computing itself adds [W]."""
    limit_w: float
    """Power that the whole replica never exceeds [W]."""
    frontend_s: float
    """Time between a request's arrival at the replica and its queue, per request [s]."""

    def decode(self, batch: int, ctx_tokens: int, group_tokens: int) -> Line:
        """The line that holds for a step of `batch` sequences with one new token each, at context sum `ctx_tokens`.

        The context sum counts, over the batch, the tokens that attention reads, the new ones included.
        """
        ...

    def mixed(
        self,
        tokens: int,
        sampled: int,
        prefill_pairs: int,
        prefill_ctx_tokens: int,
        prefill_sequences: int,
        decode_batch: int,
        decode_ctx_tokens: int,
        group_tokens: int,
    ) -> tuple[float, float]:
        """Duration [s] and dynamic energy [J] of a step.

        Parameters
        ----------
        tokens : int
            New tokens computed by this rank, prompt chunks and decodes together.
        sampled : int
            Sequences that get a token from the LM head.
        prefill_pairs : int
            Sum over prompt chunks of the (query, key) pairs that causal attention scores: n*c + n*(n+1)/2 for n new tokens after c.
        prefill_ctx_tokens : int
            Sum over prompt chunks of the keys read: c + n.
        prefill_sequences : int
            Number of prompt chunks.
        decode_batch : int
            Sequences that decode one token.
        decode_ctx_tokens : int
            Their context sum, new tokens included.
        group_tokens : int
            New tokens of all ranks of the replica.
        """
        ...


class Queue(Protocol):
    """The requests that wait for a rank: a deque, or one that puts itself in order (`fleetsim.engine.orders`)."""

    def append(self, request: Request, /) -> None:
        """Let a request join."""
        ...

    def appendleft(self, request: Request, /) -> None:
        """Take back a request that was preempted."""
        ...

    def popleft(self) -> Request:
        """Take out the first."""
        ...

    def remove(self, request: Request, /) -> None:
        """Take out a request that will not run here."""
        ...

    def rotate(self, places: int = 1, /) -> None:
        """Move requests from one end to the other, where the order is theirs."""
        ...

    def __getitem__(self, index: int, /) -> Request: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Request]: ...


class Scheduler(Protocol):
    """Decides at a step boundary what a rank computes next.

    Running requests past their prompt get a token, unless the scheduler sets `Batch.held` for a step that computes prompt chunks
    only; it plans these chunks, admits from the queue and preempts, by the verbs of `Batch`. It is asked at every boundary at
    which something may have changed: a request waits or has prompt left, or the decoding requests lack blocks. What it does may
    depend on the batch only, so that a leap over boundaries at which it would do nothing is exact. One whose answer changes with
    the growing contexts alone sets `Batch.ask_at`, the step at which it must be asked again.

    Two more methods are optional. ``prepare(model)`` tells it once per replica the step-time model that its engine would have
    profiled. A scheduler with ``interrupts(batch, request) -> bool`` is asked when `request` has joined the queue while a step of
    prompt chunks only is under way (`Batch.chunks`, of which `Batch.share_left` is still to do): yes stops the step behind the
    operator under way, or behind the layer under way if the attribute ``boundaries_per_layer`` is 1. What is computed so far
    stays on the accelerator as a `Suspended` plan in `Batch.suspended`, the scheduler plans again, and may `Batch.resume` it then
    or later. Prefixes are then found in the cache only once they are computed. Such a scheduler needs replicas of one rank.

    Orders of the queue want to know what stands between a request and its first step. A scheduler tells by attributes, if it has
    them: `max_seqs`, requests running at a time at most; `watermark_ratio`, share of the blocks kept free at admission; and
    `refills`, False where nobody is admitted in the place of a request that gave way;
    and `own_order`, True where the scheduler picks from anywhere in the queue, so that no order of the queue makes sense.
    """

    def schedule(self, batch: Batch) -> None:
        """Plan the next step; afterwards `batch.spare_blocks()` must not be below zero."""
        ...

    def admits(self, batch: Batch) -> bool:
        """Whether a request that joins the end of `batch.waiting` now could run from the next boundary on.

        False lets the engine leap on; it must then stay false until a request finishes.
        """
        ...


class SwapSpace(Protocol):
    """Where a replica keeps the keys and values of requests that it preempted (`fleetsim/engine/swap.py`)."""

    @property
    def must_wait(self) -> bool:
        """Whether the next step must wait for copies; the replica's `go_on` is called when they are over."""
        ...

    waited_s: float
    """Time for which steps waited for copies."""

    def take(self, batch: Batch, request: Request, freed_blocks: int) -> None:
        """A request was preempted and has released its blocks: make it a carrier, or leave it to be computed again."""
        ...

    def forget(self, request: Request) -> None:
        """A request has ended here."""
        ...


class LowerTiers(Protocol):
    """Places below a replica's memory that hold keys and values, as its batches see them."""

    writes_back: bool
    """Whether evicted blocks go there: then it matters when they are evicted."""

    def offer(self, request: Request, path: Path, held: int, limit: int) -> None:
        """A request is about to be admitted, of whose first `limit` blocks the cache holds `held`: set what comes from below."""
        ...

    def used(self, path: Path, blocks: int, hit_blocks: int) -> None:
        """A request has used the first `blocks` blocks of a path, of which it had found `hit_blocks`."""
        ...

    def prefetch(self, request: Request, ready_s: float) -> bool:
        """A request joins the queue at `ready_s`; True if it must not until the replica's `join` is called."""
        ...

    def forget(self, request: Request) -> None:
        """A request that waited is taken back."""
        ...


class Reuse(Protocol):
    """Lets a rank take keys and values of tokens that were computed behind another start, corrected by an approximation.

    They count as computed for the request that takes them, and for nobody else: it publishes nothing that stands behind its own
    instructions.
    """

    match_s: float
    """Time to look for them, before a request that may take some joins the queue [s]. ≥ 0."""

    def reused(self, request: Request, computed: int) -> int:
        """Tokens of a request's prompt behind its first `computed` ones that need not be computed."""
        ...

    def ended(self, request: Request) -> None:
        """A request has left; keys and values of its first `request.computed` tokens were here."""
        ...


class Compression(Protocol):
    """Bounds the keys and values of a request: a share of its context is dropped, and what attends to it is approximate.

    The engine holds what `chunk_room` says of a prompt until it is computed, then no more than `kept_tokens` of the request. A
    token that is decoded attends to these and to itself, and takes the place of one of them.
    """

    kept_tokens: int
    """Tokens that a request holds at most once its prompt is computed, per layer on average. ≥ 1."""

    def prompt_room(self, tokens: int) -> int:
        """Tokens whose room a prompt of `tokens` takes while it is computed in one step (≥ min(tokens, kept_tokens))."""
        ...

    def chunk_room(self, tokens: int) -> int:
        """Tokens whose room a prompt takes whose first `tokens` were computed in several steps.

        At least min(tokens, kept_tokens), at most `tokens`; it does not fall as they grow.
        """
        ...

    def chunk_work(self, computed: int, tokens: int, target: int) -> tuple[int, int, int]:
        """Work on the `tokens` after the first `computed` ones of a prompt of `target`.

        Tokens computed beside them, all (query, key) pairs, and all keys read; what choosing takes is part of it.
        """
        ...

    def approximate(self, tokens: int) -> int:
        """How many of a prompt's `tokens` are computed when some before them are dropped: the last ones."""
        ...
