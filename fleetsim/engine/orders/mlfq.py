"""Multi-level feedback queue."""

from __future__ import annotations

from collections import deque
from math import inf
from typing import Annotated, ClassVar

from pydantic import Field

from fleetsim.engine.orders.order import FAR, Key, Order, Outlook
from fleetsim.plugins import PolicyConfig
from fleetsim.units import Seconds
from fleetsim.workload.request import RUNNING, Request

_EARLY = 1e-9
"""Share of a quantum by which it may end early: two ways to add up the same steps must agree."""


class MlfqConfig(PolicyConfig):
    """Parameters of the multi-level feedback queue."""

    quantum: Seconds = 0.03
    """Time that a request runs on the first level; each next level's is twice as long."""
    levels: Annotated[int, Field(ge=1, le=40, strict=True, json_schema_extra={"unit": "count"})] = 12
    """Levels; on the last one there is no limit."""
    promote_after: Seconds = 10.0
    """Time in the queue after which a request goes to the first level."""


class _Stay:
    """Where a request stands: its level, how long it has run there, and since when it waits or runs."""

    __slots__ = ("level", "needs_s", "prefill_s", "request", "since_s", "used_s")

    def __init__(self, request: Request, level: int, since_s: float) -> None:
        self.request = request
        self.level = level
        self.used_s = 0.0
        self.since_s = since_s
        self.prefill_s = -1.0
        """Time that its prompt takes alone, once somebody has asked."""
        self.needs_s: list[float] = []
        """Time that it must run from `since_s` on to leave its level, the next one, …, as far as somebody has asked."""


class Mlfq(Order):
    """Multi-level feedback queue with skip-join, as FastServe: who has run for long gives way to who has not.

    Rule: a request joins the first level whose quantum covers its prefill time. When it has run for its level's quantum (never
    less than its own prefill time) it falls to the next level, with twice the quantum. The lowest level runs first, first come,
    first served within; where a waiting request finds no seat or blocks, running ones of higher levels give way. Who has waited for
    `promote_after` goes to the first level. Lengths need not be known. Charged: preempted requests are computed again (FastServe
    swaps them out and in ahead of time).

    References
    ----------
    B. Wu et al., "Fast Distributed Inference Serving for Large Language Models", arXiv:2305.05920; defaults as in the baseline of
    Y. Fu et al., "Efficient LLM Scheduling by Learning to Rank", NeurIPS 2024, arXiv:2408.15792.
    """

    Config: ClassVar = MlfqConfig
    preemptive: ClassVar[bool] = True
    eager: ClassVar[bool] = True

    def __init__(self, config: MlfqConfig, outlook: Outlook) -> None:
        super().__init__(config, outlook)
        self._stays: dict[Request, _Stay] = {}
        self._due: deque[tuple[float, float, _Stay]] = deque()
        """When waiting requests are promoted, since when they wait, and their stays, in order."""

    def key(self, request: Request) -> Key:
        """By level, then by the time at which it joined the queue or began to run."""
        stay = self._stays[request]
        return stay.level, stay.since_s

    def gives_way(self, running: Request, waiting: Request) -> bool:
        """Only to lower levels."""
        return self._stays[running].level > self._stays[waiting].level

    def append(self, request: Request) -> None:
        """Let a request join at the level that its prefill time asks for."""
        self._stays[request] = _Stay(request, self._entry(request), request.ready_s)
        self._wait(request)

    def appendleft(self, request: Request) -> None:
        """Take back a request that was preempted: it keeps its level and what it used of it."""
        stay = self._stays[request]
        self._account(stay)
        stay.since_s = self.batch.now_s
        self._standings.pop(request, None)
        self._wait(request)

    def popleft(self) -> Request:
        """Take out the first."""
        request = super().popleft()
        self._stays[request].since_s = self.batch.now_s
        self._stands(request)
        return request

    def remove(self, request: Request) -> None:
        """Take out a request that will not run here."""
        super().remove(request)
        del self._stays[request]

    def left(self, request: Request) -> None:
        """Forget a request."""
        del self._stays[request]
        self._standings.pop(request, None)

    def refresh(self) -> None:
        """Let who has run for its quantum fall, and who has waited too long rise."""
        now_s, stays = self.batch.now_s, self._stays
        for request in self.batch.running:
            stay = stays[request]
            if not stay.needs_s or now_s >= stay.since_s + stay.needs_s[0]:
                self._account(stay)
        while self._due and self._due[0][0] <= now_s:
            _, since_s, stay = self._due.popleft()
            if stay.request in self._queue and stay.since_s == since_s:
                stay.level, stay.used_s = 0, 0.0
                stay.needs_s.clear()
                self._queue.push(self.key(stay.request), stay.request)

    def until_change(self) -> tuple[int, float]:
        """Until a running request falls below the first waiting one, or a waiting one is promoted."""
        at_s = self._due[0][0] if self._due else inf
        stays = self._stays
        level = stays[self[0]].level
        for request in self.batch.running:
            stay = stays[request]
            levels = level - stay.level
            if levels >= 0:
                falls_s = (
                    stay.since_s + stay.needs_s[levels] if levels < len(stay.needs_s) else self._falls_s(stay, level)
                )
                if falls_s < at_s:
                    at_s = falls_s
        return FAR, at_s

    def _wait(self, request: Request) -> None:
        stay = self._stays[request]
        self._due.append((stay.since_s + self.config.promote_after * (1 - _EARLY), stay.since_s, stay))
        super().append(request)

    def _entry(self, request: Request) -> int:
        prefill_s = self.outlook.prefill.seconds(request.prompt_tokens + request.generated)
        level = 0
        while level < self.config.levels - 1 and self.config.quantum * 2**level < prefill_s:
            level += 1
        return level

    def _quantum_s(self, stay: _Stay, level: int) -> float:
        if level >= self.config.levels - 1:
            return inf
        if stay.prefill_s < 0.0:
            stay.prefill_s = self.outlook.prefill.seconds(stay.request.prompt_tokens)
        quantum_s: float = self.config.quantum * 2**level
        return max(quantum_s, stay.prefill_s)

    def _falls_s(self, stay: _Stay, level: int) -> float:
        """When a running request leaves `level` for the next, if it goes on running."""
        needs_s = stay.needs_s
        while len(needs_s) <= level - stay.level:
            before_s = needs_s[-1] if needs_s else -stay.used_s
            needs_s.append(before_s + self._quantum_s(stay, stay.level + len(needs_s)) * (1 - _EARLY))
        return stay.since_s + needs_s[level - stay.level]

    def _account(self, stay: _Stay) -> None:
        """Levels that a running request has passed through since it was admitted."""
        while self.batch.now_s >= (end_s := self._falls_s(stay, stay.level)):
            stay.level += 1
            stay.used_s = 0.0
            stay.since_s = end_s
            stay.needs_s.clear()
            if stay.request in self._standings:
                self._stands(stay.request)
        if stay.request.status != RUNNING:
            stay.used_s += self.batch.now_s - stay.since_s
            stay.needs_s.clear()
