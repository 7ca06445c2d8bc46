"""Work that can wait waits until there is room."""

from __future__ import annotations

from typing import ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.admission.api import ADMIT, Admit, Defer, FleetView, RequestView
from fleetsim.plugins import PolicyConfig


class DeferBatchConfig(PolicyConfig):
    """Parameters of putting batch work off."""

    classes: tuple[str, ...] = ("batch",)
    """Classes that can wait, besides all requests with a priority below zero."""
    per_replica: float = Field(default=8.0, gt=0)
    """Load below which they are let in: requests in flight per replica."""
    kv_below: float = Field(default=1.0, gt=0, le=1, json_schema_extra={"unit": "ratio"})
    """And part of the KV caches in use, on average over the replicas; 1 does not look at it."""
    retry_s: float = Field(default=1.0, gt=0, json_schema_extra={"unit": "s"})
    """How often the load is looked at again for each."""
    longest_s: float = Field(default=3600.0, gt=0, json_schema_extra={"unit": "s"})
    """Latest start: after this long they are let in whatever the load."""


class DeferBatch:
    """Requests of batch classes wait at the gateway while the fleet is busy; all others are let in at once.

    Rule: a request of one of `classes`, or of a priority below zero, is let in if fewer than `per_replica` requests are in
    flight per replica and less than `kv_below` of the KV caches is in use; otherwise the load is looked at again every
    `retry_s`, and after `longest_s` the request is let in anyhow. With an engine order by priority (`engine.order: priority`)
    online requests also preempt those that were let in: together that is the co-location of online and offline work, without
    its model of what may join a decode batch.

    What is charged: the wait.

    References
    ----------
    "xLLM Technical Report", arXiv:2510.14686 (online and offline requests on the same instances).
    """

    Config: ClassVar = DeferBatchConfig

    def __init__(self, config: DeferBatchConfig, rng: Generator, fleet: FleetView) -> None:
        self._config = config
        self._fleet = fleet
        self._places = config.per_replica * fleet.count
        if config.kv_below < 1.0:
            fleet.watch_load()

    def decide(self, request: RequestView) -> Admit | Defer:
        """Let the request in, or look again later."""
        config, fleet = self._config, self._fleet
        if request.priority >= 0 and request.klass not in config.classes:
            return ADMIT
        latest_s = request.arrival_s + config.longest_s
        now_s = fleet.now_s
        if now_s >= latest_s or (fleet.in_flight < self._places and self._has_memory()):
            return ADMIT
        return Defer(min(now_s + config.retry_s, max(latest_s, now_s + 1e-6)))

    def _has_memory(self) -> bool:
        fleet, kv_below = self._fleet, self._config.kv_below
        if kv_below >= 1.0:
            return True
        return sum(fleet.kv_used(place) for place in range(fleet.count)) < kv_below * fleet.count
