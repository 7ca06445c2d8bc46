"""A router that does what its class does not say, named by import path in the tests."""

from __future__ import annotations

from typing import ClassVar

from numpy.random import Generator

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import HOLD, FleetView, Hold, RequestView


class Silent:
    """Holds everybody without having said so."""

    Config: ClassVar = PolicyConfig

    def __init__(self, config: PolicyConfig, rng: Generator, fleet: FleetView) -> None:
        pass

    def route(self, request: RequestView) -> Hold:
        return HOLD
