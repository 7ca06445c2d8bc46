"""Least recently used first."""

from __future__ import annotations

from fleetsim.engine.evictions.leaves import Leaves
from fleetsim.engine.prefix_cache import Node
from fleetsim.plugins import PolicyConfig


class LruConfig(PolicyConfig):
    """No parameters."""


class Lru(Leaves):
    """Least recently used: the run whose last user left first.

    Rule: blocks that nobody uses go in the order in which their last request ended; of one request, the last block first. The
    cache keeps this order by itself, so the default costs nothing; this object is for comparison and for policies built on it.

    References
    ----------
    W. Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention", SOSP 2023, arXiv:2309.06180
    (vLLM's automatic prefix caching); L. Zheng et al., "SGLang: Efficient Execution of Structured Language Model Programs",
    NeurIPS 2024, arXiv:2312.07104 (leaves of a radix tree).
    """

    Config = LruConfig

    def rank(self, run: Node) -> int:
        """When the last user left."""
        released: int = run.state.released
        return released

    def alike(self, upper: Node, lower: Node) -> bool:  # noqa: ARG002
        """Both are released together from now on."""
        return True
