"""Virtual token counter: fair shares of a replica for tenants."""

from __future__ import annotations

from collections.abc import Iterator
from math import floor, inf
from typing import Annotated, ClassVar

from pydantic import Field

from fleetsim.engine.orders.order import FAR, Key, Order, Outlook, Sorted
from fleetsim.plugins import PolicyConfig
from fleetsim.workload.request import Request

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class VtcConfig(PolicyConfig):
    """Parameters of the virtual token counter; tenants' weights stand in the scenario's `tenants`."""

    prompt_weight: Weight = 1.0
    """What a prompt token counts (w_p)."""
    output_weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2.0
    """What an output token counts (w_q)."""
    predicted: bool = False
    """Charge the predicted output at admission and correct it as tokens come; else charge tokens as they come."""


class _Tenant:
    """One tenant's queue, and what it was served in whole tokens, so that sums do not depend on how they are added up."""

    __slots__ = ("lift", "output_tokens", "prompt_tokens", "queue", "running", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.queue = Sorted()
        self.prompt_tokens = 0
        self.output_tokens = 0.0
        self.lift = 0.0
        """What its counter was raised by when it came back."""
        self.running = 0
        """Decoding requests."""


class Vtc(Order):
    """Virtual token counter: the tenant that was served the least is next, so that none can take others' share.

    Rule: each tenant has a counter. Next is the oldest request of the tenant with the smallest counter among those who wait; the
    scheduler stops at the first that does not fit. Admission adds the prompt's tokens, each output token twice as much, both over
    the tenant's weight. A tenant who comes back to an empty queue is lifted to the smallest counter of others who wait: idling
    saves nothing up. With `predicted` the expected output is charged at admission and corrected by what comes. Nobody is preempted
    for another; blocks lacking, the request admitted last gives way, and its prompt is not charged again. Counters are kept by each
    rank of each replica by itself. Two tenants that wait all the time differ by at most twice the larger of the heaviest prompt
    and w_q times the KV cache. Deciding costs nothing.

    References
    ----------
    Y. Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, algorithm 2 and theorem 4.4, arXiv:2401.00588.
    """

    Config: ClassVar = VtcConfig
    eager: ClassVar[bool] = True

    def __init__(self, config: VtcConfig, outlook: Outlook) -> None:
        super().__init__(config, outlook)
        self._tenants: dict[str | None, _Tenant] = {}
        self._served: dict[Request, float] = {}
        """Requests that were admitted and have not left, and the output tokens charged for them."""
        self._waiting = 0

    def key(self, request: Request) -> Key:
        """Within a tenant the oldest is first; `_queue` holds nothing here."""
        return request.arrival_s

    def counter(self, tenant: str | None) -> float:
        """What a tenant was served, over its weight, and its lifts."""
        self._sync()
        known = self._tenants.get(tenant)
        return 0.0 if known is None else self._counter(known)

    def append(self, request: Request) -> None:
        """Let a request join; a tenant who had none waiting is lifted to the least of those who have."""
        tenant = self._tenants.get(request.tenant)
        if tenant is None:
            tenant = self._tenants[request.tenant] = _Tenant(request.weight)
        if not len(tenant.queue) and self._waiting:
            self._sync()
            least = min(self._counter(other) for other in self._tenants.values() if len(other.queue))
            tenant.lift += max(0.0, least - self._counter(tenant))
        self._push(tenant, request)

    def appendleft(self, request: Request) -> None:
        """Take back a request that was preempted, whose tenant was not away; or take one that comes from another replica."""
        if request not in self._served:
            self.append(request)
            return
        self._charge(request, float(request.generated))
        self._push(self._tenants[request.tenant], request)

    def popleft(self) -> Request:
        """Take out the first and charge its prompt."""
        tenant = self._first()
        request = tenant.queue.first()
        self._drop(tenant, request)
        if request not in self._served:
            if not request.generated:  # else its prompt was computed elsewhere
                tenant.prompt_tokens += request.prompt_tokens
            self._served[request] = float(request.generated)
            self._charge(request, float(request.generated))
        return request

    def remove(self, request: Request) -> None:
        """Take out a request that will not run here."""
        self._drop(self._tenants[request.tenant], request)
        self._served.pop(request, None)

    def left(self, request: Request) -> None:
        """Charge what a request got here in the end, and no more."""
        charged = self._served.pop(request)
        self._tenants[request.tenant].output_tokens += request.generated - charged

    def refresh(self) -> None:
        """Charge what was answered since."""
        self._sync()

    def victim(self, running: list[Request]) -> Request:
        """Who was admitted last."""
        return running[-1]

    def until_change(self) -> tuple[int, float]:
        """Until the counter of the tenant whose turn it is has passed another's, where there is a seat to give."""
        if len(self.batch.running) >= self.batch.seats:
            return FAR, inf
        head = self._first()
        level, pace = self._counter(head), self._pace(head)
        steps = FAR
        for other in self._tenants.values():
            if other is not head and len(other.queue) and pace > self._pace(other):
                gap = self._counter(other) - level
                steps = min(steps, max(floor(gap / (pace - self._pace(other)) * (1 - 1e-9)), 1))
        return steps, inf

    def __getitem__(self, index: int) -> Request:
        if index == 0 and self._waiting:
            return self._first().queue.first()
        return list(self)[index]

    def __len__(self) -> int:
        return self._waiting

    def __contains__(self, request: Request) -> bool:
        tenant = self._tenants.get(request.tenant)
        return tenant is not None and request in tenant.queue

    def __iter__(self) -> Iterator[Request]:
        waiting = [tenant for tenant in self._tenants.values() if len(tenant.queue)]
        return (request for tenant in sorted(waiting, key=self._counter) for request in tenant.queue)

    # --- counters ------------------------------------------------------------------------------------------------------

    def _counter(self, tenant: _Tenant) -> float:
        config = self.config
        served = config.prompt_weight * tenant.prompt_tokens + config.output_weight * tenant.output_tokens
        return tenant.lift + float(served) / tenant.weight

    def _pace(self, tenant: _Tenant) -> float:
        """What the counter gains per decode step at most."""
        return float(self.config.output_weight * tenant.running / tenant.weight)

    def _first(self) -> _Tenant:
        """The tenant whose turn it is; among equals the one whose first request is the oldest."""
        waiting = [tenant for tenant in self._tenants.values() if len(tenant.queue)]
        if len(waiting) == 1:
            return waiting[0]
        return min(waiting, key=self._turn)

    def _turn(self, tenant: _Tenant) -> tuple[float, float, int]:
        first = tenant.queue.first()
        return self._counter(tenant), first.queued_s, first.id

    def _push(self, tenant: _Tenant, request: Request) -> None:
        tenant.queue.push(self.key(request), request)
        self._waiting += 1

    def _drop(self, tenant: _Tenant, request: Request) -> None:
        tenant.queue.remove(request)
        self._waiting -= 1

    def _sync(self) -> None:
        """Charge the output tokens that came since the last time."""
        batch = self.batch
        for tenant in self._tenants.values():
            tenant.running = 0
        for request in batch.running:
            if request.finish_step >= 0:
                self._tenants[request.tenant].running += 1
            self._charge(request, float(batch.answered(request)))

    def _charge(self, request: Request, answered: float) -> None:
        """Note that a request has so many output tokens now."""
        if self.config.predicted:
            answered = max(answered, _expected(request))
        charged = self._served[request]
        if answered != charged:
            self._tenants[request.tenant].output_tokens += answered - charged
            self._served[request] = answered


def _expected(request: Request) -> float:
    """Predicted output in whole tokens."""
    return float(round(max(request.predicted_tokens, 0.0)))
