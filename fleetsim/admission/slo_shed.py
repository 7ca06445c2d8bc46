"""Who would be served too late is not served at all, or later."""

from __future__ import annotations

from math import inf
from typing import ClassVar, Literal

from numpy.random import Generator
from pydantic import Field

from fleetsim.admission.api import ADMIT, Admit, Defer, FleetView, Reject, RequestView
from fleetsim.plugins import PolicyConfig
from fleetsim.routing.ttft_scan import TtftScan


class SloShedConfig(PolicyConfig):
    """Parameters of shedding by predicted lateness."""

    slack: float = Field(default=1.0, gt=0, json_schema_extra={"unit": "ratio"})
    """Part of the time until the deadline that the prediction may take: below 1 to be on the safe side."""
    when_late: Literal["reject", "defer"] = "reject"
    """Turn late ones away, or put them off until the fleet would serve a new request of their kind in time."""
    retry_s: float = Field(default=1.0, gt=0, json_schema_extra={"unit": "s"})
    """How often those put off are looked at again."""
    longest_s: float = Field(default=60.0, gt=0, json_schema_extra={"unit": "s"})
    """After this long they are let in whatever the load."""
    holders: int = Field(default=0, ge=0, strict=True)
    """Replicas with a beginning of the prompt in their caches whose prediction counts it. 0: caches are not looked at."""


class SloShed:
    """A request whose first token is predicted to miss its deadline is rejected, or put off until there is room.

    Rule: the least predicted time to the first token over all replicas (prompts before it and its own, by their own step times) is
    compared with the time left until the deadline that its class or the scenario's objective sets. Requests without a deadline are
    let in. One that is put off has missed its own deadline; it is let in when a new request like it would be in time, or after
    `longest_s`.

    What is charged: the wait of those put off.

    References
    ----------
    J. Dean and L. A. Barroso, "The tail at scale", CACM 56(2), 2013, doi:10.1145/2408776.2408794 (good enough for most is better
    than late for all).
    """

    Config: ClassVar = SloShedConfig

    def __init__(self, config: SloShedConfig, rng: Generator, fleet: FleetView) -> None:
        self._config = config
        self._fleet = fleet
        self._scan = TtftScan(fleet, config.holders)

    def decide(self, request: RequestView) -> Admit | Defer | Reject:
        """Let the request in if it is predicted to be in time."""
        config = self._config
        if request.deadline_s == inf:
            return ADMIT
        now_s = self._fleet.now_s
        given_s = request.deadline_s - request.arrival_s
        left_s = given_s if config.when_late == "defer" else request.deadline_s - now_s
        if float(self._scan.seconds(request).min()) <= config.slack * left_s:
            return ADMIT
        if config.when_late == "reject":
            return Reject("predicted to miss its deadline")
        latest_s = request.arrival_s + config.longest_s
        return ADMIT if now_s >= latest_s else Defer(min(now_s + config.retry_s, max(latest_s, now_s + 1e-6)))
