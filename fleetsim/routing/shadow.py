"""A second router that is asked and not obeyed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import FleetView, Reject, RequestView, Route, Router
from fleetsim.routing.inner import Inner, decision_s, explained, least_outstanding


class ShadowConfig(PolicyConfig):
    """Parameters of a shadow router."""

    inner: Inner = Field(default_factory=least_outstanding)
    """Router that decides: a name or a block with `policy`."""
    shadow: Inner = Field(default_factory=least_outstanding)
    """Router that is asked too."""


class Shadow:
    """Another router's choice, beside which a second one says what it would have done.

    Rule: both routers see the same views of the same requests; the first one's answer holds. How often the second one's was the
    same is counted (`asked`, `agreed`), and it stands in the log of decisions that are explained. The second one's own memory,
    such as what it believes to be in caches, is that of a router that was obeyed; what replicas publish is not.

    What is charged: what the first router charges.

    References
    ----------
    "Shadow" or "mirrored" traffic of load balancers, e.g. Envoy's request mirroring (envoyproxy.io).
    """

    Config: ClassVar = ShadowConfig

    def __init__(self, config: ShadowConfig, rng: Generator, fleet: FleetView) -> None:
        inner, shadow = rng.spawn(2)
        self._inner: Router = config.inner.create(inner, fleet)
        self._shadow: Router = config.shadow.create(shadow, fleet)
        self.decision_s = decision_s(self._inner)
        self.asked = 0
        """Decisions so far."""
        self.agreed = 0
        """Of these, those in which both said the same."""
        self.second = -1
        """The second router's latest choice; -1 for a rejection."""

    def route(self, request: RequestView) -> int | Route | Reject:
        """Choose a replica."""
        first, second = self._inner.route(request), self._shadow.route(request)
        self.asked += 1
        self.second = _replica(second)
        self.agreed += self.second == _replica(first)
        return first

    def explain(self, request: RequestView) -> Mapping[int, Mapping[str, float]]:
        """What both routers say, the second one's figures as `shadow.…`."""
        found = {position: dict(figures) for position, figures in explained(self._inner, request).items()}
        for position, figures in explained(self._shadow, request).items():
            found.setdefault(position, {}).update({f"shadow.{name}": value for name, value in figures.items()})
        return found

    def said(self) -> Mapping[str, float]:
        """What the log of decisions notes beside the choice."""
        return {"shadow_replica": float(self.second)}


def _replica(answer: int | Route | Reject) -> int:
    if isinstance(answer, Reject):
        return -1
    return answer.replica if isinstance(answer, Route) else answer
