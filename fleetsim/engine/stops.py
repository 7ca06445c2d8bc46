"""Where a step of prompt chunks is stopped for a request that comes: behind which of its operators, and when that is."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

from fleetsim.engine.api import OPERATORS, Operators, Scheduler, StepTimeModel, even_operators
from fleetsim.engine.batch import Batch
from fleetsim.workload.request import Request

_TINY = 1e-9
"""Share of a step below which nothing is left of it."""


class Stops:
    """Where the step under way of a replica is stopped, and what that did so far.

    Steps are made of `OPERATORS` in every layer, behind each of which the scheduler may have them stopped. Times are counted from
    the beginning of the step, or from its resumption if it was stopped before.
    """

    def __init__(self) -> None:
        self.at = -1
        """Operators behind which the step under way will be stopped; -1 if it will not."""
        self.operators: Operators | None = None
        """What the step under way is made of, once somebody has asked."""
        self.count = 0
        """Steps that were stopped."""
        self.blocking_s = 0.0
        """Time from the requests that they were stopped for to the operators' ends, summed."""
        self.blocking_max_s = 0.0
        self.wanted: Callable[[Batch, Request], bool] = _never
        """Whether the scheduler wants the step under way stopped for a request."""
        self.layers = 1
        """Layers of a step, where the model does not say what it is made of."""
        self._by_layer = False

    def use(self, scheduler: Scheduler) -> None:
        """Ask this scheduler from now on."""
        stopping: Any = scheduler
        self.wanted = stopping.interrupts
        self._by_layer = getattr(scheduler, "boundaries_per_layer", len(OPERATORS)) == 1

    def whole_s(self, batch: Batch, first_s: float) -> float:
        """Duration that the step under way has, or would have had if it had never been stopped [s]."""
        return first_s if batch.resumed is None else batch.resumed.time_s

    def left_s(self, batch: Batch, first_s: float, elapsed_s: float) -> float:
        """What is left of that, so long after the step began or was resumed [s]."""
        plan = batch.resumed
        if plan is None:
            return first_s - elapsed_s
        return plan.left_s - max(elapsed_s - plan.operators.resume_s, 0.0)

    def until_s(self, batch: Batch, first_s: float, position: int) -> float:
        """Time from the start of the step under way to the end of an operator [s]."""
        plan = batch.resumed
        assert self.operators is not None
        if plan is None:
            return _end_s(self.operators, first_s, position)
        rest_s = plan.time_s - _end_s(self.operators, plan.time_s, position)
        return self.operators.resume_s + max(plan.left_s - rest_s, 0.0)

    def choose(self, batch: Batch, model: StepTimeModel, first_s: float, elapsed_s: float) -> float:
        """Stop the step under way behind the operator under way: when that ends [s].

        Infinite, and nothing is stopped, if that is its last one or its activations would find no room.
        """
        plan, whole_s = batch.resumed, self.whole_s(batch, first_s)
        operators = self.operators
        if operators is None:
            operators = self.operators = self._made_of(batch, model) if plan is None else plan.operators
        position = 0 if plan is None else plan.position
        if plan is None or elapsed_s > operators.resume_s:
            done_s = whole_s - self.left_s(batch, first_s, elapsed_s)
            position = max(position, _operators_behind(operators, whole_s, done_s, self._by_layer))
        if _end_s(operators, whole_s, position) >= whole_s * (1.0 - _TINY):
            return inf
        if batch.blocks_to_suspend() > batch.spare_blocks():
            return inf
        ends_s = self.until_s(batch, first_s, position)
        self.at = position
        self.count += 1
        self.blocking_s += ends_s - elapsed_s
        self.blocking_max_s = max(self.blocking_max_s, ends_s - elapsed_s)
        return ends_s

    def _made_of(self, batch: Batch, model: StepTimeModel) -> Operators:
        """What the step under way is made of."""
        ask: Callable[..., Operators] | None = getattr(model, "prefill_operators", None)
        if ask is None:
            return even_operators(self.layers)
        tokens = batch.prefill_tokens + batch.extra_tokens
        return ask(tokens, batch.sampled, batch.prefill_pairs, batch.prefill_ctx_tokens, len(batch.chunks))


def _end_s(operators: Operators, whole_s: float, position: int) -> float:
    """Time from the start of a step of `whole_s` to the end of its first `position` operators [s]."""
    if position > operators.layer_count * len(OPERATORS):
        return whole_s
    layers, rest = divmod(position, len(OPERATORS))
    share = _share_of(operators, len(OPERATORS)) * layers + _share_of(operators, rest)
    return whole_s * (operators.before + share / operators.layer_count)


def _share_of(operators: Operators, count: int) -> float:
    """Share of a step that its first `count` operators of every layer take."""
    share = 0.0
    for place, one in enumerate(operators.layers):
        if place < count:
            share += one
    return share


def _operators_behind(operators: Operators, whole_s: float, done_s: float, by_layer: bool) -> int:
    """Fewest operators, or operators of whole layers, that take a step to `done_s` at least; one more than all if none do."""
    size = len(OPERATORS)
    per_layer = whole_s * _share_of(operators, size) / operators.layer_count
    last = operators.layer_count * size
    layers = int(max(done_s - whole_s * operators.before, 0.0) / per_layer) if per_layer else operators.layer_count
    position = min(max(layers - 1, 0) * size, last)  # one before, in case of rounding
    stride = size if by_layer else 1
    while _end_s(operators, whole_s, position) < done_s:
        position += stride
        if position > last:
            return last + 1
    return position


def _never(batch: Batch, request: Request) -> bool:  # noqa: ARG001
    return False
