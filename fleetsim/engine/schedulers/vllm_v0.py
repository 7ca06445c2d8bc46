"""vLLM V0's scheduler: prompts first, in steps of their own."""

from __future__ import annotations

from typing import Annotated, ClassVar

from mypy_extensions import mypyc_attr
from pydantic import Field

from fleetsim.engine.batch import Batch
from fleetsim.plugins import PolicyConfig


class VllmV0Config(PolicyConfig):
    """Parameters of vLLM V0's scheduler."""

    max_batched_tokens: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'tokens'})]" = 4096
    """Prompt tokens computed in one step at most (max_num_batched_tokens); a longer prompt is computed alone."""
    max_seqs: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'count'})]" = 256
    """Requests running at a time at most (max_num_seqs)."""
    watermark_ratio: "Annotated[float, Field(ge=0, lt=1)]" = 0.01
    """Share of the KV blocks kept free when a request is admitted."""
    padded_prompts: bool = True
    """Count the prompts of a step as if each were as long as the longest (as before vLLM 0.3), else as long as they are."""


@mypyc_attr(allow_interpreted_subclasses=True)
class VllmV0:
    """Prompts first: whole prompts of waiting requests in steps of their own, while decodes pause; else all running decode.

    Rule: at every step, waiting requests are admitted first come, first served, while there is a seat, their prompts stay within
    the token budget (number times longest, where padded) and fit beside the watermark. If any was admitted, the step computes their
    prompts only and the decoding requests get no token; otherwise each gets one. Blocks lacking for that: the request that arrived
    last is preempted, waits first in the queue and is computed again. An empty rank admits any request.

    Padding counts against the budget only; what a step costs follows from the true lengths. Prompts count in full even where the
    prefix cache holds their beginning. V0 swapped to the host where a request had several beams: `engine.kv.preemption`.

    References
    ----------
    W. Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention", SOSP 2023, sections 4.5 and
    5, doi:10.1145/3600006.3613165; vLLM 0.2, ``vllm.core.scheduler``.
    """

    Config: ClassVar = VllmV0Config

    def __init__(self, config: VllmV0Config) -> None:
        self.max_batched_tokens = config.max_batched_tokens
        self.max_seqs = config.max_seqs
        self.watermark_ratio = config.watermark_ratio
        self.padded_prompts = config.padded_prompts

    def schedule(self, batch: Batch) -> None:
        """Plan the next step of `batch`."""
        if batch.waiting or batch.prefilling:
            batch.held = True
            batch.extend_all()
            self._admit(batch)
            if batch.chunks:
                return
            batch.held = False
        while batch.spare_blocks() < 0:
            batch.preempt(batch.victim())

    def admits(self, batch: Batch) -> bool:
        """A new request can run next only if nobody waits before it and there is a seat."""
        return not batch.waiting and len(batch.running) < self.max_seqs

    def _admit(self, batch: Batch) -> None:
        """Admit from the head of the queue while seats, tokens and blocks last."""
        waiting, running = batch.waiting, batch.running
        keep_free = int(self.watermark_ratio * batch.cache.capacity)
        prompts = longest = total = 0
        while waiting and len(running) < self.max_seqs:
            request = waiting[0]
            tokens = request.prompt_tokens + request.generated
            prompts += 1
            total += tokens
            if tokens > longest:
                longest = tokens
            counted = prompts * longest if self.padded_prompts else total
            if prompts > 1 and counted > self.max_batched_tokens:
                return
            # an empty rank admits whatever fits
            if not batch.admit(request, tokens, True, keep_free if running else 0):
                return
