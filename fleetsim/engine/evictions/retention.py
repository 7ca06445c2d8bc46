"""Directives: what is kept before other blocks, and for how long."""

from __future__ import annotations

from heapq import heappop, heappush
from math import inf
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.engine.evictions.api import CacheView, User
from fleetsim.engine.evictions.leaves import Leaves, Notes, blocks_before
from fleetsim.engine.prefix_cache import Node
from fleetsim.plugins import PolicyConfig
from fleetsim.units import Seconds
from fleetsim.workload.prefixes import Segment


class Directive(PolicyConfig):
    """What to keep of certain requests, how firmly and how long."""

    classes: tuple[str, ...] = ()
    """Requests of these classes only; default: all."""
    tenants: tuple[str, ...] = ()
    """Requests of these tenants only; default: all."""
    tokens: Annotated[int, Field(ge=1, strict=True, json_schema_extra={"unit": "tokens"})] | None = None
    """Its first tokens only (a system prompt's length, say); default: all blocks that can be found."""
    priority: Annotated[int, Field(ge=0, le=100, strict=True)] = 80
    """From 0 (goes first) to 100 (goes last)."""
    duration: Seconds | None = None
    """How long after its last use this holds; default: for ever."""


class RetentionConfig(PolicyConfig):
    """Parameters of eviction by directives."""

    priority: Annotated[int, Field(ge=0, le=100, strict=True)] = 35
    """Of blocks without a directive, and of others when its time is over."""
    by_request: Annotated[bool, Field(strict=True)] = False
    """Add each request's own priority to that of its blocks."""
    directives: tuple[Directive, ...] = ()
    """The first one that is for a request and its block counts."""


class _Kept(Notes):
    """Notes with a directive."""

    __slots__ = ("duration_s", "end_s", "least", "priority")

    def __init__(self, created: int) -> None:
        super().__init__(created)
        self.priority = self.least = 0
        self.duration_s = self.end_s = inf

    def copy(self) -> _Kept:
        """The same history for the other part of a run that was cut."""
        notes = _Kept(self.created)
        notes.hits, notes.released = self.hits, self.released
        notes.priority, notes.least = self.priority, self.least
        notes.duration_s, notes.end_s = self.duration_s, self.end_s
        return notes


class Retention(Leaves):
    """Retention directives: runs by priority, then least recently used; a priority may hold for a while only.

    Rule: a run has the priority of the first directive that is for the request which computed it and for its place in the prompt,
    else the default one. `duration` after its last user left it falls back to the default. Of the runs without users and
    followers, the one with the lowest (priority, last use) goes first. The clock is looked at when requests begin, compute, or end.

    References
    ----------
    NVIDIA, TensorRT-LLM, `KvCacheRetentionConfig` (priorities 0 to 100, default 35, durations, token ranges).
    """

    Config: ClassVar = RetentionConfig

    def __init__(self, config: RetentionConfig, rng: Generator, view: CacheView) -> None:
        super().__init__(config, rng, view)
        self.config = config
        self.now_s = 0.0
        self.ends: list[tuple[float, int, Node]] = []
        """Runs that may go, by when their priority falls."""

    def begin_alike(self, parent: Node, keys: Segment, first: int, last: int) -> int:  # noqa: ARG002
        """Up to where the next directive's tokens end."""
        before = blocks_before(parent) + parent.length
        user = self.view.user
        ends = [self._blocks(each) - before for each in self.config.directives if self._is_for(each, user)]
        return min([last - first, *(end for end in ends if end > 0)])

    def notes(self, run: Node) -> _Kept:
        """The directive for it."""
        self.now_s = self.view.now_s
        config, user = self.config, self.view.user
        own = user.priority if config.by_request else 0
        notes = _Kept(self.events)
        notes.priority = notes.least = config.priority + own
        before = blocks_before(run)
        for each in config.directives:
            if run.parent is not None and self._is_for(each, user) and before < self._blocks(each):
                notes.priority = each.priority + own
                notes.duration_s = inf if each.duration is None else each.duration
                break
        return notes

    def used(self, run: Node) -> None:
        """The clock is looked at."""
        self.now_s = self.view.now_s
        super().used(run)

    def released(self, run: Node) -> None:
        """Its time runs from now on."""
        self.now_s = self.view.now_s
        run.state.end_s = self.now_s + run.state.duration_s
        super().released(run)

    def offer(self, run: Node, rank: object = None) -> None:
        """Note when its priority falls."""
        super().offer(run, rank)
        notes: _Kept = run.state
        if self.now_s < notes.end_s < inf:
            heappush(self.ends, (notes.end_s, notes.entry, run))
            if len(self.ends) > 64 + 4 * self.live:
                self.ends = sorted(item for item in self.ends if item[2].state.entry == item[1])

    def rank(self, run: Node) -> tuple[int, int]:
        """Priority, then when the last user left."""
        notes: _Kept = run.state
        return (notes.priority if self.now_s < notes.end_s else notes.least), notes.released

    def victim(self, blocks: int) -> tuple[Node, int]:
        """The run of the lowest priority now."""
        ends = self.ends
        while ends and ends[0][0] <= self.now_s:
            _, entry, run = heappop(ends)
            if run.state.entry == entry:
                self.offer(run)
        return super().victim(blocks)

    def alike(self, upper: Node, lower: Node) -> bool:
        """Under the same directive."""
        above: _Kept = upper.state
        below: _Kept = lower.state
        return (above.priority, above.duration_s, above.least) == (below.priority, below.duration_s, below.least)

    @staticmethod
    def _is_for(directive: Directive, user: User) -> bool:
        classes, tenants = directive.classes, directive.tenants
        return (not classes or user.klass in classes) and (not tenants or user.tenant in tenants)

    def _blocks(self, directive: Directive) -> int:
        """Blocks from the start that hold some of a directive's tokens."""
        return 1 << 60 if directive.tokens is None else -(-directive.tokens // self.view.block_tokens)
