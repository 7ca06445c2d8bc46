"""vLLM V1's scheduler: running requests first, then the queue, within one token budget."""

from __future__ import annotations

from typing import Annotated, ClassVar

from mypy_extensions import mypyc_attr
from pydantic import Field

from fleetsim.engine.batch import Batch
from fleetsim.plugins import PolicyConfig


class VllmV1Config(PolicyConfig):
    """Parameters of vLLM V1's scheduler."""

    max_batched_tokens: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'tokens'})]" = 2048
    """Tokens computed in one step at most (max_num_batched_tokens)."""
    max_seqs: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'count'})]" = 256
    """Requests running at a time at most (max_num_seqs)."""
    long_prefill_tokens: "Annotated[int, Field(ge=0, strict=True, json_schema_extra={'unit': 'tokens'})]" = 0
    """Largest chunk of one prompt per step (long_prefill_token_threshold); 0: no limit but the budget."""
    watermark_ratio: "Annotated[float, Field(ge=0, lt=1)]" = 0.0
    """Share of the KV blocks kept free when a request is admitted (0 in vLLM V1, 0.01 in V0)."""
    reserve_whole_prompt: bool = True
    """Admit a request only when its whole prompt fits, not just its first chunk (vLLM from March 2026 on)."""


@mypyc_attr(allow_interpreted_subclasses=True)
class VllmV1:
    """Continuous batching with chunked prefill: running requests first, then the queue in order, within a token budget.

    Rule: every decoding request gets one token; then prompts that are under way get chunks, in order of admission; then, if nothing
    was preempted in this step, waiting requests are admitted first come, first served. Blocks lacking: the request admitted last is
    preempted and will be computed again from what the cache still holds.

    References
    ----------
    vLLM documentation, ``vllm.v1.core.sched.scheduler``; W. Kwon et al., "Efficient Memory Management
    for Large Language Model Serving with PagedAttention", SOSP 2023, doi:10.1145/3600006.3613165.
    """

    Config: ClassVar = VllmV1Config

    def __init__(self, config: VllmV1Config) -> None:
        self.max_batched_tokens = config.max_batched_tokens
        self.max_seqs = config.max_seqs
        self.chunk_limit = config.long_prefill_tokens or config.max_batched_tokens
        self.watermark_ratio = config.watermark_ratio
        self.reserve_whole_prompt = config.reserve_whole_prompt

    def schedule(self, batch: Batch) -> None:
        """Plan the next step of `batch`."""
        while batch.spare_blocks() < 0:
            batch.preempt(batch.victim())
        budget = self.max_batched_tokens - batch.decoding
        if batch.prefilling:
            budget = self._continue(batch, budget)
        if batch.waiting and not batch.preempted:
            self._admit(batch, budget)

    def admits(self, batch: Batch) -> bool:
        """A new request can run next only if nobody waits before it and there is a seat."""
        return not batch.waiting and len(batch.running) < self.max_seqs

    def _continue(self, batch: Batch, budget: int) -> int:
        """Give chunks to prompts under way; returns what is left of the budget."""
        for request in list(batch.prefilling):
            if request not in batch.running:
                continue  # preempted for an earlier one
            tokens = min(request.target - request.computed, budget, self.chunk_limit)
            if tokens <= 0:
                break
            while not batch.extend(request, tokens):
                victim = batch.victim()
                batch.preempt(victim)
                if victim is request:
                    break
            else:
                budget -= tokens
        return budget

    def _admit(self, batch: Batch, budget: int) -> None:
        """Admit from the head of the queue while seats, tokens and blocks last."""
        waiting, running = batch.waiting, batch.running
        keep_free = int(self.watermark_ratio * batch.cache.capacity)
        while waiting and budget > 0 and len(running) < self.max_seqs:
            limit = budget if budget < self.chunk_limit else self.chunk_limit
            # an empty rank admits whatever fits
            tokens = batch.admit(waiting[0], limit, self.reserve_whole_prompt, keep_free if running else 0)
            if not tokens:
                return
            budget -= tokens
