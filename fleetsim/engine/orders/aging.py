"""Shortest job first with aging."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from fleetsim.engine.orders.order import Key, Order
from fleetsim.plugins import PolicyConfig
from fleetsim.workload.request import Request


class AgingConfig(PolicyConfig):
    """Parameters of aging."""

    tokens_per_s: Annotated[float, Field(ge=0, allow_inf_nan=False, json_schema_extra={"unit": "tokens/s"})] = 10.0
    """Expected output tokens that a second of waiting makes up for; 0 is shortest job first."""


class Aging(Order):
    """Shortest job first with aging: expected output tokens less a number of tokens for every second of waiting.

    Rule: waiting requests are sorted by predicted tokens - tokens_per_s * wait. All waits grow alike, so the order of two requests
    does not change while both wait. Blocks lacking: whoever would be last gives way. A request without a prediction counts as 0
    tokens. Deciding costs nothing.

    References
    ----------
    Baseline of Y. Fu et al., "Efficient LLM Scheduling by Learning to Rank", NeurIPS 2024, arXiv:2408.15792.
    """

    Config: ClassVar = AgingConfig
    needs_predictions: ClassVar[bool] = True

    def key(self, request: Request) -> Key:
        """Expected output, later ones put back by their later start [tokens]."""
        return max(request.predicted_tokens, 0.0) + self.config.tokens_per_s * request.queued_s
