"""Segmented LRU."""

from __future__ import annotations

from typing import Annotated

from numpy.random import Generator
from pydantic import Field

from fleetsim.engine.evictions.api import CacheView
from fleetsim.engine.evictions.leaves import Leaves, Notes
from fleetsim.engine.prefix_cache import Node
from fleetsim.plugins import PolicyConfig


class SlruConfig(PolicyConfig):
    """Parameters of segmented LRU."""

    protected_hits: Annotated[int, Field(ge=1, strict=True, json_schema_extra={"unit": "count"})] = 2
    """Hits from which a run is protected (SGLang: protected_threshold)."""


class Slru(Leaves):
    """Segmented LRU: runs that were found a few times go only when nothing else can.

    Rule: of the runs without users and followers, the least recently used of those with fewer than `protected_hits` hits goes
    first; where there is none, the least recently used of the others.

    References
    ----------
    SGLang, `evict_policy.py` (SLRUStrategy: hit_count >= 2, last_access_time).
    """

    Config = SlruConfig

    def __init__(self, config: SlruConfig, rng: Generator, view: CacheView) -> None:
        super().__init__(config, rng, view)
        self.protected_hits = config.protected_hits

    def rank(self, run: Node) -> tuple[bool, int]:
        """Protected ones last, then when the last user left."""
        notes: Notes = run.state
        return notes.hits >= self.protected_hits, notes.released

    def alike(self, upper: Node, lower: Node) -> bool:
        """Equally far from protection."""
        most = self.protected_hits
        return bool(min(upper.state.hits, most) == min(lower.state.hits, most))
