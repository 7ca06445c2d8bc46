"""Base of policies that are an order: of the runs that may go, the one of the lowest rank goes first."""

from __future__ import annotations

from collections.abc import Container
from heapq import heapify, heappop, heappush
from typing import Any

from numpy.random import Generator

from fleetsim.engine.evictions.api import CacheView
from fleetsim.engine.prefix_cache import Node
from fleetsim.plugins import PolicyConfig
from fleetsim.workload.prefixes import Segment


class Notes:
    """What is known about a run of blocks."""

    __slots__ = ("created", "entry", "hits", "released")

    def __init__(self, created: int) -> None:
        self.created = created
        """Number of the event at which it was published."""
        self.released = 0
        """Number of the event at which its last user left."""
        self.hits = 0
        """Requests that found it, beside the one that computed it."""
        self.entry = 0
        """Its entry in the heap; 0 while it may not go."""

    def copy(self) -> Notes:
        """The same history for the other part of a run that was cut."""
        notes = type(self)(self.created)
        notes.hits = self.hits
        notes.released = self.released
        return notes


class Leaves:
    """Runs that may go, in a heap by rank: a policy says what a run's rank is when it begins to be one of them.

    A rank is anything that can be compared, and holds until the run is used or trimmed; of equal ones the earlier goes first. All
    blocks of a run have one history, so that trimming it from its end is what a block-by-block cache would do.
    """

    expires = False

    def __init__(self, config: PolicyConfig, rng: Generator, view: CacheView) -> None:  # noqa: ARG002
        self.view = view
        self.events = 0
        self.heap: list[tuple[Any, int, Node]] = []
        self.entries = 0
        self.live = 0
        """Entries of the heap that hold; the others are of runs that were used or went since."""

    def rank(self, run: Node) -> Any:
        """Where a run stands that may go: the lowest goes first."""
        raise NotImplementedError

    def notes(self, run: Node) -> Notes:  # noqa: ARG002
        """Notes of a new run."""
        return Notes(self.events)

    def begin_alike(self, parent: Node, keys: Segment, first: int, last: int) -> int:  # noqa: ARG002
        """New blocks of one request begin alike."""
        return last - first

    def published(self, run: Node) -> None:
        """Take notes of a new run."""
        self.events += 1
        run.state = self.notes(run)

    def used(self, run: Node) -> None:
        """Count a hit; it may not go until it is released."""
        notes: Notes = run.state
        notes.hits += 1
        self.withdraw(notes)

    def released(self, run: Node) -> None:
        """Note when; a run without followers may go from now on."""
        self.events += 1
        notes: Notes = run.state
        notes.released = self.events
        if not run.children:
            self.offer(run)

    def cut(self, upper: Node, lower: Node) -> None:
        """Both parts have the same history."""
        notes: Notes = lower.state
        upper.state = notes.copy()

    def alike(self, upper: Node, lower: Node) -> bool:
        """Runs that were found equally often; what else `rank` looks at must be the same too."""
        hits: int = upper.state.hits
        return bool(hits == lower.state.hits)

    def victim(self, blocks: int) -> tuple[Node, int]:  # noqa: ARG002
        """The run of the lowest rank."""
        run = self.first()
        assert run is not None
        return run, run.length

    def evicting(self, run: Node, blocks: int) -> None:
        """Forget a run that goes as a whole."""
        if blocks == run.length:
            self.withdraw(run.state)

    def exposed(self, run: Node) -> None:
        """What stood before the one that went may go next."""
        self.offer(run)

    def expired(self) -> Node | None:
        """Nothing expires."""
        return None

    # --- the heap -------------------------------------------------------------------------------------------------

    def first(self) -> Node | None:
        """The run of the lowest rank, if any may go."""
        heap = self.heap
        while heap:
            _, entry, run = heap[0]
            if run.state.entry == entry:
                return run
            heappop(heap)
        return None

    def offer(self, run: Node, rank: Any = None) -> None:
        """Let a run go from now on, or give it another rank."""
        notes: Notes = run.state
        if not notes.entry:
            self.live += 1
        self.entries += 1
        notes.entry = self.entries
        heappush(self.heap, (self.rank(run) if rank is None else rank, self.entries, run))
        if len(self.heap) > 64 + 4 * self.live:
            self.heap = [item for item in self.heap if item[2].state.entry == item[1]]
            heapify(self.heap)

    def withdraw(self, notes: Notes) -> None:
        """Let a run go no longer."""
        if notes.entry:
            notes.entry = 0
            self.live -= 1


def blocks_before(run: Node) -> int:
    """Blocks on the path to a run."""
    blocks, parent = 0, run.parent
    while parent is not None:
        blocks += parent.length
        parent = parent.parent
    return blocks


def remembered_alike(keys: Segment, first: int, last: int, ghost: Container[int], other: Container[int]) -> int:
    """How many of ``keys[first:last]``, from the first on, are all remembered in one of two ghosts, or all not."""
    known = keys[first] in ghost or keys[first] in other
    seen = {keys[first]}
    for place in range(first + 1, last):
        key = keys[place]
        if (key in ghost or key in other) is not known or (known and key in seen):
            return place - first
        if known:
            seen.add(key)  # what is remembered once counts once
    return last - first
