"""Least frequently used first."""

from __future__ import annotations

from fleetsim.engine.evictions.leaves import Leaves
from fleetsim.engine.prefix_cache import Node
from fleetsim.plugins import PolicyConfig


class LfuConfig(PolicyConfig):
    """No parameters."""


class Lfu(Leaves):
    """Least frequently used: the run that the fewest requests found; of equal ones the least recently used.

    Rule: of the runs without users and followers, the one with the lowest (hits, last use) goes first. Hits are never forgotten.

    References
    ----------
    SGLang, `evict_policy.py` (LFUStrategy: hit_count, last_access_time).
    """

    Config = LfuConfig

    def rank(self, run: Node) -> tuple[int, int]:
        """Hits, then when the last user left."""
        notes = run.state
        return notes.hits, notes.released
