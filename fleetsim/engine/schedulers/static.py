"""Static batching: a batch runs until its last answer ends."""

from __future__ import annotations

from typing import Annotated, ClassVar

from mypy_extensions import mypyc_attr
from pydantic import Field

from fleetsim.engine.batch import Batch
from fleetsim.plugins import PolicyConfig


class StaticConfig(PolicyConfig):
    """Parameters of static batching."""

    max_seqs: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'count'})]" = 32
    """Requests of one batch at most."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Static:
    """Static batching: up to `max_seqs` waiting requests form a batch, which runs until all its answers have ended.

    Rule: when nothing runs, requests are taken from the head of the queue while their prompts fit; all their prompts are computed
    in one step, and nobody joins before the last answer has ended. A batch does not wait to be full. Blocks lacking: the request
    admitted last is preempted and begins the next batch.

    Kinder than the engines that worked this way: an answer leaves when it ends, an ended one costs no more computing or memory, and
    prompts are not padded to the longest.

    References
    ----------
    G.-I. Yu et al., "Orca: A Distributed Serving System for Transformer-Based Generative Models", OSDI 2022, section 2
    (request-level scheduling, as in FasterTransformer behind Triton).
    """

    Config: ClassVar = StaticConfig

    def __init__(self, config: StaticConfig) -> None:
        self.max_seqs = config.max_seqs
        self.refills = False

    def schedule(self, batch: Batch) -> None:
        """Plan the next step of `batch`."""
        while batch.spare_blocks() < 0:
            batch.preempt(batch.victim())
        batch.extend_all()
        if batch.running:
            return
        waiting, running = batch.waiting, batch.running
        while waiting and len(running) < self.max_seqs:
            request = waiting[0]
            if not batch.admit(request, request.prompt_tokens + request.generated, True):
                return

    def admits(self, batch: Batch) -> bool:
        """A new request can run next only if nothing runs."""
        return not batch.waiting and not batch.running
