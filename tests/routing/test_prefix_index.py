"""The gateway's tree of prefixes, against a plain set of prefixes per replica."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fleetsim.routing.prefix_index import PrefixIndex, PrefixNode
from fleetsim.workload.prefixes import Path

STREAMS = (1000, 2000, 3000)


def make(parts: list[tuple[int, int, bool]]) -> Path:
    """A path of runs, and of explicit keys where the flag says so; short ones, so that many share a beginning."""
    path: list[range | tuple[int, ...]] = []
    for stream, length, explicit in parts:
        first = STREAMS[stream] + 100_000 * len(path)
        run = range(first, first + length * 16, 16)
        path.append(tuple(first + i * i for i in range(length)) if explicit else run)
    return tuple(path)


paths = st.lists(st.tuples(st.integers(0, 1), st.integers(1, 6), st.just(False)), min_size=1, max_size=3) | st.lists(
    st.tuples(st.integers(0, 1), st.integers(1, 6), st.just(True)), min_size=1, max_size=3
)
"""Runs or keys of a trace: one workload has one of them."""


def flat(path: Path) -> tuple[int, ...]:
    return tuple(key for segment in path for key in segment)


def nodes(index: PrefixIndex) -> list[PrefixNode]:
    found, stack = [], list((index._root.children or {}).values())
    while stack:
        node = stack.pop()
        found.append(node)
        stack.extend((node.children or {}).values())
    return found


def holders_of(node: PrefixNode) -> set[int]:
    return set(node.holders)


def found_again(index: PrefixIndex, replica: int) -> list[PrefixNode]:
    """Runs that a replica holds, by way of the last run of each insertion; earliest insertions first, each from its end."""
    found: list[PrefixNode] = []
    for sent, last in index._last[replica].items():
        node: PrefixNode | None = last
        assert last.holders[replica] == sent
        while node is not None and node.holders.get(replica) == sent:
            found.append(node)
            node = node.parent
    return found


@given(st.lists(st.tuples(paths, st.integers(0, 3)), max_size=40), paths)
def test_longest_prefix_and_its_holders_are_those_of_a_search_through_everything(
    inserted: list[tuple[list[tuple[int, int, bool]], int]], wanted: list[tuple[int, int, bool]]
) -> None:
    index = PrefixIndex(4)
    held: list[set[tuple[int, ...]]] = [set() for _ in range(4)]
    for parts, replica in inserted:
        path = make(parts)
        index.insert(path, replica)
        keys = flat(path)
        held[replica] |= {keys[:n] for n in range(1, len(keys) + 1)}
    assert index.sizes.values == [len(prefixes) for prefixes in held]
    keys = flat(make(wanted))
    best = max((n for n in range(1, len(keys) + 1) if any(keys[:n] in h for h in held)), default=0)
    blocks, node = index.longest(make(wanted))
    assert blocks == best
    if best:
        assert holders_of(node) == {replica for replica in range(4) if keys[:best] in held[replica]}


@given(st.lists(st.tuples(paths, st.integers(0, 3), st.integers(-1, 12)), max_size=40))
def test_to_insert_behind_what_was_looked_up_is_to_insert(
    events: list[tuple[list[tuple[int, int, bool]], int, int]],
) -> None:
    searched, known = PrefixIndex(4), PrefixIndex(4)
    for parts, replica, keep in events:
        path = make(parts)
        assert known.insert_behind(*known.longest(path), path, replica) == searched.insert(path, replica)
        if keep >= 0:
            searched.trim(replica, keep)
            known.trim(replica, keep)
    assert known.sizes.values == searched.sizes.values
    assert tree(known) == tree(searched)
    for replica in range(4):
        assert {node.end: sent for sent, node in known._last[replica].items()} == {
            node.end: sent for sent, node in searched._last[replica].items()
        }


def tree(index: PrefixIndex) -> dict[tuple[int, ...], list[tuple[int, int]]]:
    """Holders of each run, in their order, by the keys up to its end."""
    found: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for node in nodes(index):
        keys: tuple[int, ...] = ()
        above: PrefixNode | None = node
        while above is not None:
            keys, above = (*above.keys, *keys), above.parent
        found[keys] = list(node.holders.items())
    return found


@given(
    st.lists(st.tuples(paths, st.integers(0, 3), st.integers(-1, 12)), max_size=40),
)
def test_trimming_keeps_what_was_sent_last_and_never_a_block_without_those_before_it(
    events: list[tuple[list[tuple[int, int, bool]], int, int]],
) -> None:
    """Sizes are sums over nodes; the rest is the most recent; whoever holds a node holds its parents; no empty node stays."""
    index = PrefixIndex(4)
    for parts, replica, keep in events:
        index.insert(make(parts), replica)
        if keep < 0:
            continue
        before = {node: node.holders[replica] for node in nodes(index) if replica in node.holders}
        index.trim(replica, keep)
        kept = {node for node in nodes(index) if replica in node.holders}
        lost = before.keys() - kept
        in_order = sorted(before, key=lambda node: (before[node], -node.end))
        assert lost == set(in_order[: len(lost)])
        assert index.sizes.values[replica] <= keep or not lost
        assert max((before[node] for node in lost), default=0) <= min((before[node] for node in kept), default=1 << 30)
        if lost:  # no more than needed: without the run that went last, there would be too many
            size = index.sizes.values[replica]
            last = max(lost, key=lambda node: (before[node], -node.end))
            assert size + len(last.keys) > keep
    sizes = [0] * 4
    for node in nodes(index):
        assert node.holders
        assert node.parent is index._root or (node.parent and holders_of(node) <= holders_of(node.parent))
        assert node.parent is not None
        assert node.end == node.parent.end + len(node.keys)
        for replica in node.holders:
            sizes[replica] += len(node.keys)
    assert sizes == index.sizes.values
    assert [sum(len(node.keys) for node in found_again(index, replica)) for replica in range(4)] == sizes


@given(st.lists(st.tuples(paths, st.integers(0, 2), st.integers(-1, 12)), max_size=40), paths)
def test_removed_tails_are_gone_and_nothing_else(
    events: list[tuple[list[tuple[int, int, bool]], int, int]], wanted: list[tuple[int, int, bool]]
) -> None:
    """Against sets of prefixes; as in a cache, blocks go from the end, so nothing held continues what is removed."""
    index = PrefixIndex(3)
    held: list[set[tuple[int, ...]]] = [set() for _ in range(3)]
    for parts, replica, kept in events:
        path = make(parts)
        keys = flat(path)
        if kept < 0:
            index.insert(path, replica)
            held[replica] |= {keys[:n] for n in range(1, len(keys) + 1)}
            continue
        beyond = {prefix for prefix in held[replica] if len(prefix) > kept and prefix[: kept + 1] == keys[: kept + 1]}
        if beyond <= {keys[:n] for n in range(len(keys) + 1)}:
            index.remove(path, kept, replica)
            held[replica] -= beyond
    assert index.sizes.values == [len(prefixes) for prefixes in held]
    keys = flat(make(wanted))
    for replica in range(3):
        expected = max((n for n in range(1, len(keys) + 1) if keys[:n] in held[replica]), default=0)
        assert index.held(make(wanted), replica) == expected
    for node in nodes(index):
        assert node.holders
        assert node.parent is index._root or (node.parent and holders_of(node) <= holders_of(node.parent))
    for replica in range(3):
        assert sum(node.size for node in found_again(index, replica)) == index.sizes.values[replica]


@given(
    st.lists(st.tuples(paths, st.integers(0, 5), st.integers(-1, 12)), max_size=40),
    paths,
    st.integers(1, 6),
)
def test_marked_hits_are_those_of_the_first_holders_of_each_run_however_often_they_were_marked(
    events: list[tuple[list[tuple[int, int, bool]], int, int]], wanted: list[tuple[int, int, bool]], limit: int
) -> None:
    """Against all runs one after the other; arrays that are kept between marks must follow every change."""
    index = PrefixIndex(6)
    path = make(wanted)
    for parts, replica, keep in events:
        if keep < 0:
            index.insert(make(parts), replica)
        else:
            index.trim(replica, keep)
        hits, expected = np.zeros(6), np.zeros(6)
        index.mark(path, limit, 16, hits)
        blocks, at = index.longest(path)
        runs: list[tuple[PrefixNode, int]] = []
        node: PrefixNode | None = at
        while node is not None and blocks:
            runs.append((node, blocks))
            node = node.parent
            blocks = 0 if node is None else node.end
        for run, blocks in reversed(runs):
            expected[list(run.holders)[:limit]] = blocks * 16
        assert hits.tolist() == expected.tolist()


@given(st.lists(st.tuples(paths, st.integers(0, 3)), max_size=40))
def test_an_insertion_says_what_was_sent_before(inserted: list[tuple[list[tuple[int, int, bool]], int]]) -> None:
    index = PrefixIndex(4)
    for parts, replica in inserted:
        path = make(parts)
        before = index.held(path, replica)
        assert index.insert(path, replica) == before
