"""A rate limit per tenant."""

from __future__ import annotations

from typing import ClassVar, Literal

from numpy.random import Generator
from pydantic import Field

from fleetsim.admission.api import ADMIT, Admit, Defer, FleetView, Reject, RequestView
from fleetsim.plugins import PolicyConfig


class TokenBucketConfig(PolicyConfig):
    """Parameters of the token bucket."""

    rate_per_s: float = Field(gt=0)
    """What flows into each tenant's bucket per second: prompt tokens, or requests."""
    burst: float = Field(gt=0)
    """What a full bucket holds."""
    unit: Literal["tokens", "requests"] = "tokens"
    """What is counted: prompt tokens or requests."""
    when_empty: Literal["reject", "defer"] = "reject"
    """Turn requests away, or put them off until the bucket holds enough."""


class TokenBucket:
    """A rate limit per tenant: each request takes from its tenant's bucket, which fills at a steady rate.

    Rule: a bucket begins full. A request that finds less than it needs is rejected, or put off until there is enough; those put off
    keep their order, since each books what it will take. A request larger than a whole bucket needs a full one.

    References
    ----------
    J. Turner, "New directions in communications (or which way to the information age?)", IEEE Communications Magazine 24(10), 1986,
    doi:10.1109/MCOM.1986.1092946.
    """

    Config: ClassVar = TokenBucketConfig

    def __init__(self, config: TokenBucketConfig, rng: Generator, fleet: FleetView) -> None:
        self._rate_per_s = config.rate_per_s
        self._burst = config.burst
        self._by_tokens = config.unit == "tokens"
        self._defers = config.when_empty == "defer"
        self._fleet = fleet
        self._level: dict[str | None, tuple[float, float]] = {}
        """Of each tenant: what its bucket holds (below zero where requests put off have booked it), and when that was."""
        self._booked: set[int] = set()

    def decide(self, request: RequestView) -> Admit | Defer | Reject:
        """Take from the bucket if it holds enough."""
        if request.id in self._booked:
            self._booked.discard(request.id)
            return ADMIT
        now_s = self._fleet.now_s
        level, since_s = self._level.get(request.tenant, (self._burst, now_s))
        level = min(self._burst, level + self._rate_per_s * (now_s - since_s))
        needed = min(float(request.prompt_tokens) if self._by_tokens else 1.0, self._burst)
        if level >= needed:
            self._level[request.tenant] = (level - needed, now_s)
            return ADMIT
        if not self._defers:
            self._level[request.tenant] = (level, now_s)
            return Reject("rate limit")
        self._level[request.tenant] = (level - needed, now_s)
        self._booked.add(request.id)
        return Defer(now_s + (needed - level) / self._rate_per_s)
