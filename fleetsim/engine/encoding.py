"""Encoding of images on a replica: passes through its encoder, between two steps of its loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fleetsim.kernel.clock import BOUNDARY, Timer
from fleetsim.workload.request import Request

if TYPE_CHECKING:
    from fleetsim.engine.replica import Replica

PassTime = Callable[[int, int], tuple[float, float]]
"""Duration [s] and dynamic energy [J] of a pass over so many images that yield so many tokens together."""


class EncodeStage:
    """Requests of one replica whose images wait for the encoder, and the pass under way.

    A pass holds the replica as a step does: nothing else is computed meanwhile, and requests that decode get no token. It begins
    between two steps. After a pass, a step comes first if there is anything to compute. A request's images are encoded together.

    Parameters
    ----------
    replica : Replica
        Whose loop it is part of.
    time : callable
        Physics of a pass.
    max_images : int
        Images of one pass at most; a request that has more of them is encoded alone. ≥ 1.
    last : bool
        Whether steps come first: while requests decode, a pass must fit into what the steps since the last pass have left of their
        target; while prompts are under way or wait, there is none.
    step_target_s : float
        With `last`, time of steps and passes per step while requests decode [s].
    max_wait_s : float
        With `last`, the first request is encoded before the next step all the same when it has waited this long [s].
    pay : callable
        Called with each encoded request and its share of the pass [s].
    """

    __slots__ = (
        "_coming",
        "_done",
        "after_pass",
        "credit_s",
        "current",
        "dynamic_j",
        "encoded",
        "last",
        "max_images",
        "max_wait_s",
        "pass_s",
        "passes",
        "pay",
        "replica",
        "started_s",
        "step_target_s",
        "time",
        "waiting",
    )

    def __init__(
        self,
        replica: Replica,
        time: PassTime,
        max_images: int,
        last: bool,
        step_target_s: float,
        max_wait_s: float,
        pay: Callable[[Request, float], None],
    ) -> None:
        self.replica = replica
        self.time = time
        self.max_images = max_images
        self.last = last
        self.step_target_s = step_target_s
        self.max_wait_s = max_wait_s
        self.pay = pay
        self._coming: dict[Request, Timer] = {}
        self._done: dict[Request, Callable[[Request], None]] = {}
        """What to do with each request when it is encoded, or taken back from a pass."""
        self.waiting: dict[Request, float] = {}
        """Since when each waits, in order."""
        self.current: list[Request] = []
        """Requests of the pass under way."""
        self.after_pass = False
        """Whether the last thing that the replica did was a pass."""
        self.credit_s = 0.0
        """What steps have left of their target, while images wait."""
        self.started_s = 0.0
        self.pass_s = 0.0
        self.dynamic_j = 0.0
        self.passes = 0
        self.encoded = 0
        """Images encoded."""

    # --- from outside ------------------------------------------------------------------------------------------------

    def enqueue(self, request: Request, ready_s: float, done: Callable[[Request], None]) -> None:
        """Encode a request's images from `ready_s` on; `done` is called when they are."""
        self._done[request] = done
        self._coming[request] = self.replica.clock.at(ready_s, lambda: self._arrive(request), BOUNDARY)

    def _arrive(self, request: Request) -> None:
        del self._coming[request]
        if not self.waiting:
            self.credit_s = 0.0
        self.waiting[request] = self.replica.clock.now_s
        self.replica.look_soon()

    def withdraw(self, request: Request, then: Callable[[Request], None]) -> None:
        """Take a request back: at once while it waits, at the end of the pass under way if it is part of that."""
        if request in self.current:
            self._done[request] = then
            return
        del self._done[request]
        if request in self._coming:
            self._coming.pop(request).cancel()
        else:
            del self.waiting[request]
        then(request)

    # --- asked by the replica ------------------------------------------------------------------------------------------

    def due(self, now_s: float) -> bool:
        """Whether a pass comes before the next step; then its requests are chosen."""
        if not self.waiting or self.after_pass:
            self.after_pass = False
            return False
        if not self.last or self._idle():
            return self._choose(self.max_images, -1.0)
        replica = self.replica
        if replica.leap_steps:
            self.credit_s = max(self.credit_s + self.step_target_s - replica.last_step_s(), 0.0)
        prompts = any([batch.prefilling or batch.waiting or batch.suspended for batch in replica.batches])
        if not prompts and self._choose(self.max_images, self.credit_s):
            self.credit_s -= self.pass_s
            return True
        first = next(iter(self.waiting))
        return now_s >= self.waiting[first] + self.max_wait_s and self._choose(1, -1.0)

    def begin(self) -> bool:
        """Choose the next pass, where there is nothing else to do; False if nothing waits."""
        return self._choose(self.max_images, -1.0)

    def _idle(self) -> bool:
        return not any([batch.running or batch.waiting for batch in self.replica.batches])

    def _choose(self, max_images: int, within_s: float) -> bool:
        """Choose requests from the first on, as long as their pass lasts `within_s` at most (if that is not below zero)."""
        chosen: list[Request] = []
        images = tokens = 0
        for request in self.waiting:
            images += request.images
            tokens += request.image_tokens
            if chosen and images > max_images:
                break
            time_s, dynamic_j = self.time(images, tokens)
            time_s *= self.replica.factor
            if 0.0 <= within_s < time_s:
                break
            chosen.append(request)
            self.pass_s, self.dynamic_j = time_s, dynamic_j
        self.current = chosen
        return bool(chosen)

    def start(self, now_s: float) -> float:
        """Begin the pass that was chosen; its duration [s]."""
        self.started_s = now_s
        for request in self.current:
            del self.waiting[request]
            request.encode_replica = self.replica.index
            if (
                request.first_scheduled_s != request.first_scheduled_s
            ):  # else what was made of them was lost, and is made again
                request.encode_start_s = now_s
        return self.pass_s

    def energy_j(self, share: float) -> float:
        """Energy of a share of the pass under way [J]."""
        model = self.replica.model
        return min(model.static_w * self.pass_s + self.dynamic_j, model.limit_w * self.pass_s) * share

    def charge(self, share: float) -> None:
        """Divide a share of the pass among its requests by their tokens."""
        energy_j, tokens = self.energy_j(share), sum([request.image_tokens for request in self.current])
        for request in self.current:
            part = request.image_tokens / tokens
            request.energy_j += energy_j * part
            self.pay(request, self.pass_s * share * part)

    def finish(self, now_s: float) -> None:
        """The pass is over: its requests go on."""
        self.charge(1.0)
        done, self.current = self.current, []
        self.after_pass = True
        self.passes += 1
        for request in done:
            if request.first_scheduled_s != request.first_scheduled_s:
                request.encode_end_s = now_s
            self.encoded += request.images
            self._done.pop(request)(request)

    @property
    def idle(self) -> bool:
        """Whether no images wait, are on their way, or are encoded now."""
        return not (self._coming or self.waiting or self.current)

    def stop(self) -> None:
        """The run ends here, or the replica fails: forget what waits."""
        for timer in self._coming.values():
            timer.cancel()
        self._coming.clear()
        self.waiting.clear()
        self._done.clear()
        self.current = []
        self.after_pass = False
        self.credit_s = 0.0
