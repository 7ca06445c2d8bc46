"""Oldest first."""

from __future__ import annotations

from fleetsim.engine.evictions.leaves import Leaves
from fleetsim.engine.prefix_cache import Node
from fleetsim.plugins import PolicyConfig


class FifoConfig(PolicyConfig):
    """No parameters."""


class Fifo(Leaves):
    """First in, first out: the run that was computed first, however often it was used since.

    Rule: of the runs without users and followers, the one that was published first goes first.

    References
    ----------
    SGLang, `evict_policy.py` (FIFOStrategy: creation_time).
    """

    Config = FifoConfig

    def rank(self, run: Node) -> int:
        """When it was published."""
        created: int = run.state.created
        return created

    def alike(self, upper: Node, lower: Node) -> bool:
        """Published together."""
        created: int = upper.state.created
        return bool(created == lower.state.created)
