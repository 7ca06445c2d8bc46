"""S3-FIFO."""

from __future__ import annotations

from collections import OrderedDict
from heapq import heapify, heappop, heappush
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.engine.evictions.api import CacheView
from fleetsim.engine.evictions.leaves import blocks_before, remembered_alike
from fleetsim.engine.prefix_cache import Node
from fleetsim.plugins import PolicyConfig
from fleetsim.workload.prefixes import Segment

_NONE: OrderedDict[int, None] = OrderedDict()


class S3FifoConfig(PolicyConfig):
    """Parameters of S3-FIFO."""

    small_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the cache for the small queue; the main queue has the rest."""
    ghost_ratio: Annotated[float, Field(ge=0, le=10)] = 0.9
    """Evicted blocks that are remembered, as a share of the cache's blocks."""
    promote_hits: Annotated[int, Field(ge=1, strict=True, json_schema_extra={"unit": "count"})] = 2
    """Hits with which a block moves from the small queue to the main one."""


class _Place:
    """Where a run stands."""

    __slots__ = ("entry", "hits", "main", "position", "queued")

    def __init__(self, main: bool) -> None:
        self.main = main
        self.hits = 0
        self.queued = False
        """Whether it has a position: from its first release on."""
        self.position = 0
        self.entry = 0


class _Queue:
    """One of the two queues: first in, first out; runs in use keep their position and are passed over."""

    __slots__ = ("blocks", "entries", "heap", "live")

    def __init__(self, entries: int) -> None:
        self.blocks = 0
        """Blocks that stand in it, used ones too."""
        self.heap: list[tuple[int, int, int, Node]] = []
        """(position, minus the depth, entry, run) of those that nobody uses."""
        self.entries = entries
        self.live = 0

    def push(self, run: Node) -> None:
        """Let a run that nobody uses be found at its position; of one request's blocks, the deepest first."""
        place: _Place = run.state
        if not place.entry:
            self.live += 1
        self.entries += 1
        place.entry = self.entries
        heappush(self.heap, (place.position, -blocks_before(run), self.entries, run))
        if len(self.heap) > 64 + 4 * self.live:
            self.heap = [item for item in self.heap if item[3].state.entry == item[2]]
            heapify(self.heap)

    def withdraw(self, run: Node) -> None:
        """Pass over a run."""
        place: _Place = run.state
        if place.entry:
            place.entry = 0
            self.live -= 1

    def head(self) -> Node | None:
        """The first run that nobody uses."""
        heap = self.heap
        while heap:
            _, _, entry, run = heap[0]
            if run.state.entry == entry:
                return run
            heappop(heap)
        return None


