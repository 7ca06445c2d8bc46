"""Any leaf."""

from __future__ import annotations

from numpy.random import Generator

from fleetsim.engine.evictions.api import CacheView
from fleetsim.engine.evictions.leaves import Notes
from fleetsim.engine.prefix_cache import Node
from fleetsim.plugins import PolicyConfig
from fleetsim.workload.prefixes import Segment


class RandomLeafConfig(PolicyConfig):
    """No parameters."""


class RandomLeaf:
    """Random leaf: one of the blocks that may go, all equally likely.

    Rule: for each block that is needed, one of the blocks without users and followers is drawn; when it has gone, the block
    before it stands to be drawn too. Requests that defeat least recently used by always asking for what went last cannot be lined
    up against it: evicting leaves at random is O(log n)-competitive where least recently used is O(n).

    References
    ----------
    F. Wu, S. Silwal and Q. Zhang, "Randomization Boosts KV Caching, Learning Balances Query Load: A Joint Perspective", ICLR 2026,
    arXiv:2601.18999 (the idea and the bound; their algorithm draws with more care than uniformly).
    """

    Config = RandomLeafConfig
    expires = False

    def __init__(self, config: RandomLeafConfig, rng: Generator, view: CacheView) -> None:  # noqa: ARG002
        self.rng = rng
        self.runs: list[Node] = []
        """Runs whose last block may go; each knows its place here."""

    def begin_alike(self, parent: Node, keys: Segment, first: int, last: int) -> int:  # noqa: ARG002
        """New blocks are alike."""
        return last - first

    def published(self, run: Node) -> None:
        """It may not go yet."""
        run.state = Notes(0)
        run.state.entry = -1

    def used(self, run: Node) -> None:
        """It may not go until it is released."""
        place = run.state.entry
        if place >= 0:
            last = self.runs.pop()
            if last is not run:
                self.runs[place] = last
                last.state.entry = place
            run.state.entry = -1

    def released(self, run: Node) -> None:
        """A run without followers may go from now on."""
        if not run.children:
            self.exposed(run)

    def cut(self, upper: Node, lower: Node) -> None:  # noqa: ARG002
        """The upper part has a follower."""
        self.published(upper)

    def alike(self, upper: Node, lower: Node) -> bool:  # noqa: ARG002
        """All are."""
        return True

    def victim(self, blocks: int) -> tuple[Node, int]:  # noqa: ARG002
        """Draw one block."""
        return self.runs[int(self.rng.integers(len(self.runs)))], 1

    def evicting(self, run: Node, blocks: int) -> None:
        """When a run's first block goes, the run before takes its place, if it may go then."""
        if blocks < run.length:
            return
        parent = run.parent
        if parent is None or parent.users or len(parent.children or ()) > 1:
            self.used(run)
        else:
            parent.state.entry = run.state.entry
            self.runs[parent.state.entry] = parent
            run.state.entry = -1

    def exposed(self, run: Node) -> None:
        """It may go from now on."""
        if run.state.entry < 0:
            run.state.entry = len(self.runs)
            self.runs.append(run)

    def expired(self) -> Node | None:
        """Nothing expires."""
        return None
