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

    __slots__ = ("children", "end", "first", "following", "holders", "keys", "parent", "run", "size")

    def __init__(self, parent: PrefixNode | None, keys: Segment, end: int, holders: dict[int, int]) -> None:
        self.parent = parent
        self.keys = keys
        self.run = type(keys) is range
        self.size = len(keys)
        self.end = end
        """Blocks from the beginning of the prompt to the end of this run."""
        self.holders = holders
        """When (by count of insertions) each replica that holds it was last sent it, in order of the first time."""
        self.children: dict[int, PrefixNode] | None = None  # most nodes never have any
        self.following: PrefixNode | None = None
        """Of a run of a stream: the child that goes on with that stream, where it is known, which no key has to be computed for."""
        self.first: Any = None
        """The holders for longest as an array, in order of their numbers, the same object where they are those of the run below;
        None: to be made again."""


class PrefixIndex:
    """Prefixes and the replicas that were sent them.

    Parameters
    ----------
    replicas : int
        Number of replicas.
    """

    __slots__ = ("_clock", "_last", "_root", "sizes")

    def __init__(self, replicas: int) -> None:
        self.sizes = MinIndex([0] * replicas)
        """Blocks that each replica is believed to hold."""
        self._root = PrefixNode(None, (), 0, {})
        self._last: list[dict[int, PrefixNode]] = [{} for _ in range(replicas)]
        """Of each replica, by insertion, earliest first: the run with which it ended, as long as that was not sent again. The runs
        of an insertion that were not are this one and those above it: what was not sent for longest is found without a search."""
        self._clock = 0

    def longest(self, path: Path) -> tuple[int, PrefixNode]:
        """Leading blocks of `path` that some replica holds, and the node that they end in (the root, if there are none)."""
        node, blocks = self._root, 0
        for segment in path:
            position, end, run = 0, len(segment), type(segment) is range
            while position < end:
                child = node.following if run and position and node.run else None
                if child is None:
                    child = _child(node, segment, position)
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
        clock = self._clock = self._clock + 1
        last = self._last[replica]
        node, added = self._root, 0
        for segment in path:
            position, end, run = 0, len(segment), type(segment) is range
            while position < end:
                child = node.following if run and position and node.run else None
                if child is None:
                    child = _child(node, segment, position)
                if child is None:
                    child = _added(node, segment, position, end)
                else:
                    same = child.size
                    if same > end - position or not (run and child.run):
                        same = _same(child, segment, position, end)
                    if same < child.size:
                        child = self._split(child, same)
                before = child.holders.get(replica, 0)
                if not before:
                    added += child.size
                    child.first = None
                elif last.get(before) is child:
                    del last[before]
                child.holders[replica] = clock
                position += child.size
                node = child
        if node is not self._root:
            last[clock] = node
        if added:
            self.sizes.add(replica, added)
        return node.end - added

    def insert_behind(self, blocks: int, node: PrefixNode, path: Path, replica: int) -> int:
        """The same as `insert`, where `longest` has just answered (`blocks`, `node`): the way to there is not looked for again."""
        clock = self._clock = self._clock + 1
        last = self._last[replica]
        if blocks < node.end:
            node = self._split(node, node.size - node.end + blocks)
        added = 0
        above: PrefixNode = node
        while above.parent is not None:
            before = above.holders.get(replica, 0)
            if not before:
                added += above.size
                above.first = None
            elif last.get(before) is above:
                del last[before]
            above.holders[replica] = clock
            above = above.parent
        for segment in path:
            end = len(segment)
            if blocks >= end:
                blocks -= end
                continue
            node = _added(node, segment, blocks, end)
            node.holders[replica] = clock
            added += node.size
            blocks = 0
        if node is not self._root:
            last[clock] = node
        if added:
            self.sizes.add(replica, added)
        return node.end - added

    def mark(self, path: Path, limit: int, unit: int, hits: Any) -> None:
        """Set ``hits[replica]`` to `unit` for each leading block of `path` that it holds, for up to `limit` holders of each run."""
        blocks, node = self.longest(path)
        mark_above(node, blocks, limit, unit, hits)

    def levels(self, path: Path, limit: int, unit: int) -> list[tuple[PrefixNode, int]]:
        """Who holds how much of `path`, longest first: see `levels_above`."""
        blocks, node = self.longest(path)
        return levels_above(node, blocks, limit, unit)

    def held(self, path: Path, replica: int) -> int:
        """Leading blocks of `path` that `replica` holds."""
        node, blocks = self._root, 0
        for segment in path:
            position, end, run = 0, len(segment), type(segment) is range
            while position < end:
                child = node.following if run and position and node.run else None
                if child is None:
                    child = _child(node, segment, position)
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
        node, gone, lost, last = self._root, 0, [], self._last[replica]
        for segment in path:
            position, end = 0, len(segment)
            while position < end:
                child = _child(node, segment, position)
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
            sent = node.holders[replica]
            if last.get(sent) is node:
                if node.parent is not None and node.parent.holders.get(replica, 0) == sent:
                    last[sent] = node.parent
                else:
                    del last[sent]
            _forget(node, replica)
        if gone:
            self.sizes.add(replica, -gone)

    def trim(self, replica: int, blocks: int) -> None:
        """Forget whole runs that `replica` was not sent for longest, last blocks first, until it holds at most `blocks`."""
        surplus = self.sizes.values[replica] - blocks
        if surplus <= 0:
            return
        last, gone, over = self._last[replica], 0, []
        for sent, node in last.items():
            while gone < surplus and node.holders.get(replica, 0) == sent:
                gone += node.size
                _forget(node, replica)
                assert node.parent is not None
                node = node.parent
            if node.holders.get(replica, 0) == sent:
                last[sent] = node  # the rest of this insertion stays
                break
            over.append(sent)
            if gone >= surplus:
                break
        for sent in over:
            del last[sent]
        self.sizes.add(replica, -gone)

    def _split(self, node: PrefixNode, length: int) -> PrefixNode:
        """Cut `node` after `length` blocks; returns the upper part."""
        parent = node.parent
        assert parent is not None
        upper = PrefixNode(parent, node.keys[:length], node.end - node.size + length, dict(node.holders))
        upper.first = node.first
        upper.following = node if node.run else None
        if parent.following is node:
            parent.following = upper
        assert parent.children is not None
        parent.children[upper.keys[0]] = upper
        node.parent = upper
        node.keys = node.keys[length:]
        node.size -= length
        upper.children = {node.keys[0]: node}
        return upper


