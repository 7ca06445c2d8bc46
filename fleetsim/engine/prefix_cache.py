"""Paged KV blocks of one rank, with automatic prefix caching, counted in runs.

The cache is a path-compressed radix tree. A node is a run of consecutive blocks that always had the same users, so they share one
reference count and one last-use time; a request costs the number of branch points on its path, not its number of blocks. A node
that nobody uses waits in a queue by the time it was released, children before their parents, and is trimmed from its tail when
room is needed: exactly least-recently-used eviction of leaf blocks, block by block.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from fleetsim.workload.prefixes import Path, Segment


class Node:
    """A run of blocks after the path of its parents."""

    __slots__ = ("children", "first", "keys", "length", "parent", "users")

    def __init__(self, parent: Node | None, keys: Segment, length: int, users: int) -> None:
        self.parent = parent
        self.keys = keys
        self.first = keys[0] if keys else 0
        self.length = length
        self.users = users
        self.children: dict[int, Node] = {}


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
    """

    __slots__ = ("cached", "capacity", "enabled", "evicted", "idle", "root", "used")

    def __init__(self, capacity: int, enabled: bool = True) -> None:
        self.capacity = capacity
        self.enabled = enabled
        self.used = 0
        self.cached = 0
        self.evicted = 0
        self.root = Node(None, (), 0, 1)
        self.idle: OrderedDict[Node, None] = OrderedDict()
        """Nodes without users, least recently released first."""

    @property
    def available(self) -> int:
        """Blocks that could be allocated now: free ones and cached ones that may be evicted."""
        return self.capacity - self.used

    @property
    def free(self) -> int:
        """Blocks that hold nothing."""
        return self.capacity - self.used - self.cached

    def lookup(self, path: Path, limit: int) -> tuple[int, int]:
        """Blocks of `path` that are held, and how many of these nobody uses now; at most `limit` blocks are looked at."""
        node, held, idle = self.root, 0, 0
        for segment in path:
            position, end = 0, min(len(segment), limit - held)
            while position < end:
                child = node.children.get(segment[position])
                if child is None:
                    return held, idle
                same = _same(child, segment, position, end)
                held += same
                if not child.users:
                    idle += same
                if same < child.length:
                    return held, idle
                position += same
                node = child
            if held >= limit:
                break
        return held, idle

    def acquire(self, path: Path, blocks: int) -> Node:
        """Use the first `blocks` blocks of `path`, all of which are held; returns the node they end with."""
        node, taken = self.root, 0
        if not blocks:
            return node
        for segment in path:
            position, end = 0, min(len(segment), blocks - taken)
            while position < end:
                child = node.children[segment[position]]
                wanted = end - position
                if child.length > wanted:
                    child = self._split(child, wanted)
                self._use(child)
                position += child.length
                taken += child.length
                node = child
            if taken >= blocks:
                break
        return node

    def extend(self, node: Node, path: Path, first: int, blocks: int) -> Node:
        """Publish a user's own blocks `first` to `blocks` of `path` behind `node`; returns the node that its path now ends with.

        The blocks are in use by one request already. Where the same content was published by another one in the meantime, the
        request goes on with that copy and its own is given back.
        """
        skipped = 0
        for segment in path:
            size = len(segment)
            position = max(first - skipped, 0)
            end = min(size, blocks - skipped)
            skipped += size
            while position < end:
                child = node.children.get(segment[position])
                if child is None:
                    run = segment[position:end]
                    child = Node(node, run, end - position, 1)
                    node.children[child.first] = child
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
        return node

    def leave(self, own_blocks: int) -> None:
        """Put a user's `own_blocks` last blocks, which no request can ever match, into the cache, before it releases its path."""
        leaf = Node(None, (), own_blocks, 0)  # no parent: never found by a look-up, evicted before `node` is
        self.used -= own_blocks
        self.cached += own_blocks
        self.idle[leaf] = None

    def release(self, node: Node) -> None:
        """Stop using a path that ends with `node`."""
        idle = self.idle
        current: Node | None = node
        while current is not None and current.length:
            current.users -= 1
            if not current.users:
                self.used -= current.length
                self.cached += current.length
                idle[current] = None
            current = current.parent

    def allocate(self, blocks: int) -> None:
        """Take blocks for a request's own use, evicting cached ones where nothing is free; `blocks` ≤ `available`."""
        self.used += blocks
        over = self.used + self.cached - self.capacity
        if over > 0:
            self._evict(over)

    def drop(self, blocks: int) -> None:
        """Give back blocks of a request's own use without caching them."""
        self.used -= blocks

    def nodes(self) -> Iterator[Node]:
        """All findable nodes, parents first (for checks)."""
        stack = list(self.root.children.values())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def _use(self, node: Node) -> None:
        if not node.users:
            del self.idle[node]
            self.cached -= node.length
            self.used += node.length
        node.users += 1

    def _split(self, node: Node, length: int) -> Node:
        """Cut `node` after `length` blocks; returns the upper part. The lower part keeps its identity for those that hold it."""
        parent = node.parent
        assert parent is not None
        upper = Node(parent, node.keys[:length], length, node.users)
        parent.children[upper.first] = upper
        node.keys = node.keys[length:]
        node.first = node.keys[0]
        node.length -= length
        node.parent = upper
        upper.children[node.first] = node
        if not node.users:
            # the caller uses the upper part at once, so its place in the queue does not matter
            self.idle[upper] = None
        return upper

    def _evict(self, blocks: int) -> None:
        """Forget the `blocks` least recently used cached blocks."""
        self.cached -= blocks
        self.evicted += blocks
        idle = self.idle
        while blocks > 0:
            node, _ = idle.popitem(last=False)
            if node.length <= blocks:
                blocks -= node.length
                if node.parent is not None:
                    del node.parent.children[node.first]
            else:
                node.length -= blocks
                if node.parent is not None:
                    node.keys = node.keys[: node.length]
                idle[node] = None
                idle.move_to_end(node, last=False)
                return


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
