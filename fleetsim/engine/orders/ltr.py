"""Learning to rank."""

from __future__ import annotations

from collections import deque
from math import inf
from typing import Annotated, ClassVar

from pydantic import Field

from fleetsim.engine.orders.order import FAR, Key, Order, Outlook, predicted
from fleetsim.plugins import PolicyConfig
from fleetsim.workload.request import Request

Count = Annotated[int, Field(ge=1, strict=True, json_schema_extra={"unit": "count"})]


class LtrConfig(PolicyConfig):
    """Parameters of learning to rank; the ranks come from the gateway's predictor (such as `rank`)."""

    starvation_steps: Annotated[int, Field(ge=0, strict=True, json_schema_extra={"unit": "count"})] = 200
    """Steps without running after which a request goes before all that have not starved; 0 never."""
    boost_steps: Count = 10
    """Steps for which it then runs with that right."""


class Ltr(Order):
    """Learning to rank: those expected to be shorter first, running ones preempted, with a guard against starvation.

    Rule: at every step all requests, waiting and running, are sorted by (starved first, predicted length) and the first that fit
    run; others give way. A request that has not run for 200 steps goes first, until it has run for 10. Only the order of the
    predictions matters. Steps are those in which the rank's decoding requests get tokens. Charged: preemption, as
    `engine.kv.preemption` says (the authors' engine swaps), and the prediction where the gateway's predictor charges for it.

    References
    ----------
    Y. Fu et al., "Efficient LLM Scheduling by Learning to Rank", NeurIPS 2024, arXiv:2408.15792; its defaults
    (starvation 200, period 10) are those of the authors' code.
    """

    Config: ClassVar = LtrConfig
    preemptive: ClassVar[bool] = True
    eager: ClassVar[bool] = True
    needs_predictions: ClassVar[bool] = True

    def __init__(self, config: LtrConfig, outlook: Outlook) -> None:
        super().__init__(config, outlook)
        self._due: deque[tuple[int, int, Request]] = deque()
        """(step at which it starves, step at which it joined, request), in order."""
        self._joined: dict[Request, int] = {}
        """Step at which each waiting request joined."""
        self._boosted: dict[Request, int] = {}
        """Starved requests, and the step at which their right ends (while they wait: never)."""

    def key(self, request: Request) -> Key:
        """Starved ones first, then by rank."""
        return -1 if request in self._boosted else 0, predicted(request)

    def append(self, request: Request) -> None:
        """Let a request join; its wait is counted from here."""
        step = self.batch.step
        self._standings.pop(request, None)
        self._joined[request] = step
        if request in self._boosted:
            self._boosted[request] = FAR
        elif self.config.starvation_steps:
            self._due.append((step + self.config.starvation_steps, step, request))
        super().append(request)

    def popleft(self) -> Request:
        """Take out the first."""
        request = super().popleft()
        del self._joined[request]
        if request in self._boosted:
            self._boosted[request] = self.batch.step + self.config.boost_steps
        self._stands(request)
        return request

    def remove(self, request: Request) -> None:
        """Take out a request that will not run here."""
        super().remove(request)
        del self._joined[request]
        self._boosted.pop(request, None)

    def left(self, request: Request) -> None:
        """Forget a request."""
        self._boosted.pop(request, None)
        self._standings.pop(request, None)

    def refresh(self) -> None:
        """Note who has starved, and whose right has ended."""
        step, due = self.batch.step, self._due
        for request in [request for request, end in self._boosted.items() if end <= step]:
            del self._boosted[request]
            if request in self._standings:
                self._stands(request)
        while due and due[0][0] <= step:
            _, joined, request = due.popleft()
            if self._joined.get(request) == joined:
                self._boosted[request] = FAR
                self._queue.push(self.key(request), request)

    def until_change(self) -> tuple[int, float]:
        """Until somebody starves or has had its right."""
        steps = self._due[0][0] if self._due else FAR
        for end in self._boosted.values():
            steps = min(steps, end)
        return max(steps - self.batch.step, 1), inf