def _child(node: PrefixNode, segment: Segment, position: int) -> PrefixNode | None:
    """The run below `node` that begins as `segment` does at `position`."""
    children = node.children
    if children is None:
        return None
    child = children.get(segment[position])
    if child is not None and position and child.run and node.run and type(segment) is range:
        node.following = child
    return child


def _added(node: PrefixNode, segment: Segment, position: int, end: int) -> PrefixNode:
    """A new run below `node` with the keys of `segment` from `position` to its `end`."""
    keys = segment[position:end] if position else segment
    child = PrefixNode(node, keys, node.end + end - position, {})
    children = node.children
    if children is None:
        children = node.children = {}
    children[keys[0]] = child
    return child


def _forget(node: PrefixNode, replica: int) -> None:
    """Note that a replica does not hold a run any more; whoever nobody holds is gone."""
    del node.holders[replica]
    node.first = None
    parent = node.parent
    if not node.holders and parent is not None and parent.children is not None:
        del parent.children[node.keys[0]]
        if parent.following is node:
            parent.following = None


def mark_above(node: PrefixNode, blocks: int, limit: int, unit: int, hits: Any) -> None:
    """Set ``hits[replica]`` to `unit` for each of `blocks` leading blocks, which end in `node`, that it holds.

    Of the holders of each run only the `limit` ones that have held it for longest count.
    """
    mark(levels_above(node, blocks, limit, unit), limit, hits)


def mark(levels: list[tuple[PrefixNode, int]], limit: int, hits: Any) -> None:
    """Set ``hits[replica]`` to what `levels` say of it."""
    for run, tokens in reversed(levels):
        hits[first_holders(run, limit)] = tokens


def levels_above(node: PrefixNode, blocks: int, limit: int, unit: int) -> list[tuple[PrefixNode, int]]:
    """Runs by who holds them, and `unit` for each of `blocks` leading blocks, which end in `node`, up to there; longest first.

    Whoever is in several holds what the first one says. Of the holders of each run only the `limit` ones that have held it for
    longest count (`first_holders`).
    """
    levels: list[tuple[PrefixNode, int]] = []
    run: PrefixNode | None = node
    below: Any = None
    size = 0
    while run is not None and blocks:
        holders = len(run.holders)
        if holders > limit:
            first = first_holders(run, limit)
            if below is not None and (first is below or (first == below).all()):
                run.first = below
            else:
                levels.append((run, blocks * unit))
                below = first
        elif holders != size:  # whoever holds a run holds those above it: as many are the same ones
            levels.append((run, blocks * unit))
        size = holders
        run = run.parent
        blocks = 0 if run is None else run.end
    return levels


def first_holders(node: PrefixNode, limit: int) -> Any:
    """Numbers of the `limit` replicas that have held a run for longest, sorted, so that equal sets are equal arrays."""
    count = min(len(node.holders), limit)
    first = node.first
    if first is None or len(first) != count:
        first = node.first = np.fromiter(islice(node.holders, count), np.intp, count)
        first.sort()
    return first


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
