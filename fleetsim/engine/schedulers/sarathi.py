"""Sarathi-Serve's scheduler: stall-free batches within a token budget."""

from __future__ import annotations

from typing import Annotated, ClassVar

from mypy_extensions import mypyc_attr
from pydantic import Field

from fleetsim.engine.batch import Batch
from fleetsim.plugins import PolicyConfig
from fleetsim.workload.request import Request


class SarathiConfig(PolicyConfig):
    """Parameters of Sarathi-Serve's scheduler."""

    max_batched_tokens: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'tokens'})]" = 512
    """Tokens computed in one step at most (the paper's budget tau: 512 under strict limits on gaps, 2,048 under relaxed ones)."""
    max_seqs: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'count'})]" = 128
    """Requests running at a time at most."""
    watermark_ratio: "Annotated[float, Field(ge=0, lt=1)]" = 0.01
    """Share of the KV blocks kept free when a request is admitted."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Sarathi:
    """Stall-free chunked prefill: all decodes, then the prompt under way, then new ones, never more than the token budget.

    Rule: every decoding request gets one token; what is left of the budget goes to the prompt under way, and what is left then to
    waiting requests, first come, first served, each admitted if its whole prompt fits beside the watermark. Blocks lacking: the
    request admitted last is preempted, waits first in the queue and is computed again; nothing is admitted in that step.

    References
    ----------
    A. Agrawal et al., "Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve", OSDI 2024, algorithm 3,
    arXiv:2403.02310.
    """

    Config: ClassVar = SarathiConfig

    def __init__(self, config: SarathiConfig) -> None:
        self.max_batched_tokens = config.max_batched_tokens
        self.max_seqs = config.max_seqs
        self.watermark_ratio = config.watermark_ratio

    def schedule(self, batch: Batch) -> None:
        """Plan the next step of `batch`."""
        while batch.spare_blocks() < 0:
            batch.preempt(batch.victim())
        budget = self.max_batched_tokens - batch.decoding
        for request in list(batch.prefilling):
            if budget <= 0 or request not in batch.running:
                continue  # nothing left, or preempted for an earlier one
            tokens = min(request.target - request.computed, budget)
            if self._make_room(batch, request, tokens):
                budget -= tokens
        if not batch.preempted:
            self._admit(batch, budget)

    def admits(self, batch: Batch) -> bool:
        """A new request can run next only if nobody waits before it and there is a seat."""
        return not batch.waiting and len(batch.running) < self.max_seqs

    def _make_room(self, batch: Batch, request: Request, tokens: int) -> bool:
        """Plan a chunk, preempting whoever was admitted last; False if that was `request` itself."""
        while not batch.extend(request, tokens):
            victim = batch.victim()
            batch.preempt(victim)
            if victim is request:
                return False
        return True

    def _admit(self, batch: Batch, budget: int) -> None:
        waiting, running = batch.waiting, batch.running
        keep_free = int(self.watermark_ratio * batch.cache.capacity)
        while waiting and budget > 0 and len(running) < self.max_seqs:
            # an empty rank admits whatever fits
            tokens = batch.admit(waiting[0], budget, True, keep_free if running else 0)
            if not tokens:
                return
            budget -= tokens
