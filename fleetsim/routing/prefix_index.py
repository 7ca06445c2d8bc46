"""What a gateway believes to be in the replicas' prefix caches: one tree of prefixes, each with the replicas that were sent it.

The tree is path-compressed: a node is a run of blocks that the same replicas were sent. A look-up costs the number of branch points
on a prompt's path, whatever the number of replicas or blocks. A replica that holds a node holds all nodes above it.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np

from fleetsim.routing.min_index import MinIndex
from fleetsim.workload.prefixes import Path, Segment


class PrefixNode:
    """A run of blocks after the path of its parents."""

    __slots__ = ("children", "end", "first", "holders", "keys", "parent", "run", "size")

    def __init__(self, parent: PrefixNode | None, keys: Segment, end: int, holders: dict[int, int]) -> None:
        self.parent = parent
        self.keys = keys
        self.run = type(keys) is range
        self.size = len(keys)
        self.end = end
        """Blocks from the beginning of the prompt to the end of this run."""
        self.holders = holders
        """When (by count of insertions) each replica that holds it was last sent it, in order of the first time."""
        self.children: dict[int, PrefixNode] = {}
        self.first: Any = None
        """The holders for longest as an array, the same object where they are those of the run below; None: to be made again."""


class PrefixIndex:
    """Prefixes and the replicas that were sent them.

    Parameters
    ----------
    replicas : int
        Number of replicas.
    """

    __slots__ = ("_clock", "_held", "_root", "sizes")

    def __init__(self, replicas: int) -> None:
        self.sizes = MinIndex([0] * replicas)
        """Blocks that each replica is believed to hold."""
        self._root = PrefixNode(None, (), 0, {})
        self._held: list[dict[PrefixNode, None]] = [{} for _ in range(replicas)]
        self._clock = 0

    def longest(self, path: Path) -> tuple[int, PrefixNode]:
        """Leading blocks of `path` that some replica holds, and the node that they end in (the root, if there are none)."""
        node, blocks = self._root, 0
        for segment in path:
            position, end, run = 0, len(segment), type(segment) is range
            while position < end:
                child = node.children.get(segment[position])
                if child is None:
                    return blocks, node
                same = child.size
                if same > end - position or not (run and child.run):
                    same = _same(child, segment, position, end)
                blocks += same
                node = child
                if same < child.size:
                    return blocks, node
                position += same
        return blocks, node

    def insert(self, path: Path, replica: int) -> int:
        """Note that `replica` is sent a prompt that begins with `path`; how many of its leading blocks it was sent before."""
        self._clock += 1
        node, added = self._root, 0
        for segment in path:
            position, end, run = 0, len(segment), type(segment) is range
            while position < end:
                child = node.children.get(segment[position])
                if child is None:
                    keys = segment[position:end] if position else segment
                    child = PrefixNode(node, keys, node.end + end - position, {})
                    node.children[keys[0]] = child
                else:
                    same = child.size
                    if same > end - position or not (run and child.run):
                        same = _same(child, segment, position, end)
                    if same < child.size:
                        child = self._split(child, same)
                if replica not in child.holders:
                    added += child.size
                    self._held[replica][child] = None
                    child.first = None
                child.holders[replica] = self._clock
                position += child.size
                node = child
        if added:
            self.sizes.add(replica, added)
        return node.end - added

    def mark(self, path: Path, limit: int, unit: int, hits: Any) -> None:
        """Set ``hits[replica]`` to `unit` for each leading block of `path` that it holds, for up to `limit` holders of each run."""
        blocks, node = self.longest(path)
        mark_above(node, blocks, limit, unit, hits)

    def held(self, path: Path, replica: int) -> int:
        """Leading blocks of `path` that `replica` holds."""
        node, blocks = self._root, 0
        for segment in path:
            position, end, run = 0, len(segment), type(segment) is range
            while position < end:
                child = node.children.get(segment[position])
                if child is None or replica not in child.holders:
                    return blocks
                same = child.size
                if same > end - position or not (run and child.run):
                    same = _same(child, segment, position, end)
                blocks += same
                node = child
                if same < child.size:
                    return blocks
                position += same
        return blocks

    def remove(self, path: Path, kept: int, replica: int) -> None:
        """Note that `replica` holds at most the first `kept` blocks of `path`, and nothing that continues the rest."""
        node, gone, lost = self._root, 0, []
        for segment in path:
            position, end = 0, len(segment)
            while position < end:
                child = node.children.get(segment[position])
                if child is None or replica not in child.holders:
                    position = -1
                    break
                same = _same(child, segment, position, end)
                if node.end < kept < node.end + same:
                    child = self._split(child, kept - node.end)
                    same = child.size
                elif node.end + same > kept:
                    lost.append(child)
                if same < child.size:
                    position = -1
                    break
                node = child
                position += same
            if position < 0:
                break
        for node in reversed(lost):
            gone += node.size
            del node.holders[replica]
            node.first = None
            del self._held[replica][node]
            if not node.holders and node.parent is not None:
                del node.parent.children[node.keys[0]]
        if gone:
            self.sizes.add(replica, -gone)

    def trim(self, replica: int, blocks: int) -> None:
        """Forget whole runs that `replica` was not sent for longest, last blocks first, until it holds at most `blocks`."""
        held = self._held[replica]
        surplus = self.sizes.values[replica] - blocks
        if surplus <= 0:
            return
        gone = 0
        for node in sorted(held, key=lambda node: (node.holders[replica], -node.end)):
            if gone >= surplus:
                break
            gone += node.size
            del held[node]
            del node.holders[replica]
            node.first = None
            if not node.holders and node.parent is not None:
                del node.parent.children[node.keys[0]]
        self.sizes.add(replica, -gone)

    def _split(self, node: PrefixNode, length: int) -> PrefixNode:
        """Cut `node` after `length` blocks; returns the upper part."""
        parent = node.parent
        assert parent is not None
        upper = PrefixNode(parent, node.keys[:length], node.end - node.size + length, dict(node.holders))
        upper.first = node.first
        parent.children[upper.keys[0]] = upper
        node.parent = upper
        node.keys = node.keys[length:]
        node.size -= length
        upper.children[node.keys[0]] = node
        for replica in upper.holders:
            self._held[replica][upper] = None
        return upper


def mark_above(node: PrefixNode, blocks: int, limit: int, unit: int, hits: Any) -> None:
    """Set ``hits[replica]`` to `unit` for each of `blocks` leading blocks, which end in `node`, that it holds.

    Of the holders of each run only the `limit` ones that have held it for longest count.
    """
    runs: list[tuple[Any, int]] = []
    run: PrefixNode | None = node
    below: Any = None
    size = 0
    while run is not None and blocks:
        holders = len(run.holders)
        if holders != size or holders > limit:  # whoever holds a run holds those above it: as many are the same ones
            size = holders
            count = min(holders, limit)
            first = run.first
            if first is None or len(first) != count:
                first = run.first = _first(run.holders, count)
            if first is not below:
                if holders > limit and below is not None and len(below) == count and (first == below).all():
                    run.first = below
                else:
                    runs.append((first, blocks * unit))
                    below = first
        run = run.parent
        blocks = 0 if run is None else run.end
    while runs:
        first, tokens = runs.pop()
        hits[first] = tokens


def _first(holders: dict[int, int], count: int) -> Any:
    """Numbers of the first `count` holders; sorted if that is all of them, so that equal sets are equal arrays."""
    found = np.fromiter(islice(holders, count), np.intp, count)
    if count == len(holders):
        found.sort()
    return found


def _same(node: PrefixNode, segment: Segment, position: int, end: int) -> int:
    """How many leading keys of `node` equal those of `segment` from `position` to `end`; the first is known to."""
    keys = node.keys
    length = min(node.size, end - position)
    if type(keys) is range and type(segment) is range:
        return length  # they come from one stream, and so have one step
    if keys[:length] == segment[position : position + length]:
        return length
    same = 1
    while same < length and keys[same] == segment[position + same]:
        same += 1
    return same
