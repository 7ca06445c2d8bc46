"""Cheapest to compute again, weighed by recent use, first."""

from __future__ import annotations

from math import log2
from typing import Annotated

from numpy.random import Generator
from pydantic import Field

from fleetsim.engine.evictions.api import CacheView
from fleetsim.engine.evictions.leaves import Leaves, Notes, blocks_before
from fleetsim.engine.prefix_cache import Node
from fleetsim.plugins import PolicyConfig
from fleetsim.units import Seconds


class CostAwareConfig(PolicyConfig):
    """Parameters of cost-aware eviction."""

    half_life: Seconds = 60.0
    """Time after which an unused run's worth has halved."""
    ewma_ratio: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Weight of a new use in the running average of uses."""


class _Worth(Notes):
    """Notes with a running average of uses."""

    __slots__ = ("since_s", "uses")

    def __init__(self, created: int) -> None:
        super().__init__(created)
        self.uses = 0.0
        self.since_s = 0.0

    def copy(self) -> _Worth:
        """The same history for the other part of a run that was cut."""
        notes = _Worth(self.created)
        notes.hits, notes.released = self.hits, self.released
        notes.uses, notes.since_s = self.uses, self.since_s
        return notes


class CostAware(Leaves):
    """Cost-aware: the block that is worth least, where worth is the time to compute it again times its recent use.

    Rule: a run keeps a running average of its uses, which each use moves by `ewma_ratio` towards 1 and which halves every
    `half_life` while nobody uses it. The last block of the run with the lowest average x time to compute that block again (its
    projections and its attention to all tokens before it, from the pool's step-time model) goes first. All worths fade at the
    same rate, so their order does not change with time.

    References
    ----------
    LMCache's cost-aware cache policy (half-life 60 s, average 0.2) for the parameters; the formula here is fleetsim's own. P. Cao
    and S. Irani, "Cost-Aware WWW Proxy Caching Algorithms", USITS 1997, for the idea.
    """

    Config = CostAwareConfig

    def __init__(self, config: CostAwareConfig, rng: Generator, view: CacheView) -> None:
        super().__init__(config, rng, view)
        self.half_life_s = config.half_life
        self.ewma_ratio = config.ewma_ratio

    def notes(self, run: Node) -> _Worth:  # noqa: ARG002
        """A first use, now."""
        notes = _Worth(self.events)
        notes.uses = self.ewma_ratio
        notes.since_s = self.view.now_s
        return notes

    def used(self, run: Node) -> None:
        """Move the average by one use."""
        notes: _Worth = run.state
        now_s = self.view.now_s
        if not run.users > 1:
            notes.uses *= 2.0 ** ((notes.since_s - now_s) / self.half_life_s)
        notes.uses += self.ewma_ratio * (1.0 - notes.uses)
        super().used(run)

    def released(self, run: Node) -> None:
        """The average fades from now on."""
        run.state.since_s = self.view.now_s
        super().released(run)

    def rank(self, run: Node) -> tuple[float, int]:
        """Logarithm of the worth of the last block, fading left out."""
        return self._rank(run, run.length)

    def _rank(self, run: Node, length: int) -> tuple[float, int]:
        notes: _Worth = run.state
        cost_s = self.view.recompute_s(blocks_before(run) + length - 1)
        return log2(notes.uses * cost_s) + notes.since_s / self.half_life_s, notes.released

    def evicting(self, run: Node, blocks: int) -> None:
        """What is left of a trimmed run ends with a cheaper block."""
        super().evicting(run, blocks)
        if blocks < run.length:
            self.offer(run, self._rank(run, run.length - blocks))

    def alike(self, upper: Node, lower: Node) -> bool:
        """Used alike until now."""
        above: _Worth = upper.state
        below: _Worth = lower.state
        return above.uses == below.uses
