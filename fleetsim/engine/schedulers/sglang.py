"""SGLang's scheduler: prompts first, in steps of their own, admitted by what answers are expected to need."""

from __future__ import annotations

from typing import Annotated, ClassVar

from mypy_extensions import mypyc_attr
from pydantic import Field

from fleetsim.engine.batch import Batch
from fleetsim.plugins import PolicyConfig
from fleetsim.workload.request import Request


class SglangConfig(PolicyConfig):
    """Parameters of SGLang's scheduler."""

    max_batched_tokens: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'tokens'})]" = 8192
    """Prompt tokens computed in one step at most; longer prompts are split (chunked_prefill_size)."""
    max_seqs: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'count'})]" = 256
    """Requests running at a time at most (max_running_requests)."""
    max_new_tokens: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'tokens'})]" = 4096
    """Longest answer that a request may ask for, the same for all; SGLang counts 4,096 at most."""
    new_token_ratio: "Annotated[float, Field(ge=0, le=1)]" = 0.7
    """Share of what running answers may still take that is reserved for them at first."""
    min_new_token_ratio: "Annotated[float, Field(ge=0, le=1)]" = 0.098
    """The least that this share falls to (0.14 of the first)."""
    decay_steps: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'count'})]" = 600
    """Decode steps in which it falls from the first to the least."""
    retract_steps: "Annotated[int, Field(ge=0, strict=True, json_schema_extra={'unit': 'count'})]" = 20
    """Decode steps for which there must be room once requests were retracted."""


class Reserve:
    """What the scheduler remembers of one rank."""

    def __init__(self, ratio: float, step: int) -> None:
        self.ratio = ratio
        """Share that was reserved at `step`; it falls from there."""
        self.step = step
        self.full_at = -1
        """Number of running requests beside which a waiting one was refused; -1 if none was."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Sglang:
    """Prompts first, split at a chunk size, in steps of their own; admission reserves a falling share of the longest answers.

    Rule: while a prompt is under way or a waiting request can be admitted, a step computes prompts only, up to the chunk size, and
    decodes pause. Requests are admitted first come, first served, if their prompt and their longest answer fit beside what the
    running ones are expected to take: `new_token_ratio` of their remaining longest answers. Once one is refused, nobody is
    admitted until fewer run. The ratio falls with every decode step to its minimum. Blocks lacking for a decode step: those with
    the fewest tokens answered (then the longest prompts) are retracted to the end of the queue until there is room for
    `retract_steps` steps, and the ratio is set to what the others are expected to take. A rank that was empty starts anew and
    admits any request.

    Not modelled: the order by longest prefix match (SGLang's default before 0.4.7), mixed chunks, and the second limit per step,
    max_prefill_tokens, which does not bind where the chunk size is smaller. Requests do not carry own limits of their answers.

    References
    ----------
    L. Zheng et al., "SGLang: Efficient Execution of Structured Language Model Programs", NeurIPS 2024, arXiv:2312.07104;
    SGLang, ``sglang.srt.managers.schedule_policy`` (PrefillAdder) and ``schedule_batch`` (retract_decode).
    """

    Config: ClassVar = SglangConfig

    def __init__(self, config: SglangConfig) -> None:
        self.max_batched_tokens = config.max_batched_tokens
        self.max_seqs = config.max_seqs
        self.max_new_tokens = config.max_new_tokens
        self.first_ratio = config.new_token_ratio
        self.least_ratio = min(config.min_new_token_ratio, config.new_token_ratio)
        self.decay = (self.first_ratio - self.least_ratio) / config.decay_steps
        self.retract_steps = config.retract_steps
        self.reserves: dict[Batch, Reserve] = {}

    def schedule(self, batch: Batch) -> None:
        """Plan the next step of `batch`."""
        reserve = self.reserves.get(batch)
        if reserve is None or not batch.running:
            reserve = self.reserves[batch] = Reserve(self.first_ratio, batch.step)
        if batch.waiting or batch.prefilling:
            batch.held = True
            budget = self._continue(batch)
            if len(batch.running) != reserve.full_at:
                self._admit(batch, reserve, budget)
            if batch.chunks:
                return
            batch.held = False
        if batch.spare_blocks() < 0:
            self._retract(batch, reserve)

    def admits(self, batch: Batch) -> bool:
        """A new request can run next only if nobody waits before it and there is a seat."""
        return not batch.waiting and len(batch.running) < self.max_seqs

    def ratio(self, batch: Batch) -> float:
        """Share of the longest answers' rest that is reserved now."""
        reserve = self.reserves[batch]
        return max(reserve.ratio - self.decay * (batch.step - reserve.step), self.least_ratio)

    def _continue(self, batch: Batch) -> int:
        """Give the next chunk to the prompt under way; returns what is left of the chunk size."""
        budget = self.max_batched_tokens
        for request in list(batch.prefilling):
            tokens = min(request.target - request.computed, budget)
            # its whole prompt fitted when it was admitted, and nothing has grown since
            if tokens > 0 and batch.extend(request, tokens):
                budget -= tokens
        return budget

    def _admit(self, batch: Batch, reserve: Reserve, budget: int) -> None:
        """Admit from the head of the queue while seats and tokens last and reservations allow."""
        waiting, running = batch.waiting, batch.running
        expected = self.ratio(batch) * sum([self._rest(batch, r) for r in running if r.finish_step >= 0])
        expected += sum([self._rest(batch, r) for r in batch.prefilling])
        while waiting and budget > 0 and len(running) < self.max_seqs:
            request = waiting[0]
            rest = self._rest(batch, request)
            # an empty rank admits whatever fits
            keep_free = -int(-(expected + rest) // batch.block_tokens) if running else 0
            tokens = batch.admit(request, budget, True, keep_free)
            if not tokens:
                break
            budget -= tokens
            expected += rest
        reserve.full_at = len(running) if waiting and budget > 0 else -1

    def _retract(self, batch: Batch, reserve: Reserve) -> None:
        """Send requests back to the queue until the others have room for some steps."""
        running, cache = batch.running, batch.cache
        order = sorted(running, key=lambda r: (batch.answered(r), -r.prompt_tokens))
        for request in order[:-1]:
            room_tokens = (cache.capacity - cache.used) * batch.block_tokens
            if batch.spare_blocks() >= 0 and room_tokens >= self.retract_steps * len(running):
                break
            batch.preempt(request)
            batch.waiting.rotate(-1)
        if batch.spare_blocks() < 0:  # blocks kept for others leave too few even for the last one
            batch.preempt(order[-1])
            batch.waiting.rotate(-1)
        answered = sum([batch.answered(r) for r in running])
        ratio = (answered + self.retract_steps * len(running)) / (self.max_new_tokens * len(running) + 1)
        reserve.ratio = min(ratio, 1.0)
        reserve.step = batch.step
        reserve.full_at = -1

    def _rest(self, batch: Batch, request: Request) -> int:
        """Tokens that the longest answer would still take."""
        rest = self.max_new_tokens - batch.answered(request)
        return rest if rest > 0 else 0
