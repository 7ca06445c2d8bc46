"""FlowPrefill's scheduler: prompts by slack, stopped between two operators when a more urgent one comes."""

from __future__ import annotations

from math import inf
from typing import Annotated, ClassVar, Literal

from mypy_extensions import mypyc_attr
from pydantic import Field

from fleetsim.engine import prefill_time
from fleetsim.engine.api import OPERATORS, StepTimeModel
from fleetsim.engine.batch import Batch, Suspended
from fleetsim.engine.prefill_time import PrefillTime
from fleetsim.plugins import PolicyConfig
from fleetsim.workload.request import Request


class FlowPrefillConfig(PolicyConfig):
    """Parameters of FlowPrefill's scheduler."""

    max_batched_tokens: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'tokens'})]" = 8192
    """Prompt tokens computed in one step at most; a longer prompt is computed alone (with granularity chunk: split)."""
    max_seqs: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'count'})]" = 256
    """Requests running at a time at most."""
    granularity: Literal["operator", "layer", "chunk"] = "operator"
    """Where a prompt can be stopped: behind an operator or a layer that is under way, or at the end of a chunk of
    `max_batched_tokens`, as in chunked prefill."""
    order: Literal["slack", "deadline", "arrival"] = "slack"
    """Who is first: by slack with those in time before those too late (S-EDF), by deadline (EDF), by arrival (FCFS)."""


Rank = tuple[float, float, float, int]
"""Whether too late, slack or deadline, arrival, id: the smallest is first."""


