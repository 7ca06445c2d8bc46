"""Shortest job first."""

from __future__ import annotations

from typing import ClassVar

from fleetsim.engine.orders.order import Key, Order, predicted
from fleetsim.plugins import PolicyConfig
from fleetsim.workload.request import Request


class SjfConfig(PolicyConfig):
    """Lengths come from the gateway's predictor."""


class Sjf(Order):
    """Shortest job first: by the output length that the gateway predicted; long jobs may starve.

    Rule: waiting requests are sorted by predicted output tokens, those without a prediction last. Blocks lacking: the running
    request that was expected to be the longest gives way. Deciding costs nothing.

    References
    ----------
    L. E. Schrage and L. W. Miller, "The Queue M/G/1 with the Shortest Remaining Processing Time Discipline", Operations Research
    14(4), 1966, doi:10.1287/opre.14.4.670 (which compares both).
    """

    Config: ClassVar = SjfConfig
    needs_predictions: ClassVar[bool] = True

    def key(self, request: Request) -> Key:
        """Expected output [tokens]."""
        return predicted(request)
