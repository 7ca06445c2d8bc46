"""What every order of an engine's queue has: a queue that sorts itself, and rules for who gives way to whom."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from heapq import heapify, heappop, heappush
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar

from fleetsim.engine import prefill_time
from fleetsim.workload.request import Request

if TYPE_CHECKING:
    import numpy as np

    from fleetsim.engine.api import StepTimeModel
    from fleetsim.engine.batch import Batch

FAR = 1 << 60
"""More steps than any run has."""

Key = Any
"""Whatever can be compared; the smallest is first."""


class Outlook:
    """What the engine of a replica can foresee of its own times.

    Parameters
    ----------
    model : StepTimeModel
        Physics of a step.
    chunk_tokens : int
        Most prompt tokens in one step; 0 where prompts are never split.
    """

    def __init__(self, model: StepTimeModel, chunk_tokens: int = 0) -> None:
        self._model, self._chunk_tokens = model, chunk_tokens

    @cached_property
    def prefill(self) -> prefill_time.PrefillTime:
        """Time that a prompt takes, fitted when first asked for."""
        return prefill_time.fit(self._model, self._chunk_tokens)

    def decode_s(self, batch: int) -> float:
        """Duration of a decode step of `batch` sequences with next to no context [s]: the least it can be."""
        size = max(batch, 1)
        line = self._model.decode(size, size, size)
        return line.time_s + line.time_per_ctx_s * size


class Sorted:
    """Requests by key; among equal keys the one that joined the replica first, then the lower id."""

    def __init__(self) -> None:
        self._heap: list[tuple[Key, float, int, int, Request]] = []
        self._live: dict[Request, tuple[Key, float, int, int, Request]] = {}
        self._serial = 0

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Request]:
        return (entry[4] for entry in sorted(self._live.values()))

    def __contains__(self, request: Request) -> bool:
        return request in self._live

    def push(self, key: Key, request: Request) -> None:
        """Add a request, or give it another key."""
        self._serial += 1
        entry = (key, request.queued_s, request.id, self._serial, request)
        self._live[request] = entry
        heappush(self._heap, entry)
        if len(self._heap) > 4 * len(self._live) + 64:
            self._heap = list(self._live.values())
            heapify(self._heap)

    def first(self) -> Request:
        """The request with the smallest key."""
        heap, live = self._heap, self._live
        while live.get(heap[0][4]) is not heap[0]:
            heappop(heap)
        return heap[0][4]

    def remove(self, request: Request) -> None:
        """Take a request out, wherever it stands."""
        del self._live[request]

    def in_turn(self) -> Iterator[Request]:
        """Requests from the first on, at a cost that grows with those taken only; nothing may change meanwhile."""
        taken = []
        heap, live = self._heap, self._live
        try:
            while heap:
                entry = heappop(heap)
                if live.get(entry[4]) is entry:
                    taken.append(entry)
                    yield entry[4]
        finally:
            for entry in taken:
                heappush(heap, entry)


class Order:
    """A rank's queue in an order of its own: base of all orders but first come, first served.

    A subclass says by `key` who is first; it may also say who gives way when blocks lack (`victim`, by default whoever would be
    last), whether a running request gives way to a waiting one (`gives_way`, with `preemptive` set), and how long its answers hold
    while nothing arrives, ends or is admitted (`until_change`). Each rank of each replica has its own object, which may remember
    what it has seen. Output lengths are known as far as `Request.predicted_tokens` and `answered` tell.

    Parameters
    ----------
    config : PolicyConfig
        The order's own parameters.
    outlook : Outlook
        What the engine can foresee of its own times.
    """

    preemptive: ClassVar[bool] = False
    """Whether running requests are preempted for waiting ones that have neither seat nor blocks otherwise."""
    eager: ClassVar[bool] = False
    """Whether what it remembers depends on when a request joins, so that every arrival must be noticed at the next boundary."""
    draws: ClassVar[bool] = False
    """Whether it draws from `rng`, a stream that each rank of a fleet gets for itself."""
    needs_predictions: ClassVar[bool] = False
    """Whether it makes no sense without a predictor at the gateway."""
    needs_deadlines: ClassVar[bool] = False
    """Whether it makes no sense without limits on the time to first token."""

    batch: Batch
    """The rank that it is the queue of."""
    rng: np.random.Generator

    def __init__(self, config: Any, outlook: Outlook) -> None:
        self.config = config
        self.outlook = outlook
        self._queue = Sorted()
        self._standings: dict[Request, tuple[Key, float, int]] = {}
        """What `_standing` says of running requests, kept by orders whose keys of them seldom change (`_stands`)."""
        self._presumed: list[Request] = []
        """Waiting requests that should find seat and blocks in the step being planned."""

    # --- what an order says -------------------------------------------------------------------------------------------

    def key(self, request: Request) -> Key:
        """Place of a request, waiting or running; the smallest is first. Asked when it joins the queue, and of running ones."""
        raise NotImplementedError

    def refresh(self) -> None:
        """Bring what is remembered up to `batch.step` and `batch.now_s`, before a step is planned."""

    def gives_way(self, running: Request, waiting: Request) -> bool:
        """Whether `running` is preempted to let `waiting` run."""
        return bool(self.key(waiting) < self.key(running))

    def victim(self, running: list[Request]) -> Request:
        """Who of these is preempted for lack of blocks."""
        return max(running, key=self._standing)

    def left(self, request: Request) -> None:
        """Note that a running request has ended or goes elsewhere."""

    def until_change(self) -> tuple[int, float]:
        """Decode steps, and instant [s], until which it would answer the same if nothing arrives, ends or is admitted."""
        return FAR, inf

    # --- the queue, as the engine and schedulers use it ----------------------------------------------------------------

    def append(self, request: Request) -> None:
        """Let a request join."""
        self._queue.push(self.key(request), request)

    def appendleft(self, request: Request) -> None:
        """Take back a request that was preempted."""
        self.append(request)

    def popleft(self) -> Request:
        """Take out the first: it is admitted."""
        request = self[0]
        self._queue.remove(request)
        return request

    def remove(self, request: Request) -> None:
        """Take out a request that will not run here."""
        self._queue.remove(request)

    def rotate(self, places: int = 1) -> None:
        """Nothing: a place in the order cannot be given away."""

    def __getitem__(self, index: int) -> Request:
        if index == 0 and len(self):
            return self._queue.first()
        return list(self)[index]

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._queue)

    def __contains__(self, request: Request) -> bool:
        return request in self._queue

    def in_turn(self) -> Iterator[Request]:
        """Waiting requests from the first on; nothing may change while they are looked at."""
        return self._queue.in_turn()

    # --- who gives way -------------------------------------------------------------------------------------------------

    def notices(self) -> bool:
        """Whether a request that joins now could change the next step although a scheduler would admit nobody behind the others."""
        return self.eager or (len(self) > 0 and len(self.batch.running) < self.batch.seats)

    def answered(self, request: Request) -> int:
        """Tokens that a request has got so far."""
        return self.batch.answered(request)

    def settled_until(self) -> tuple[int, float]:
        """Decode steps, and instant [s], after which the next step might be planned otherwise because of the order."""
        if any(request in self for request in self._presumed):
            return (
                1,
                inf,
            )  # the scheduler refused it for reasons of its own: whether it seems to fit changes with every step
        return self.until_change()

    def make_way(self) -> None:
        """Preempt running requests for waiting ones, from the first on, that would find neither seat nor blocks."""
        batch = self.batch
        presumed = self._presumed = []
        seats, blocks = batch.seats - len(batch.running), batch.spare_blocks() - batch.keep_blocks
        left: list[Request] | None = None
        chosen: list[Request] = []
        waiting = self.in_turn()
        for request in waiting:
            needed = -(-(request.prompt_tokens + request.generated) // batch.block_tokens)
            if seats < 1 or blocks < needed:
                if left is None:
                    # nobody whose prompt is under way: each admission yields a token, so that all get on
                    left = [r for r in batch.running if r.finish_step >= 0]
                    known = self._standings.keys() >= batch.running.keys()
                    place = self._standings.__getitem__ if known else self._place
                    if not left or not self.gives_way(max(left, key=place), request):
                        break
                    left.sort(key=place)
                found = self._ways(left, request, seats, blocks, needed)
                if not found:
                    break
                del left[-len(found) :]
                chosen += found
                seats += len(found)
                blocks += sum(self._own_blocks(r) for r in found)
            seats -= 1
            blocks -= needed
            presumed.append(request)
        waiting.close()  # type: ignore[attr-defined]
        for request in chosen:
            batch.preempt(request)

    def _ways(self, left: list[Request], request: Request, seats: int, blocks: int, needed: int) -> list[Request]:
        """The last of `left` that must give way to `request`; none if that would not help."""
        found: list[Request] = []
        for running in reversed(left):
            if not self.gives_way(running, request):
                return []
            found.append(running)
            seats += 1
            blocks += self._own_blocks(running)
            if seats > 0 and blocks >= needed:
                return found
        return []

    def _own_blocks(self, request: Request) -> int:
        """Blocks that a decoding request gives back when it is preempted; those that others share stay."""
        # with the one that its next token may need, which is spoken for already
        blocks = -(-(request.prompt_tokens + self.answered(request)) // self.batch.block_tokens)
        return blocks - request.shared_blocks

    def _standing(self, request: Request) -> tuple[Key, float, int]:
        return self.key(request), request.queued_s, request.id

    def _place(self, request: Request) -> tuple[Key, float, int]:
        """The same, as it was kept."""
        return self._standings.get(request) or self._standing(request)

    def _stands(self, request: Request) -> None:
        """Keep where a running request stands, until it stands elsewhere."""
        self._standings[request] = self._standing(request)


def predicted(request: Request) -> float:
    """Output length that is expected [tokens]; infinite where nobody predicted it."""
    return request.predicted_tokens if request.predicted_tokens >= 0 else inf
