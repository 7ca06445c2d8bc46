"""Paged KV blocks of one rank, with automatic prefix caching, counted in runs.

The cache is a path-compressed radix tree. A node is a run of consecutive blocks that always had the same users, so they share one
reference count and one last-use time; a request costs the number of branch points on its path, not its number of blocks. A node
that nobody uses waits in a queue by the time it was released, children before their parents, and is trimmed from its tail when
room is needed: exactly least-recently-used eviction of leaf blocks, block by block. Another order is an `Eviction`'s to choose
(`evictions/api.py`): it is told what happens to each run and asked which one to trim.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

from fleetsim.errors import PolicyError
from fleetsim.workload.prefixes import Path, Segment


class Node:
    """A run of blocks after the path of its parents."""

    __slots__ = ("children", "first", "keys", "length", "parent", "state", "users")

    state: Any
    """What an eviction policy notes about it; not set without one."""

    def __init__(self, parent: Node | None, keys: Segment, length: int, users: int) -> None:
        self.parent = parent
        self.keys = keys
        self.first = keys[0] if keys else 0
        self.length = length
        self.users = users
        self.children: dict[int, Node] | None = None  # most nodes never have any


class PrefixCache:
    """Counts of used, cached and free blocks, and which blocks hold what.

    Always ``used + cached + free = capacity``. Used blocks belong to running requests (shared ones count once); cached ones hold
    known tokens that nobody uses now; free ones hold nothing.

    Parameters
    ----------
    capacity : int
        Blocks [blocks]. ≥ 1.
    enabled : bool
        Whether blocks outlive the requests that made them.
    eviction : Eviction, optional
        Chooses what goes first; None is least recently used, which the order of `idle` says by itself.
    """

    __slots__ = (
        "cached",
        "capacity",
        "enabled",
        "evicted",
        "eviction",
        "hit_idle",
        "hit_node",
        "hit_same",
        "idle",
        "journal",
        "on_evict",
        "root",
        "used",
    )

    def __init__(self, capacity: int, enabled: bool = True, eviction: Any = None) -> None:
        self.capacity = capacity
        self.enabled = enabled
        self.eviction: Any = eviction
        """Not trusted to keep its Protocol."""
        self.used = 0
        self.cached = 0
        self.evicted = 0
        self.root = Node(None, (), 0, 1)
        self.idle: OrderedDict[Node, None] = OrderedDict()
        """Nodes without users, least recently released first."""
        self.on_evict: Callable[[Node], None] | None = None
        """Told each node that is about to lose blocks, at its end."""
        self.hit_node = self.root
        self.hit_same = 0
        self.hit_idle = 0
        self.journal: Any = None
        """Told what is published and evicted, if anybody cares."""

    @property
    def free(self) -> int:
        """Blocks that hold nothing."""
        return self.capacity - self.used - self.cached

    def lookup(self, path: Path, limit: int) -> int:
        """How many of the first `limit` blocks of `path` are held; `hit_idle` of these nobody uses now.

        Where the walk ended is remembered for an `acquire_hit` that follows before anything else changes.
        """
        if self.eviction is not None:
            self._drop_expired()
        node, held, idle, same = self.root, 0, 0, 0
        for segment in path:
            position, end = 0, len(segment)
            if end > limit - held:
                end = limit - held
            while position < end:
                children = node.children
                child = children.get(segment[position]) if children else None
                if child is None:
                    limit = held  # ends the outer loop too
                    break
                same = child.length
                if same > end - position or type(segment) is not range or type(child.keys) is not range:
                    same = _same(child, segment, position, end)
                held += same
                if not child.users:
                    idle += same
                node = child
                if same < child.length:
                    limit = held
                    break
                position += same
            if held >= limit:
                break
        self.hit_node = node
        self.hit_same = same
        self.hit_idle = idle
        return held

    def held(self, path: Path, limit: int) -> int:
        """How many of the first `limit` blocks of `path` are held: `lookup` without a trace of having asked."""
        node, held = self.root, 0
        for segment in path:
            position, end = 0, min(len(segment), limit - held)
            while position < end:
                child = node.children.get(segment[position]) if node.children else None
                if child is None:
                    return held
                same = _same(child, segment, position, end)
                held += same
                if same < child.length:
                    return held
                node = child
                position += same
            if held >= limit:
                break
        return held

    def acquire_hit(self) -> Node:
        """Use the blocks that the last look-up found; returns the node they end with."""
        node = self.hit_node
        if node is self.root:
            return node
        if self.hit_same < node.length:
            node = self._split(node, self.hit_same)
        self._use(node)
        eviction = self.eviction
        current = node
        parent = current.parent
        while parent is not None and parent.length:
            self._use(parent)
            # where both have the same users (and the same history, if it counts) from now on, they are one run again
            if (
                parent.users != current.users
                or len(parent.children or ()) != 1
                or (eviction is not None and not eviction.alike(parent, current))
                or not _join(parent, current)
            ):
                current = parent
            parent = current.parent
        return node

    def extend(self, node: Node, path: Path, first: int, blocks: int) -> Node:
        """Publish a user's own blocks `first` to `blocks` of `path` behind `node`; returns the node that its path now ends with.

        The blocks are in use by one request already. Where the same content was published by another one in the meantime, the
        request goes on with that copy and its own is given back.
        """
        skipped = 0
        new = False
        for segment in path:
            size = len(segment)
            position = max(first - skipped, 0)
            end = min(size, blocks - skipped)
            skipped += size
            while position < end:
                children = node.children
                if children is None:
                    children = node.children = {}
                child = children.get(segment[position])
                if child is None:
                    new = True
                    if self.eviction is None:
                        child = Node(node, segment[position:end], end - position, 1)
                        children[child.first] = child
                    else:
                        child = self._begin(node, segment, position, end)
                else:
                    same = _same(child, segment, position, end)
                    if same < child.length:
                        child = self._split(child, same)
                    self.used -= same
                    self._use(child)
                position += child.length
                node = child
            if skipped >= blocks:
                break
        if new and self.journal is not None:
            self.journal.published(path, blocks)
        return node

    def leave(self, own_blocks: int) -> None:
        """Put a user's `own_blocks` last blocks, which no request can ever match, into the cache, before it releases its path."""
        leaf = Node(None, (), own_blocks, 0)  # no parent: never found by a look-up, evicted before `node` is
        self.used -= own_blocks
        self.cached += own_blocks
        self.idle[leaf] = None
        if self.eviction is not None:
            self.eviction.published(leaf)
            self.eviction.released(leaf)

    def release(self, node: Node) -> None:
        """Stop using a path that ends with `node`."""
        idle, eviction = self.idle, self.eviction
        current: Node | None = node
        while current is not None and current.length:
            current.users -= 1
            if not current.users:
                self.used -= current.length
                self.cached += current.length
                idle[current] = None
                if eviction is not None:
                    eviction.released(current)
            current = current.parent

    def allocate(self, blocks: int) -> None:
        """Take blocks for a request's own use, evicting cached ones where nothing is free; at most ``capacity - used``."""
        self.used += blocks
        over = self.used + self.cached - self.capacity
        if over > 0:
            if self.eviction is None:
                self._evict(over)
            else:
                self._evict_chosen(over)

    def forget_all(self) -> None:
        """Evict all that nobody uses."""
        if self.cached:
            room = self.capacity - self.used
            self.allocate(room)
            self.used -= room

    def nodes(self) -> Iterator[Node]:
        """All findable nodes, parents first (for checks)."""
        stack = list((self.root.children or {}).values())
        while stack:
            node = stack.pop()
            yield node
            if node.children:
                stack.extend(node.children.values())

    def _use(self, node: Node) -> None:
        if not node.users:
            del self.idle[node]
            self.cached -= node.length
            self.used += node.length
        node.users += 1
        if self.eviction is not None:
            self.eviction.used(node)

    def _split(self, node: Node, length: int) -> Node:
        """Cut `node` after `length` blocks; returns the upper part. The lower part keeps its identity for those that hold it."""
        parent = node.parent
        assert parent is not None
        upper = Node(parent, node.keys[:length], length, node.users)
        assert parent.children is not None
        parent.children[upper.first] = upper
        node.keys = node.keys[length:]
        node.first = node.keys[0]
        node.length -= length
        node.parent = upper
        upper.children = {node.first: node}
        if self.eviction is not None:
            self.eviction.cut(upper, node)
        if not node.users:
            # the caller uses the upper part at once, so its place in the queue does not matter
            self.idle[upper] = None
        return upper

    def _evict(self, blocks: int) -> None:
        """Forget the `blocks` least recently used cached blocks."""
        self.cached -= blocks
        self.evicted += blocks
        gone = 0
        idle, journal, on_evict = self.idle, self.journal, self.on_evict
        for node in idle:
            parent = node.parent
            if journal is not None and parent is not None:
                journal.evicted(node, max(node.length - blocks, 0))
            if on_evict is not None:
                on_evict(node)
            if node.length > blocks:
                node.length -= blocks
                if parent is not None:
                    node.keys = node.keys[: node.length]
                break
            blocks -= node.length
            gone += 1
            if parent is not None and parent.children is not None:
                del parent.children[node.first]
            if not blocks:
                break
        for _ in range(gone):
            idle.popitem(last=False)

    def _begin(self, parent: Node, segment: Segment, first: int, last: int) -> Node:
        """A run of the new blocks from `first` on, at most to `last`, that the eviction policy treats all alike."""
        alike: Any = 1
        if last - first > 1:
            alike = self.eviction.begin_alike(parent, segment, first, last)
            if type(alike) is not int or not 1 <= alike <= last - first:
                raise PolicyError(f"{self._named()}.begin_alike answered {alike!r} for {last - first} blocks")
        run = Node(parent, segment[first : first + alike], alike, 1)
        assert parent.children is not None
        parent.children[run.first] = run
        self.eviction.published(run)
        return run

    def _evict_chosen(self, blocks: int) -> None:
        """Make room for `blocks` blocks that are allocated already, from what the eviction policy chooses."""
        while blocks > 0:
            self._drop_expired()  # each time: who went may have been all that kept an expired run
            blocks = self.used + self.cached - self.capacity
            if blocks <= 0:
                return
            node, most = self.eviction.victim(blocks)
            if type(most) is not int or most < 1:
                raise PolicyError(f"{self._named()}.victim answered {most!r} blocks to go; at least one must")
            self._trim(node, min(blocks, most))
            blocks = self.used + self.cached - self.capacity

    def _drop_expired(self) -> None:
        """Forget what the eviction policy does not want to keep any longer, needed or not."""
        eviction = self.eviction
        if not eviction.expires:
            return
        while True:
            node = eviction.expired()
            if node is None:
                return
            self._trim(node, node.length)

    def _trim(self, node: Node, blocks: int) -> None:
        """Forget the last `blocks` blocks (at most all) of a run that the eviction policy chose."""
        if node not in self.idle or node.children:
            raise PolicyError(f"{self._named()} chose a run that is in use, gone or has cached blocks after it")
        blocks = min(blocks, node.length)
        parent, rest = node.parent, node.length - blocks
        self.eviction.evicting(node, blocks)
        if self.journal is not None and parent is not None:
            self.journal.evicted(node, rest)
        if self.on_evict is not None:
            self.on_evict(node)
        self.cached -= blocks
        self.evicted += blocks
        node.length = rest
        if rest:
            if parent is not None:
                node.keys = node.keys[:rest]
            return
        del self.idle[node]
        if parent is not None and parent.children is not None:
            del parent.children[node.first]
            if not parent.children and not parent.users:
                self.eviction.exposed(parent)

    def _named(self) -> str:
        return type(self.eviction).__name__


def _same(child: Node, segment: Segment, position: int, end: int) -> int:
    """How many leading blocks of `child` equal `segment` from `position` on; the first is known to."""
    keys = child.keys
    length = min(child.length, end - position)
    if type(keys) is range and type(segment) is range:
        return length if keys.step == segment.step else 1
    if keys[:length] == segment[position : position + length]:
        return length
    same = 1
    while same < length and keys[same] == segment[position + same]:
        same += 1
    return same


def _join(upper: Node, lower: Node) -> bool:
    """Make `upper` and its only child one run, if their keys allow; the lower part keeps its identity for those that hold it."""
    above, below = upper.keys, lower.keys
    if type(above) is range and type(below) is range:
        if below.start != above.stop or below.step != above.step:
            return False
        lower.keys = range(above.start, below.stop, above.step)
    elif type(above) is tuple and type(below) is tuple:
        lower.keys = (*above, *below)
    else:
        return False
    parent = upper.parent
    assert parent is not None
    assert parent.children is not None
    lower.first = upper.first
    lower.length += upper.length
    lower.parent = parent
    parent.children[lower.first] = lower
    return True
