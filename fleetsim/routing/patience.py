"""Second tries for requests whose first token takes too long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import FleetView, Reject, RequestView, Route, Router
from fleetsim.routing.inner import Inner, decision_s, explained, least_outstanding


class HedgeConfig(PolicyConfig):
    """Parameters of hedged requests."""

    inner: Inner = Field(default_factory=least_outstanding)
    """Router that chooses: a name or a block with `policy`."""
    after_s: Annotated[float, Field(gt=0, json_schema_extra={"unit": "s"})] = 2.0
    """Time without a first token after which a copy is sent elsewhere."""


class RetryConfig(PolicyConfig):
    """Parameters of retried requests."""

    inner: Inner = Field(default_factory=least_outstanding)
    """Router that chooses: a name or a block with `policy`."""
    after_s: Annotated[float, Field(gt=0, json_schema_extra={"unit": "s"})] = 5.0
    """Time without a first token after which the request is taken back and sent elsewhere."""
    retries: Annotated[int, Field(ge=1, strict=True, json_schema_extra={"unit": "count"})] = 1
    """Times that this is done for one request; the last one may take as long as it takes."""


class _Elsewhere:
    """The inner router's choice, and for further tries another replica than the one tried last."""

    def __init__(self, inner: Router, fleet: FleetView) -> None:
        self.router = inner
        self._fleet = fleet
        self._least = fleet.index_outstanding()
        self._position_of = {number: position for position, number in enumerate(fleet.numbers)}

    def route(self, request: RequestView) -> Route | Reject:
        answer = self.router.route(request)
        if isinstance(answer, Reject):
            return answer
        route = answer if isinstance(answer, Route) else Route(answer)
        if not request.attempt:
            return route
        tried = self._position_of.get(request.tried, -1)
        if route.replica != tried or self._fleet.count == 1:
            return route
        outstanding = self._fleet.outstanding
        other = self._least.smallest()
        if other == tried:  # rare, so a scan will do
            other = min((i for i in range(self._fleet.count) if i != tried), key=outstanding.__getitem__)
        return replace(route, replica=other)


class Hedge:
    """Another router's choice, and a copy to a second replica where the first token takes too long; the first token wins.

    Rule: the inner router is asked for every try; where it names the replica that has the request already, the least loaded other
    one is taken. One copy at most is under way.

    What is charged: what the copy computes until it is taken back, and what the inner router charges.

    References
    ----------
    J. Dean, L. A. Barroso, "The Tail at Scale", Communications of the ACM 56(2), 2013, doi:10.1145/2408776.2408794.
    """

    Config: ClassVar = HedgeConfig

    def __init__(self, config: HedgeConfig, rng: Generator, fleet: FleetView) -> None:
        self._inner = _Elsewhere(config.inner.create(rng, fleet), fleet)
        self.decision_s = decision_s(self._inner.router)
        self._after_s = config.after_s

    def route(self, request: RequestView) -> Route | Reject:
        """Choose a replica."""
        route = self._inner.route(request)
        if isinstance(route, Reject) or request.attempt:
            return route
        return replace(route, hedge_after_s=self._after_s)

    def explain(self, request: RequestView) -> Mapping[int, Mapping[str, float]]:
        """What the inner router says."""
        return explained(self._inner.router, request)


class Retry:
    """Another router's choice, taken back and sent to another replica where the first token takes too long.

    Rule: the inner router is asked for every try; where it names the replica that was tried last, the least loaded other one is
    taken. After `retries` of them a request stays where it is.

    What is charged: what the replicas that were given up had computed, and what the inner router charges.

    References
    ----------
    Per-try time-outs of load balancers, e.g. Envoy's ``per_try_timeout`` (envoyproxy.io).
    """

    Config: ClassVar = RetryConfig

    def __init__(self, config: RetryConfig, rng: Generator, fleet: FleetView) -> None:
        self._inner = _Elsewhere(config.inner.create(rng, fleet), fleet)
        self.decision_s = decision_s(self._inner.router)
        self._after_s = config.after_s
        self._retries = config.retries

    def route(self, request: RequestView) -> Route | Reject:
        """Choose a replica."""
        route = self._inner.route(request)
        if isinstance(route, Reject) or request.attempt >= self._retries:
            return route
        return replace(route, retry_after_s=self._after_s)

    def explain(self, request: RequestView) -> Mapping[int, Mapping[str, float]]:
        """What the inner router says."""
        return explained(self._inner.router, request)
