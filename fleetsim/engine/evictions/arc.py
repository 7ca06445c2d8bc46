"""ARC."""

from __future__ import annotations

from collections import OrderedDict
from typing import ClassVar

from numpy.random import Generator

from fleetsim.engine.evictions.api import CacheView
from fleetsim.engine.evictions.leaves import Leaves, Notes, remembered_alike
from fleetsim.engine.prefix_cache import Node
from fleetsim.plugins import PolicyConfig
from fleetsim.workload.prefixes import Segment


class ArcConfig(PolicyConfig):
    """No parameters."""


class _Seen(Notes):
    """Notes with a list: seen once, or more often."""

    __slots__ = ("often",)

    def __init__(self, created: int, often: bool = False) -> None:
        super().__init__(created)
        self.often = often

    def copy(self) -> _Seen:
        """The same history for the other part of a run that was cut."""
        notes = _Seen(self.created, self.often)
        notes.hits, notes.released = self.hits, self.released
        return notes


class Arc:
    """ARC: keeps a balance between blocks seen once and blocks seen more often, and learns it from what it evicted too early.

    Rule: blocks used by one request are in list T1, those used by more in T2, each least recently used first; the keys of evicted
    ones are remembered in B1 and B2. A new block that is remembered in B1 raises the target size of T1 by max(|B2| / |B1|, 1),
    one in B2 lowers it by max(|B1| / |B2|, 1), and it goes to T2. Room is made from T1 where that holds more blocks than its
    target (or at least one, if T2 has nothing that may go), else from T2; only blocks without users and followers may go. |T1| +
    |B1| is at most the cache's size, all four together at most twice. Room is made before the keys that need it are known, so the
    target is that of the requests before.

    References
    ----------
    N. Megiddo and D. Modha, "ARC: A Self-Tuning, Low Overhead Replacement Cache", FAST 2003.
    """

    Config: ClassVar = ArcConfig
    expires = False

    def __init__(self, config: ArcConfig, rng: Generator, view: CacheView) -> None:
        self.capacity = view.capacity_blocks
        self.once, self.often = _List(config, rng, view), _List(config, rng, view)
        self.often.entries = 1 << 60  # an entry is in one list only
        self.once_ghost: OrderedDict[int, None] = OrderedDict()
        self.often_ghost: OrderedDict[int, None] = OrderedDict()
        self.once_blocks = self.often_blocks = 0
        self.target = 0.0
        """Blocks that T1 should hold."""

    def begin_alike(self, parent: Node, keys: Segment, first: int, last: int) -> int:  # noqa: ARG002
        """Blocks that are all remembered, or none of them."""
        return remembered_alike(keys, first, last, self.once_ghost, self.often_ghost)

    def published(self, run: Node) -> None:
        """Which list it is for, and what its being missed teaches."""
        known = bool(run.keys) and (run.first in self.once_ghost or run.first in self.often_ghost)
        if known:
            self._learn(run.keys)
            self.often_blocks += run.length
        else:
            self.once_blocks += run.length
        run.state = _Seen(0, known)

    def used(self, run: Node) -> None:
        """Seen again."""
        notes: _Seen = run.state
        self._list(notes).withdraw(notes)
        if not notes.often:
            notes.often = True
            self.once_blocks -= run.length
            self.often_blocks += run.length

    def released(self, run: Node) -> None:
        """The most recently used of its list."""
        self.once.events += 1
        run.state.released = self.once.events
        if not run.children:
            self.exposed(run)

    def cut(self, upper: Node, lower: Node) -> None:
        """Both parts are in the same list."""
        notes: _Seen = lower.state
        upper.state = notes.copy()

    def alike(self, upper: Node, lower: Node) -> bool:
        """In the same list."""
        above: _Seen = upper.state
        below: _Seen = lower.state
        return above.often == below.often

    def victim(self, blocks: int) -> tuple[Node, int]:  # noqa: ARG002
        """The least recently used of the list whose turn it is."""
        once, often = self.once.first(), self.often.first()
        over = self.once_blocks - int(self.target)
        if once is not None and (over > 0 or often is None):
            return once, min(once.length, max(over, 1))
        assert often is not None
        return often, often.length

    def evicting(self, run: Node, blocks: int) -> None:
        """Remember what goes."""
        self._shorten()
        notes: _Seen = run.state
        if blocks == run.length:
            self._list(notes).withdraw(notes)
        ghost = self.often_ghost if notes.often else self.once_ghost
        if notes.often:
            self.often_blocks -= blocks
        else:
            self.once_blocks -= blocks
        if run.keys:
            ghost.update(dict.fromkeys(reversed(run.keys[run.length - blocks :])))

    def exposed(self, run: Node) -> None:
        """It may go from now on."""
        self._list(run.state).offer(run)

    def expired(self) -> Node | None:
        """Nothing expires."""
        return None

    def _list(self, notes: _Seen) -> _List:
        return self.often if notes.often else self.once

    def _learn(self, keys: Segment) -> None:
        """Move the target for each block that was evicted too early, and forget it."""
        once, often = self.once_ghost, self.often_ghost
        for key in keys:
            if key in once:
                self.target = min(self.target + max(len(often) / len(once), 1.0), float(self.capacity))
                del once[key]
            elif key in often:
                self.target = max(self.target - max(len(once) / len(often), 1.0), 0.0)
                del often[key]

    def _shorten(self) -> None:
        """Keep what is remembered within its limits."""
        once, often = self.once_ghost, self.often_ghost
        while once and self.once_blocks + len(once) > self.capacity:
            once.popitem(last=False)
        while often and self.once_blocks + self.often_blocks + len(once) + len(often) > 2 * self.capacity:
            often.popitem(last=False)


class _List(Leaves):
    """Runs that may go, least recently used first."""

    def rank(self, run: Node) -> int:
        """When the last user left."""
        released: int = run.state.released
        return released
