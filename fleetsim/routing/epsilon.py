"""Now and then a random replica instead of another router's choice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import FleetView, Reject, RequestView, Route, Router
from fleetsim.routing.basic import draws
from fleetsim.routing.inner import Inner, decision_s, explained, least_outstanding

_CHUNK = 4096


class EpsilonConfig(PolicyConfig):
    """Parameters of exploration around another router."""

    inner: Inner = Field(default_factory=least_outstanding)
    """Router of all other requests: a name or a block with `policy`."""
    epsilon: Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.01
    """Part of the requests that go to any replica."""


class Epsilon:
    """Another router's choice, but any replica with equal chance for a small part of the requests.

    Rule: with probability `epsilon` a random replica, of which the inner router does not learn; else what the inner router says.

    What is charged: what the inner router charges.

    References
    ----------
    R. S. Sutton, A. G. Barto, "Reinforcement Learning: An Introduction", MIT Press 2018, section 2.2 (ε-greedy); with 1 % in
    llm-d's prefix filter (github.com/llm-d/llm-d).
    """

    Config: ClassVar = EpsilonConfig

    def __init__(self, config: EpsilonConfig, rng: Generator, fleet: FleetView) -> None:
        own, inner = rng.spawn(2)
        self._inner: Router = config.inner.create(inner, fleet)
        self.decision_s = decision_s(self._inner)
        self._fleet = fleet
        self._epsilon = config.epsilon
        self._rng = own
        self._replicas = draws(own, fleet.count, 1)
        self._chances: list[float] = []

    def route(self, request: RequestView) -> int | Route | Reject:
        """Choose a replica."""
        if not self._chances:
            self._chances = self._rng.random(_CHUNK).tolist()
        if self._chances.pop() < self._epsilon:
            return self._fleet.here(next(self._replicas)[0])
        return self._inner.route(request)

    def explain(self, request: RequestView) -> Mapping[int, Mapping[str, float]]:
        """What the inner router says."""
        return explained(self._inner, request)
