"""Orca's scheduler: whole prompts and decodes in one step, memory reserved for the longest answer."""

from __future__ import annotations

from typing import Annotated, ClassVar

from mypy_extensions import mypyc_attr
from pydantic import Field

from fleetsim.engine.batch import Batch
from fleetsim.plugins import PolicyConfig
from fleetsim.workload.request import Request


class OrcaConfig(PolicyConfig):
    """Parameters of Orca's scheduler."""

    max_seqs: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'count'})]" = 256
    """Requests running at a time at most (max_bs)."""
    reserve_tokens: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'tokens'})]" = 2048
    """Slots reserved for each request, prompt and answer together: the longest that model or server allows (max_tokens)."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Orca:
    """Iteration-level scheduling: first come, first served, each request with KV slots reserved for the longest answer.

    Rule: before every step, waiting requests are admitted in order while there is a seat and the reservations of all that run stay
    within the KV blocks; a step computes the whole prompts of those just admitted and one token of everyone else. A request
    reserves `reserve_tokens`, or its prompt where that is longer. Answers that outgrow that can lack blocks: the request admitted
    last is preempted then. An empty rank admits any request.

    This is the variant called Orca (Max) in the comparison of vLLM's authors. Their other two, Orca (Pow2) and Orca (Oracle),
    reserve by the true length of the answer, which no scheduler can know, so they are not offered. Reserved blocks are not
    allocated: what a rank reports as used is what holds keys and values.

    References
    ----------
    G.-I. Yu et al., "Orca: A Distributed Serving System for Transformer-Based Generative Models", OSDI 2022, algorithm 1;
    W. Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention", SOSP 2023, section 6.1,
    doi:10.1145/3600006.3613165.
    """

    Config: ClassVar = OrcaConfig

    def __init__(self, config: OrcaConfig) -> None:
        self.max_seqs = config.max_seqs
        self.reserve_tokens = config.reserve_tokens

    def schedule(self, batch: Batch) -> None:
        """Plan the next step of `batch`."""
        while batch.spare_blocks() < 0:
            batch.preempt(batch.victim())
        batch.extend_all()
        waiting, running = batch.waiting, batch.running
        if not waiting or batch.preempted or len(running) >= self.max_seqs:
            return
        block_tokens = batch.block_tokens
        left = batch.cache.capacity
        for request in running:
            left -= self._reserved_blocks(request, block_tokens)
        while waiting and len(running) < self.max_seqs:
            request = waiting[0]
            left -= self._reserved_blocks(request, block_tokens)
            if running and left < 0:
                return
            if not batch.admit(request, request.prompt_tokens + request.generated, True):
                return

    def admits(self, batch: Batch) -> bool:
        """A new request can run next only if nobody waits before it and there is a seat."""
        return not batch.waiting and len(batch.running) < self.max_seqs

    def _reserved_blocks(self, request: Request, block_tokens: int) -> int:
        tokens = request.prompt_tokens if request.prompt_tokens > self.reserve_tokens else self.reserve_tokens
        return -(-tokens // block_tokens)