@mypyc_attr(allow_interpreted_subclasses=True)
class FlowPrefill:
    """FlowPrefill: whole prompts by slack, batched while the first keeps its limit, stopped at operator boundaries.

    Rule: slack = deadline - now - predicted time of what is left of the prompt. Requests that can keep their limit come first, the
    smallest slack before all (S-EDF); those that cannot follow, by deadline. The first in order is computed, with others in order
    beside it while all of them are predicted to end within its limit and stay within the token budget. Decisions are taken when a
    request arrives or a step ends only. When a request that waits comes before all those under way, the step under way
    stops behind the operator that it is in, and goes on there when it is first again; it is never merged with others. The predicted
    time is a quadratic in the tokens fitted to the replica's own step times; cached beginnings are not foreseen. Prompts
    come before decodes, which pause meanwhile (the paper's replicas compute prompts only: `role: prefill`).

    Charged: the rest of the operator under way, one start of the kernels per resumption, and room in the KV cache for the
    activations of each suspended step; a step whose activations find no room is not stopped. Deadlines are those of the
    scenario's `slo`: requests without any are served in order of arrival. Blocks lacking for decodes: the request admitted last is
    preempted and computed again. With `granularity: chunk` and another `order` it is the chunked baseline of the paper.

    References
    ----------
    C. Hsieh et al., "FlowPrefill: Decoupling Preemption from Prefill Scheduling Granularity to Mitigate Head-of-Line Blocking in
    LLM Serving", arXiv:2602.16603.
    """

    Config: ClassVar = FlowPrefillConfig
    own_order: ClassVar[bool] = True

    def __init__(self, config: FlowPrefillConfig) -> None:
        self.max_batched_tokens = config.max_batched_tokens
        self.max_seqs = config.max_seqs
        self.whole = config.granularity != "chunk"
        self.order = config.order
        self.boundaries_per_layer = 1 if config.granularity == "layer" else len(OPERATORS)
        self.model: StepTimeModel | None = None
        self.fitted: PrefillTime | None = None

    def prepare(self, model: StepTimeModel) -> None:
        """Take the step-time model that prefill times are predicted by; it is fitted when a request first has a deadline."""
        self.model = model

    def interrupts(self, batch: Batch, request: Request) -> bool:  # noqa: ARG002
        """Whether somebody who waits comes before all that are being computed and could be admitted."""
        if not self.whole or self.order == "arrival":
            return False
        current = self._rank_of_step(batch, batch.chunks, batch.share_left)
        ranks = [self._rank_of_step(batch, plan.chunks, plan.share_left) for plan in batch.suspended]
        if len(batch.running) < self.max_seqs:
            room_tokens = (batch.spare_blocks() - batch.blocks_to_suspend()) * batch.block_tokens
            ranks += [self._rank(batch, r) for r in batch.waiting if r.prompt_tokens + r.generated <= room_tokens]
        return bool(ranks) and min(ranks) < current

    def schedule(self, batch: Batch) -> None:
        """Plan the next step of `batch`."""
        batch.held = True
        self._plan_prompts(batch)
        while not batch.chunks and batch.prefilling and not batch.decoding and len(batch.running) > 1:
            batch.preempt(batch.prefilling[-1])  # prompts under way take each other's room
            self._plan_prompts(batch)
        if batch.chunks:
            return
        batch.held = False
        while batch.spare_blocks() < 0:
            batch.preempt(batch.newest())
        if batch.suspended and not batch.decoding:
            # what was admitted still waits for its keys and values: go on with the most urgent step until they come
            batch.resume(min(batch.suspended, key=lambda plan: self._rank_of_step(batch, plan.chunks, plan.share_left)))

    def admits(self, batch: Batch) -> bool:
        """A new request can run next if there is a seat: whatever waits, it may be smaller."""
        return len(batch.running) < self.max_seqs

    # --- who is first -------------------------------------------------------------------------------------------------

    def _seconds(self, tokens: int, cached: int) -> float:
        """Predicted time of a prompt's next tokens [s]."""
        fitted = self.fitted
        if fitted is None:
            assert self.model is not None
            fitted = self.fitted = prefill_time.fit(self.model, 0 if self.whole else self.max_batched_tokens)
        return fitted.seconds(tokens, cached)

    def _left_s(self, request: Request, batch: Batch) -> float:
        """Predicted time of what is left of a request's prompt [s]."""
        if request in batch.running:
            return self._seconds(request.target - request.computed, request.computed)
        return self._seconds(request.prompt_tokens + request.generated, 0)

    def _rank_by(self, request: Request, now_s: float, left_s: float) -> Rank:
        """Place of a request whose prompt takes `left_s` from now on."""
        if self.order == "arrival":
            return 0.0, 0.0, request.queued_s, request.id
        deadline_s = request.deadline_s
        if self.order == "deadline" or deadline_s == inf:
            return 0.0, deadline_s, request.queued_s, request.id
        slack_s = deadline_s - now_s - left_s
        if slack_s < 0.0:
            return 1.0, deadline_s, request.queued_s, request.id
        return 0.0, slack_s, request.queued_s, request.id

    def _rank(self, batch: Batch, request: Request) -> Rank:
        left_s = 0.0
        if self.order == "slack" and request.deadline_s < inf:
            left_s = self._left_s(request, batch)
        return self._rank_by(request, batch.now_s, left_s)

    def _rank_of_step(self, batch: Batch, chunks: list[tuple[Request, int]], share_left: float) -> Rank:
        """Place of the most urgent request of a step that was begun: they all end together."""
        left_s = 0.0
        if self.order == "slack" and any([request.deadline_s < inf for request, _ in chunks]):
            left_s = share_left * self._together_s([(tokens, request.computed) for request, tokens in chunks])
        return min([self._rank_by(request, batch.now_s, left_s) for request, _ in chunks])

    def _together_s(self, parts: list[tuple[int, int]]) -> float:
        """Predicted time of a step that computes tokens after cached ones, of several prompts [s]."""
        once_s = self._seconds(0, 0)
        return once_s + sum([self._seconds(tokens, cached) - once_s for tokens, cached in parts])

    # --- what is computed ---------------------------------------------------------------------------------------------

    def _plan_prompts(self, batch: Batch) -> None:
        """Plan the most urgent step of prompts that finds room, if any does."""
        candidates: list[tuple[Rank, Request | Suspended]] = [
            (self._rank_of_step(batch, plan.chunks, plan.share_left), plan) for plan in batch.suspended
        ]
        candidates += [(self._rank(batch, request), request) for request in batch.prefilling]
        candidates += [(self._rank(batch, request), request) for request in batch.waiting]
        candidates.sort(key=_place)
        parts: list[tuple[int, int]] = []
        budget = self.max_batched_tokens
        limit_s = inf
        for _, candidate in candidates:
            if isinstance(candidate, Suspended):
                if not parts:
                    batch.resume(candidate)
                    return
                continue
            if budget <= 0:
                return
            request = candidate
            running = request in batch.running
            done = request.computed if running else 0
            left = request.target - done if running else request.prompt_tokens + request.generated
            if self.whole and parts:
                if left > budget:
                    continue
                if limit_s < inf and self._together_s([*parts, (left, done)]) > limit_s:
                    continue
            tokens = self._compute(batch, request, left if self.whole else min(left, budget), running)
            if not tokens:
                continue
            if not parts and request.deadline_s < inf:
                limit_s = request.deadline_s - batch.now_s
            parts.append((tokens, request.computed))
            budget -= tokens

    def _compute(self, batch: Batch, request: Request, tokens: int, running: bool) -> int:
        """Plan the next `tokens` of a prompt; 0 if there is no room for them."""
        if running:
            return tokens if batch.extend(request, tokens) else 0
        if len(batch.running) >= self.max_seqs:
            return 0
        waiting = batch.waiting
        if waiting[0] is not request:
            waiting.remove(request)
            waiting.appendleft(request)
        return batch.admit(request, tokens, True)


def _place(candidate: tuple[Rank, Request | Suspended]) -> Rank:
    return candidate[0]
