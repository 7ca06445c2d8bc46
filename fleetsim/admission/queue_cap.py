"""A limit on what is in flight."""

from __future__ import annotations

from typing import ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.admission.api import ADMIT, Admit, FleetView, Reject, RequestView
from fleetsim.plugins import PolicyConfig


class QueueCapConfig(PolicyConfig):
    """Parameters of the cap."""

    per_replica: int = Field(ge=1, strict=True)
    """Requests in flight per replica at most, on average over the replicas."""
    reserve_ratio: float = Field(default=0.0, ge=0, lt=1)
    """Share of these places that only requests with a priority above zero may take."""


class QueueCap:
    """No more requests in flight than so many per replica; what comes on top is rejected.

    Rule: requests sent and not ended are counted over all replicas. At the cap everybody is rejected; in the reserved share below
    it only requests of priority zero and less are.

    References
    ----------
    S. Luo et al., "Overload control for scaling WeChat microservices", SoCC 2018, doi:10.1145/3267809.3267823 (priorities that are
    shed first).
    """

    Config: ClassVar = QueueCapConfig

    def __init__(self, config: QueueCapConfig, rng: Generator, fleet: FleetView) -> None:
        self._cap = config.per_replica * fleet.count
        self._open_to_all = self._cap - int(config.reserve_ratio * self._cap)
        self._fleet = fleet

    def decide(self, request: RequestView) -> Admit | Reject:
        """Let the request in while there is a place for it."""
        cap = self._cap if request.priority > 0 else self._open_to_all
        return ADMIT if self._fleet.in_flight < cap else Reject("too many requests in flight")
