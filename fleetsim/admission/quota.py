"""Shares of the fleet for tenants or priorities."""

from __future__ import annotations

from collections import deque
from typing import ClassVar, Literal

from numpy.random import Generator
from pydantic import Field

from fleetsim.admission.api import ADMIT, Admit, FleetView, Reject, RequestView
from fleetsim.plugins import PolicyConfig


class QuotaConfig(PolicyConfig):
    """Parameters of quotas."""

    limit: float = Field(gt=0)
    """What all may have together: requests in flight per replica, or prompt tokens per replica in any window."""
    shares: dict[str, float] = Field(default_factory=dict, json_schema_extra={"unit": "ratio"})
    """Part of the limit of each tenant, class or priority by its name."""
    other_share: float = Field(default=1.0, gt=0, le=1, json_schema_extra={"unit": "ratio"})
    """Part of each one that is not named."""
    by: Literal["tenant", "class", "priority"] = "tenant"
    """Who has a share."""
    unit: Literal["requests", "tokens"] = "requests"
    """What is counted: requests in flight, or prompt tokens."""
    window_s: float = Field(default=60.0, gt=0, json_schema_extra={"unit": "s"})
    """Length of the window (only for tokens)."""


class Quota:
    """Nobody gets more than a share of the fleet: of the requests in flight, or of the prompt tokens in a window of time.

    Rule: a request that would take its tenant (or class, or priority) over its share of the limit is rejected; others are let in,
    whatever the rest have. Requests in flight are those let in and not ended. A request of more tokens than a whole share is let in
    where its owner has nothing else in the window. Shares may add up to more than 1: then they are limits and not guarantees.

    What is charged: nothing.

    References
    ----------
    J. Mace et al., "Retro: Targeted Resource Management in Multi-tenant Distributed Systems", NSDI 2015 (limits per workflow at the
    entry).
    """

    Config: ClassVar = QuotaConfig

    def __init__(self, config: QuotaConfig, rng: Generator, fleet: FleetView) -> None:
        self._config = config
        self._fleet = fleet
        self._limit = config.limit * fleet.count
        self._used: dict[str, int] = {}
        self._let_in: deque[tuple[float, str, int]] = deque()
        """In the window: when, whose, prompt tokens."""
        self._in_flight: dict[int, str] = {}
        """Whose each request in flight is."""

    def decide(self, request: RequestView) -> Admit | Reject:
        """Let the request in if its owner's share has room for it."""
        config = self._config
        owner = self._owner(request)
        by_tokens = config.unit == "tokens"
        if by_tokens:
            self._forget()
        used = self._used.get(owner, 0)
        needed = request.prompt_tokens if by_tokens else 1
        if used + needed > config.shares.get(owner, config.other_share) * self._limit and (used or not by_tokens):
            return Reject("over quota")
        self._used[owner] = used + needed
        if by_tokens:
            self._let_in.append((self._fleet.now_s, owner, needed))
        else:
            self._in_flight[request.id] = owner
        return ADMIT

    def ended(self, request: RequestView) -> None:
        """Note that a request that was let in has ended."""
        owner = self._in_flight.pop(request.id, None)
        if owner is not None:
            self._used[owner] -= 1

    def _owner(self, request: RequestView) -> str:
        if self._config.by == "priority":
            return str(request.priority)
        return (request.tenant if self._config.by == "tenant" else request.klass) or ""

    def _forget(self) -> None:
        """Leave out what has left the window."""
        since_s = self._fleet.now_s - self._config.window_s
        while self._let_in and self._let_in[0][0] <= since_s:
            _, owner, tokens = self._let_in.popleft()
            self._used[owner] -= tokens
