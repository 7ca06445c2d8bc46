"""Blocks with a time to live."""

from __future__ import annotations

from math import inf
from typing import ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.engine.evictions.api import CacheView
from fleetsim.engine.evictions.leaves import Leaves, Notes
from fleetsim.engine.prefix_cache import Node
from fleetsim.plugins import PolicyConfig
from fleetsim.units import Seconds


class TtlConfig(PolicyConfig):
    """Parameters of eviction by time to live."""

    keep: Seconds = 300.0
    """How long blocks that nobody uses can be found."""
    classes: dict[str, Seconds] = Field(default_factory=dict)
    """The same for blocks computed for a request of a class."""
    tenants: dict[str, Seconds] = Field(default_factory=dict)
    """The same for blocks computed for a tenant's request, where its class says nothing."""


class _Lease(Notes):
    """Notes with an end."""

    __slots__ = ("end_s", "keep_s")

    def __init__(self, created: int) -> None:
        super().__init__(created)
        self.keep_s = inf
        self.end_s = inf

    def copy(self) -> _Lease:
        """The same history for the other part of a run that was cut."""
        notes = _Lease(self.created)
        notes.hits, notes.released = self.hits, self.released
        notes.keep_s, notes.end_s = self.keep_s, self.end_s
        return notes


class Ttl(Leaves):
    """Time to live: blocks can be found for a while after their last use, as in APIs that sell cached input by the minute.

    Rule: a run ends `keep` after its last user left (by the class, else the tenant, of the request that computed it; each use
    starts it anew). Then it is dropped, needed or not; a run with followers that live longer goes after them. Where room is
    needed before, what would end first goes first.

    References
    ----------
    Anthropic and OpenAI, documentation of prompt caching (5 minutes, renewed by each use).
    """

    Config: ClassVar = TtlConfig
    expires = True

    def __init__(self, config: TtlConfig, rng: Generator, view: CacheView) -> None:
        super().__init__(config, rng, view)
        self.keep_s = config.keep
        self.classes = config.classes
        self.tenants = config.tenants

    def notes(self, run: Node) -> _Lease:  # noqa: ARG002
        """How long it is kept."""
        notes = _Lease(self.events)
        user = self.view.user
        keep_s = self.keep_s if user.tenant is None else self.tenants.get(user.tenant, self.keep_s)
        notes.keep_s = keep_s if user.klass is None else self.classes.get(user.klass, keep_s)
        return notes

    def released(self, run: Node) -> None:
        """The lease runs from now on."""
        run.state.end_s = self.view.now_s + run.state.keep_s
        super().released(run)

    def rank(self, run: Node) -> tuple[float, int]:
        """End of the lease, then when the last user left."""
        notes: _Lease = run.state
        return notes.end_s, notes.released

    def alike(self, upper: Node, lower: Node) -> bool:
        """Kept equally long."""
        above: _Lease = upper.state
        below: _Lease = lower.state
        return above.keep_s == below.keep_s

    def expired(self) -> Node | None:
        """The run whose lease ended first, if it has."""
        run = self.first()
        return run if run is not None and run.state.end_s <= self.view.now_s else None
