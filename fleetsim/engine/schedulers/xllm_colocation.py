"""xLLM's co-location: offline requests fill decode batches as far as the online ones' time per token allows."""

from __future__ import annotations

from math import floor, inf
from typing import Annotated, ClassVar

from mypy_extensions import mypyc_attr
from pydantic import Field

from fleetsim.engine.api import StepTimeModel
from fleetsim.engine.batch import NEVER, Batch
from fleetsim.plugins import PolicyConfig
from fleetsim.workload.request import Request


class XllmColocationConfig(PolicyConfig):
    """Parameters of xLLM's co-location of online and offline requests."""

    offline: tuple[str, ...] = ("offline",)
    """Classes of requests that may wait and be preempted; all others are online."""
    tpot_slo_s: "Annotated[float, Field(gt=0, json_schema_extra={'unit': 's'})]" = 0.05
    """Objective of the online requests for the time per output token: no offline request makes a step longer."""
    max_batched_tokens: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'tokens'})]" = 2048
    """Tokens computed in one step at most."""
    max_seqs: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'count'})]" = 256
    """Requests running at a time at most."""
    roofline: "Annotated[bool, Field(strict=True)]" = True
    """Whether steps are predicted. Off: online requests come first and preempt, and offline ones take whatever is left of seats,
    blocks and tokens (the baseline `online priority`)."""
    interrupt: "Annotated[bool, Field(strict=True)]" = True
    """Whether an online request stops a step of offline prompts behind the operator under way."""