class S3Fifo:
    """S3-FIFO: new blocks prove themselves in a small queue; those that are found again live in a main one.

    Rule: a block enters the small queue when its first user leaves (of one request, the last block first), or the main queue if
    it is remembered as evicted not long ago. Room is made from the main queue where that holds more than its share, else from the
    small one. At the head of the small queue a block with `promote_hits` hits moves to the main queue and starts again at zero;
    at the head of the main queue a block with hits goes to the end with min(hits, 3) - 1; any other block goes, and if it was in
    the small queue its key is remembered. In a prefix cache a block whose followers are cached may not go: it moves to the end of
    its queue. Blocks in use keep their place. Where one queue has nothing that may go, the other one is asked.

    References
    ----------
    J. Yang et al., "FIFO Queues Are All You Need for Cache Eviction", SOSP 2023; libCacheSim, `S3FIFO.c` (small queue 10 %, ghost
    90 %, threshold 2).
    """

    Config: ClassVar = S3FifoConfig
    expires = False

    def __init__(self, config: S3FifoConfig, rng: Generator, view: CacheView) -> None:  # noqa: ARG002
        self.promote_hits = config.promote_hits
        self.main_blocks = view.capacity_blocks - max(int(config.small_ratio * view.capacity_blocks), 1)
        self.ghost_blocks = int(config.ghost_ratio * view.capacity_blocks)
        self.ghost: OrderedDict[int, None] = OrderedDict()
        """Keys of blocks that went from the small queue, oldest first."""
        self.small = _Queue(0)
        self.main = _Queue(1 << 60)  # an entry is in one queue only
        self.positions = 0

    def begin_alike(self, parent: Node, keys: Segment, first: int, last: int) -> int:  # noqa: ARG002
        """Blocks that are all remembered, or none of them."""
        return remembered_alike(keys, first, last, self.ghost, _NONE)

    def published(self, run: Node) -> None:
        """Which queue it is for."""
        known = bool(run.keys) and run.first in self.ghost
        if known:
            for key in run.keys:
                self.ghost.pop(key, None)
        run.state = _Place(known)

    def used(self, run: Node) -> None:
        """Count a hit; it is passed over until it is released."""
        place: _Place = run.state
        place.hits += 1
        self._queue(place).withdraw(run)

    def released(self, run: Node) -> None:
        """Back at its place, or now at the end of its queue."""
        place: _Place = run.state
        queue = self._queue(place)
        if not place.queued:
            place.queued = True
            self.positions += 1
            place.position = self.positions
            queue.blocks += run.length
        queue.push(run)

    def cut(self, upper: Node, lower: Node) -> None:
        """Both parts stand at the same place."""
        place: _Place = lower.state
        other = _Place(place.main)
        other.hits, other.queued, other.position = place.hits, place.queued, place.position
        upper.state = other
        if place.entry:
            self._queue(place).push(lower)  # it is deeper now

    def alike(self, upper: Node, lower: Node) -> bool:
        """At the same place with the same hits."""
        above: _Place = upper.state
        below: _Place = lower.state
        return (above.queued, above.position, above.main, above.hits) == (
            below.queued,
            below.position,
            below.main,
            below.hits,
        )

    def victim(self, blocks: int) -> tuple[Node, int]:  # noqa: ARG002
        """The first that may go, from the queue whose turn it is."""
        over = self.main.blocks - self.main_blocks
        if over > 0:
            run = self._from_main()
            if run is not None:
                return run, min(over, run.length)
        run = self._from_small()
        if run is None:
            run = self._from_main()
            assert run is not None
            return run, 1
        # what moved to the main queue may have made that too long for the next block
        return run, run.length if self.main.blocks <= self.main_blocks else 1

    def evicting(self, run: Node, blocks: int) -> None:
        """Remember what goes from the small queue."""
        place: _Place = run.state
        queue = self._queue(place)
        queue.blocks -= blocks
        if blocks == run.length:
            queue.withdraw(run)
        if not place.main and run.keys:
            ghost = self.ghost
            ghost.update(dict.fromkeys(reversed(run.keys[run.length - blocks :])))
            while len(ghost) > self.ghost_blocks:
                ghost.popitem(last=False)

    def exposed(self, run: Node) -> None:
        """It stands in its queue already."""

    def expired(self) -> Node | None:
        """Nothing expires."""
        return None

    def _queue(self, place: _Place) -> _Queue:
        return self.main if place.main else self.small

    def _from_small(self) -> Node | None:
        small = self.small
        stuck: Node | None = None
        while True:
            run = small.head()
            if run is None or run is stuck:
                return None  # empty, or once round
            place: _Place = run.state
            if place.hits >= self.promote_hits:
                self._move(run, small, self.main)
                place.hits = 0
            elif not run.children:
                return run
            else:
                stuck = stuck or run
                self._move(run, small, small)

    def _from_main(self) -> Node | None:
        main = self.main
        stuck: Node | None = None
        while True:
            run = main.head()
            if run is None or run is stuck:
                return None  # empty, or once round without a change
            place: _Place = run.state
            if place.hits:
                stuck = None
                self._move(run, main, main)
                place.hits = min(place.hits, 3) - 1
            elif not run.children:
                return run
            else:
                stuck = stuck or run
                self._move(run, main, main)

    def _move(self, run: Node, source: _Queue, target: _Queue) -> None:
        """To the end of a queue."""
        place: _Place = run.state
        source.withdraw(run)
        source.blocks -= run.length
        target.blocks += run.length
        place.main = target is self.main
        self.positions += 1
        place.position = self.positions
        target.push(run)
