"""LLMs are loaded when a request for them is next."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.placement.api import Action, Decision, Load, Place, RequestView, Send
from fleetsim.plugins import PolicyConfig


class OnDemandConfig(PolicyConfig):
    """Parameters of swapping on demand."""

    spread: Annotated[int, Field(ge=0, strict=True)] = 32
    """Requests more than the least loaded replica has by which one that holds the LLM already may be ahead [count]."""


class OnDemand:
    """Swap on demand: each replica serves its queue in order, and loads what the next request needs once it is empty.

    Rule: a request joins the queue of the replica with the fewest requests, waiting or sent, among those that will hold its LLM
    when their queue is done; of the replica with the fewest of all, if none will or these have more than `spread` more. Each queue
    is first come, first served: when the next request needs another LLM, those that run end first, then it is loaded.

    The queue of a replica that is not there any more is divided among the others.

    Charged: swaps, as the pool's `swap` says; deciding costs nothing.
    """

    Config: ClassVar = OnDemandConfig

    def __init__(self, config: OnDemandConfig, rng: Generator, places: Sequence[Place]) -> None:  # noqa: ARG002
        self.config = config
        self.places = places
        self._queues: list[deque[RequestView]] = [deque() for _ in places]
        self._queue_of: dict[int, int] = {}

    def arrived(self, request: RequestView, now_s: float) -> None:  # noqa: ARG002
        """Let a request join a queue."""
        loads = [len(queue) + len(place.sent) for queue, place in zip(self._queues, self.places, strict=True)]
        able = [number for number, place in enumerate(self.places) if request.model in place.engines]
        able = [number for number in able if self.places[number].here] or able
        best = min(able, key=loads.__getitem__)
        holders = [number for number in able if self._last(number) == request.model]
        if holders:
            holder = min(holders, key=loads.__getitem__)
            if loads[holder] <= loads[best] + self.config.spread:
                best = holder
        self._queues[best].append(request)
        self._queue_of[request.id] = best

    def _last(self, number: int) -> str | None:
        """LLM that a replica will hold when its queue is done."""
        queue = self._queues[number]
        return queue[-1].model if queue else self.places[number].last

    def left(self, request: int) -> None:
        """Forget a request that does not wait any more."""
        number = self._queue_of.pop(request, -1)
        if number >= 0:
            self._queues[number] = deque(waiting for waiting in self._queues[number] if waiting.id != request)

    def _divide(self, number: int, now_s: float) -> None:
        """Let those who wait for a replica that is gone wait for others, where any can hold their LLM."""
        queue, self._queues[number] = self._queues[number], deque()
        known = {name for place in self.places if place.here for name in place.engines}
        for request in queue:
            if request.model in known:
                self.arrived(request, now_s)
            else:
                self._queues[number].append(request)

    def decide(self, now_s: float) -> Decision:
        """Send who is next, as long as the LLM is right; load the next one's otherwise."""
        actions: list[Action] = []
        for number, place in enumerate(self.places):
            if not place.here and self._queues[number]:
                self._divide(number, now_s)
        for number, (queue, place) in enumerate(zip(self._queues, self.places, strict=True)):
            while queue and queue[0].model == place.open:
                request = queue.popleft()
                del self._queue_of[request.id]
                actions.append(Send(request.id, number))
            if queue and place.open is not None:
                assert queue[0].model is not None
                actions.append(Load(number, queue[0].model))
        return Decision(actions)