@mypyc_attr(allow_interpreted_subclasses=True)
class XllmColocation:
    """xLLM's co-location: online requests first; offline ones join while the predicted step keeps the online time per token.

    Rule: every decoding request gets one token. Online prompts get chunks, then waiting online requests are admitted, first come,
    first served, within the token budget. What they lack in blocks or seats is taken from offline requests, the one admitted last
    before all. Offline prompts are computed in steps without online prompts only. Beside online requests, a chunk of them is as
    long as keeps the predicted step within `tpot_slo_s`, and a new one is admitted only if the decode step with all that run and
    this one is predicted to keep it too; where contexts have grown so long that decoding takes longer, offline requests are
    preempted, the last admitted first. Without online requests, offline prompts are computed in whole steps, for which offline
    decodes pause. Such a step is stopped behind the operator under way when an online request comes; it goes on where it was
    stopped when no online request runs, or when the rest of it and a decode step keep the objective.

    Steps are predicted by the replica's own step-time model (the roofline): on a replica whose model is measured, it is what the
    engine would have profiled. The time that online prompts take from online answers is not counted against the objective.

    Charged: preempted requests are computed again, or swapped, as the engine does it; stopped steps as with `flow-prefill`.
    Deciding costs nothing.

    References
    ----------
    "xLLM Technical Report", arXiv:2510.14686, on the co-location of online and offline requests.
    """

    Config: ClassVar = XllmColocationConfig
    own_order: ClassVar[bool] = True

    def __init__(self, config: XllmColocationConfig) -> None:
        self.offline = frozenset(config.offline)
        self.target_s = config.tpot_slo_s
        self.max_batched_tokens = config.max_batched_tokens
        self.max_seqs = config.max_seqs
        self.roofline = config.roofline
        self.interrupt = config.interrupt
        self.model: StepTimeModel | None = None

    def prepare(self, model: StepTimeModel) -> None:
        """Take the step-time model by which steps are predicted."""
        self.model = model

    def interrupts(self, batch: Batch, request: Request) -> bool:
        """Whether an online request has come while nothing but offline prompts is computed."""
        if not self.interrupt or self._is_offline(request):
            return False
        return all([self._is_offline(planned) for planned, _ in batch.chunks])

    def schedule(self, batch: Batch) -> None:
        """Plan the next step of `batch`."""
        while batch.spare_blocks() < 0:
            batch.preempt(self._last_offline(batch, batch.newest()))
        if self.roofline:
            self._keep_objective(batch)
        budget = self._continue_online(batch, self.max_batched_tokens - batch.decoding)
        self._admit_online(batch, budget)
        if not batch.chunks and not batch.preempted:
            self._plan_offline(batch)
        if batch.suspended and not batch.chunks and not batch.decoding:
            batch.resume(batch.suspended[0])
        batch.ask_at = self._ask_at(batch)

    def admits(self, batch: Batch) -> bool:  # noqa: ARG002
        """A new request may run next whatever waits: an online one takes the place of offline ones."""
        return True

    # --- who is who ---------------------------------------------------------------------------------------------------

    def _is_offline(self, request: Request) -> bool:
        return request.klass in self.offline

    def _last_offline(self, batch: Batch, otherwise: Request) -> Request:
        """The offline request that was admitted last, if one runs."""
        for request in reversed(batch.running):
            if self._is_offline(request):
                return request
        return otherwise

    def _online_runs(self, batch: Batch) -> bool:
        return any([not self._is_offline(request) for request in batch.running])

    # --- predictions --------------------------------------------------------------------------------------------------

    def _step_s(self, requests: int, ctx_tokens: int) -> float:
        """Predicted decode step of so many requests that hold so many tokens [s]."""
        if not requests:
            return 0.0
        assert self.model is not None
        ctx = ctx_tokens + requests
        line = self.model.decode(requests, ctx, requests)
        return line.time_s + line.time_per_ctx_s * ctx

    def _chunk_s(self, batch: Batch, computed: int, tokens: int, last: bool) -> float:
        """Predicted step of all decodes, the prompt chunks planned, and one more of `tokens` behind `computed` [s]."""
        assert self.model is not None
        decoding = batch.decoding
        total = decoding + batch.prefill_tokens + tokens
        time_s, _ = self.model.mixed(
            total,
            decoding + batch.sampled + (1 if last else 0),
            batch.prefill_pairs + tokens * computed + tokens * (tokens + 1) // 2,
            batch.prefill_ctx_tokens + computed + tokens,
            len(batch.chunks) + 1,
            decoding,
            batch.ctx_tokens + decoding if decoding else 0,
            total,
        )
        return time_s

    def _longest_chunk(self, batch: Batch, computed: int, left: int, budget: int) -> int:
        """Most of a prompt's next `left` tokens whose step is predicted to keep the objective, by bisection."""
        most = min(left, budget)
        if most <= 0 or self._chunk_s(batch, computed, most, most == left) <= self.target_s:
            return max(most, 0)
        low, high = 0, most  # low keeps it, high does not
        while high - low > 1:
            middle = (low + high) // 2
            if self._chunk_s(batch, computed, middle, False) <= self.target_s:
                low = middle
            else:
                high = middle
        return low

    def _joins(self, batch: Batch, request: Request) -> bool:
        """Whether a decode step of all that run and one more request is predicted to keep the objective."""
        requests, tokens = batch.decoding, batch.ctx_tokens
        for other in batch.prefilling:
            requests += 1
            tokens += other.target
        for other in batch.loading:
            requests += 1
            tokens += other.target
        for plan in batch.suspended:
            for other, _ in plan.chunks:
                requests += 1
                tokens += other.target
        return self._step_s(requests + 1, tokens + request.prompt_tokens + request.generated) <= self.target_s

    def _keep_objective(self, batch: Batch) -> None:
        """Preempt offline requests that decode until the decode step is predicted to keep the objective."""
        if self._step_s(batch.decoding, batch.ctx_tokens) <= self.target_s:
            return
        decoding = [request for request in batch.running if request.finish_step >= 0]
        if all([self._is_offline(request) for request in decoding]):
            return
        for request in reversed(decoding):
            if self._is_offline(request):
                batch.preempt(request)
                if self._step_s(batch.decoding, batch.ctx_tokens) <= self.target_s:
                    return

    def _ask_at(self, batch: Batch) -> int:
        """Step before which growing contexts do not make the decode step miss the objective, if that would matter."""
        step = batch.step
        if batch.chunks:
            return step  # somebody may decode then
        if not self.roofline or not batch.growing:
            return NEVER
        offline = online = False
        for request in batch.running:
            if request.finish_step >= 0:
                if self._is_offline(request):
                    offline = True
                else:
                    online = True
        if not (offline and online):
            return NEVER
        assert self.model is not None
        ctx = batch.ctx_tokens + batch.decoding
        line = self.model.decode(batch.decoding, ctx, batch.decoding)
        last = line.ctx_end - 1.0
        if line.time_per_ctx_s > 0.0:
            last = min(last, (self.target_s - line.time_s) / line.time_per_ctx_s)
        if last == inf:
            return NEVER
        # one step before the prediction reaches the objective, so that rounding does not matter
        return step + max((floor(last) - ctx) // batch.growing, 1)

    # --- online requests ----------------------------------------------------------------------------------------------

    def _continue_online(self, batch: Batch, budget: int) -> int:
        """Give chunks to online prompts under way; what is left of the budget."""
        for request in list(batch.prefilling):
            if self._is_offline(request) or request not in batch.running:
                continue
            tokens = min(request.target - request.computed, budget)
            if tokens <= 0:
                break
            while not batch.extend(request, tokens):
                victim = self._last_offline(batch, batch.newest())
                batch.preempt(victim)
                if victim is request:
                    break
            else:
                budget -= tokens
        return budget

    def _admit_online(self, batch: Batch, budget: int) -> None:
        """Admit waiting online requests in order; offline ones make room."""
        while budget > 0:
            request = self._next_online(batch)
            if request is None or request in batch.preempted or not self._could_fit(batch, request):
                return
            while len(batch.running) >= self.max_seqs and self._give_up_offline(batch):
                pass
            if len(batch.running) >= self.max_seqs:
                return
            tokens = _admit(batch, request, budget)
            while not tokens and self._give_up_offline(batch):
                tokens = _admit(batch, request, budget)
            if not tokens:
                return
            budget -= tokens

    def _could_fit(self, batch: Batch, request: Request) -> bool:
        """Whether there is room for a request beside the online ones alone."""
        block_tokens = batch.block_tokens
        room = batch.cache.capacity - batch.cache.used
        for other in batch.running:
            if self._is_offline(other):
                held = other.blocks
                if other.finish_step >= 0:
                    held = -(-(other.prompt_tokens + batch.answered(other) - 1) // block_tokens)
                room += held
        for plan in batch.suspended:
            room += plan.blocks
        return batch.wanted_blocks(request) <= room

    def _give_up_offline(self, batch: Batch) -> bool:
        """Preempt the offline request that was admitted last; False if none runs."""
        for request in reversed(batch.running):
            if self._is_offline(request):
                batch.preempt(request)
                return True
        return False

    # --- offline requests ---------------------------------------------------------------------------------------------

    def _plan_offline(self, batch: Batch) -> None:
        """Plan offline prompts for a step without online ones."""
        online = self._online_runs(batch)
        if batch.suspended:
            plan = batch.suspended[0]
            rest_s = plan.operators.resume_s + plan.left_s + self._step_s(batch.decoding, batch.ctx_tokens)
            if not online or not self.roofline or rest_s <= self.target_s:
                batch.resume(plan)
            return
        if online:
            self._plan_beside(batch, self.roofline)
            return
        self._plan_whole(batch)
        if not batch.chunks:
            self._plan_beside(batch, False)

    def _plan_whole(self, batch: Batch) -> None:
        """Plan a step of offline prompts alone: nobody minds how long it is, and only such a step can be stopped.

        Requests whose prompts were computed elsewhere lack a token or two: no decodes pause for those.
        """
        batch.held = True
        budget = self.max_batched_tokens
        for request in list(batch.prefilling):
            tokens = min(request.target - request.computed, budget)
            if request.target - request.computed > 1 and tokens > 0 and batch.extend(request, tokens):
                budget -= tokens
        if not batch.prefilling or batch.chunks:
            self._admit_offline(batch, budget, False, True)
        if not batch.chunks:
            batch.held = False

    def _plan_beside(self, batch: Batch, predicts: bool) -> None:
        """Plan offline prompts for a step that decodes too, as long as it is predicted to keep the objective if that matters."""
        budget = self.max_batched_tokens - batch.decoding
        for request in list(batch.prefilling):
            left = request.target - request.computed
            tokens = self._longest_chunk(batch, request.computed, left, budget) if predicts else min(left, budget)
            if tokens <= 0 or not batch.extend(request, tokens):
                return
            budget -= tokens
        self._admit_offline(batch, budget, predicts, False)

    def _admit_offline(self, batch: Batch, budget: int, predicts: bool, whole: bool) -> None:
        """Admit offline requests in order while seats, tokens, blocks and, where it is predicted, time last.

        With `whole`, only those whose prompts are to be computed here.
        """
        while budget > 0 and len(batch.running) < self.max_seqs:
            request = self._next_offline(batch, whole)
            if request is None:
                return
            limit = budget
            if predicts:
                if not self._joins(batch, request):
                    return
                limit = self._longest_chunk(batch, 0, request.prompt_tokens + request.generated, budget)
                if limit <= 0:
                    return
            tokens = _admit(batch, request, limit)
            if not tokens:
                return
            budget -= tokens

    def _next_online(self, batch: Batch) -> Request | None:
        """The first online request in the queue."""
        offline = self.offline
        for request in batch.waiting:
            if request.klass not in offline:
                return request
        return None

    def _next_offline(self, batch: Batch, whole: bool) -> Request | None:
        """The first offline request in the queue; with `whole`, of those whose prompts are to be computed here."""
        offline = self.offline
        for request in batch.waiting:
            if request.klass in offline and not (whole and request.carried_tokens):
                return request
        return None


def _admit(batch: Batch, request: Request, tokens: int) -> int:
    """Let a request from anywhere in the queue run; 0 if blocks are lacking, and then it waits first."""
    waiting = batch.waiting
    if waiting[0] is not request:
        waiting.remove(request)
        waiting.appendleft(request)
    return batch.admit(request, tokens, True)
