"""The prefix cache counted in runs against one that keeps every block as an object."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from fleetsim.engine.prefix_cache import Node, PrefixCache
from fleetsim.workload.prefixes import Content, Path, Segment, private_path

STRIDE = 16


class Block:
    """One block that others may find: its key, the block before it, who uses it, and since when nobody does."""

    def __init__(self, key: int, parent: Block | None) -> None:
        self.key = key
        self.parent = parent
        self.children: dict[int, Block] = {}
        self.users = 0

    @property
    def path(self) -> tuple[int, ...]:
        """Keys from the first block on."""
        return (*self.parent.path, self.key) if self.parent else ()


class BlockByBlock:
    """Least-recently-used eviction of blocks without users; of blocks released together, the deepest first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.root = Block(-1, None)
        self.own = 0
        """Blocks in use that nobody can find."""
        self.queue: list[Block | None] = []
        """Blocks that nobody uses, next to go first; None for those that nobody can find."""
        self.evicted = 0

    def blocks(self) -> Iterator[Block]:
        stack = list(self.root.children.values())
        while stack:
            block = stack.pop()
            yield block
            stack.extend(block.children.values())

    @property
    def used(self) -> int:
        return self.own + sum(block.users > 0 for block in self.blocks())

    def lookup(self, keys: tuple[int, ...]) -> list[Block]:
        found, block = [], self.root
        for key in keys:
            if key not in block.children:
                break
            block = block.children[key]
            found.append(block)
        return found

    def use(self, block: Block) -> None:
        if not block.users:
            self.queue.remove(block)
        block.users += 1

    def allocate(self, count: int) -> None:
        for _ in range(count):
            if self.used + len(self.queue) == self.capacity:
                gone = self.queue.pop(0)
                self.evicted += 1
                if gone is not None:
                    assert not gone.children
                    assert gone.parent is not None
                    del gone.parent.children[gone.key]
            self.own += 1

    def publish(self, last: Block, keys: tuple[int, ...]) -> Block:
        """Let others find the user's next blocks; where they can find the same already, use those and give back one's own."""
        for key in keys:
            self.own -= 1
            if key in last.children:
                last = last.children[key]
                self.use(last)
            else:
                last.children[key] = Block(key, last)
                last = last.children[key]
                last.users = 1
        return last

    def leave(self, count: int) -> None:
        """Keep blocks that nobody can find."""
        self.own -= count
        self.queue += [None] * count

    def release(self, last: Block) -> None:
        while last.parent is not None:
            last.users -= 1
            if not last.users:
                self.queue.append(last)
            last = last.parent


@dataclass
class Running:
    """A request that holds blocks in both caches."""

    number: int
    path: Path
    node: Node
    last: Block
    shared: int
    """Blocks of its path that others can find."""
    held: int
    """All of its blocks."""

    @property
    def keys(self) -> tuple[int, ...]:
        return tuple(chain.from_iterable(self.path))


def stream(number: int, first: int, blocks: int) -> range:
    start = (number + 1) * 10_000 + first * STRIDE
    return range(start, start + blocks * STRIDE, STRIDE)


segments = st.builds(
    # explicit keys are never those of a run
    lambda number, first, blocks, explicit: (
        tuple(stream(number + 3, first, blocks)) if explicit else stream(number, first, blocks)
    ),
    st.integers(0, 2),
    st.sampled_from([0, 0, 0, 3]),
    st.integers(1, 9),
    st.sampled_from([False, False, True]),
)


def merged(parts: Iterable[Segment]) -> Path:
    """A path as the workload makes it: no two segments in a row that one could stand for."""
    path: list[Segment] = []
    for part in parts:
        before = path[-1] if path else None
        if isinstance(before, tuple) and isinstance(part, tuple):
            path[-1] = (*before, *part)
        elif isinstance(before, range) and isinstance(part, range) and before.stop == part.start:
            path[-1] = range(before.start, part.stop, STRIDE)
        else:
            path.append(part)
    return tuple(path)


paths = st.lists(segments, min_size=1, max_size=4).map(merged)


class Caches(RuleBasedStateMachine):
    """Both caches, told the same; requests come, compute, decode, end and are preempted in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[Running] = []
        self.paths: list[Path] = []
        self.count = 0
        self.fast, self.plain = PrefixCache(24), BlockByBlock(24)

    # --- what can happen -----------------------------------------------------------------------------------------

    @rule(path=paths, known=st.integers(0, 30), cut=st.integers(0, 3), planned=st.integers(1, 12), now=st.booleans())
    def admit(self, path: Path, known: int, cut: int, planned: int, now: bool) -> None:
        """A request comes: hits are looked up, used, and room for the first chunk is made."""
        if known < len(self.paths):
            path = merged((*self.paths[known][: cut + 1], *path[cut:]))  # it begins like an earlier one
        self.paths.append(path)
        keys = tuple(chain.from_iterable(path))
        limit = len(keys) - 1
        hits, found = self.fast.lookup(path, limit), self.plain.lookup(keys[:limit])
        assert hits == len(found)
        assert self.fast.hit_idle == sum(not block.users for block in found)
        planned = max(planned, hits + 1)
        if planned - hits + self.fast.hit_idle > self.fast.capacity - self.fast.used:
            return
        node = self.fast.acquire_hit() if hits else self.fast.root
        for block in reversed(found):
            self.plain.use(block)
        self.fast.allocate(planned - hits)
        self.plain.allocate(planned - hits)
        last = found[-1] if found else self.plain.root
        request = Running(self.count, path, node, last, hits, planned)
        self.count += 1
        self.running.append(request)
        if now:
            self._publish(request, planned)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), upto=st.integers(1, 30))
    def publish(self, data: st.DataObject, upto: int) -> None:
        """Some of a request's blocks become findable, in one go or little by little."""
        self._publish(data.draw(st.sampled_from(self.running)), upto)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), blocks=st.integers(1, 5))
    def grow(self, data: st.DataObject, blocks: int) -> None:
        """A request computes or decodes on."""
        if blocks <= self.fast.capacity - self.fast.used:
            data.draw(st.sampled_from(self.running)).held += blocks
            self.fast.allocate(blocks)
            self.plain.allocate(blocks)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), partial=st.booleans())
    def finish(self, data: st.DataObject, partial: bool) -> None:
        """A request ends; its last blocks cannot be found but are full, except perhaps one."""
        request = self._take(data)
        own = request.held - request.shared
        full = own - (partial and own > 0)
        if full:
            self.fast.leave(full)
            self.plain.leave(full)
        self._release(request, own - full)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), partial=st.booleans())
    def preempt(self, data: st.DataObject, partial: bool) -> None:
        """A request is preempted: it may find all its full blocks again, by keys of its own where content is not known."""
        request = self._take(data)
        known = len(request.keys)
        request.path = (*request.path, private_path(request.number, known, 100))
        full = request.held - (partial and request.held > request.shared)
        self._publish(request, full)
        self.paths.append(request.path)
        self._release(request, request.held - full)

    # --- how ----------------------------------------------------------------------------------------------------

    def _take(self, data: st.DataObject) -> Running:
        return self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))

    def _publish(self, request: Running, upto: int) -> None:
        keys = request.keys
        upto = min(upto, request.held, len(keys))
        if upto > request.shared:
            request.node = self.fast.extend(request.node, request.path, request.shared, upto)
            request.last = self.plain.publish(request.last, keys[request.shared : upto])
            request.shared = upto

    def _release(self, request: Running, own: int) -> None:
        self.fast.used -= own
        self.plain.own -= own
        if request.node is not self.fast.root:
            self.fast.release(request.node)
        self.plain.release(request.last)

    # --- what must agree ------------------------------------------------------------------------------------------

    @invariant()
    def same_counts(self) -> None:
        fast, plain = self.fast, self.plain
        assert fast.used == plain.used
        assert fast.cached == len(plain.queue)
        assert fast.free == plain.capacity - plain.used - len(plain.queue) >= 0
        assert fast.evicted == plain.evicted

    @invariant()
    def same_blocks_and_users(self) -> None:
        expanded = {path: node.users for node in self.fast.nodes() for path in blocks_of(node)}
        assert expanded == {block.path: block.users for block in self.plain.blocks()}

    @invariant()
    def same_order_of_eviction(self) -> None:
        order: list[tuple[int, ...] | None] = []
        for node in self.fast.idle:
            order += [None] * node.length if node.parent is None else reversed(blocks_of(node))
        assert order == [block.path if block else None for block in self.plain.queue]

    @invariant()
    def runs_are_sound(self) -> None:
        for node in self.fast.nodes():
            assert node.length == len(node.keys) >= 1
            assert node.first == node.keys[0]
            assert node.parent is not None
            assert node.parent.children[node.first] is node

    def teardown(self) -> None:
        """When all requests have ended, nothing is in use."""
        for request in self.running:
            self._release(request, request.held - request.shared)
        self.same_counts()
        assert self.fast.used == 0


def blocks_of(node: Node) -> list[tuple[int, ...]]:
    """Full path of each block of a run, first to last."""
    before: tuple[int, ...] = ()
    parent = node.parent
    while parent is not None:
        before = (*parent.keys, *before)
        parent = parent.parent
    return [(*before, *node.keys[: i + 1]) for i in range(node.length)]


def check(examples: int, steps: int) -> None:
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        Caches,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=checks
        ),
    )


def test_runs_behave_like_single_blocks() -> None:
    """Hits, counts, evictions, reference counts and the order of eviction agree after every operation."""
    check(250, 40)


@pytest.mark.slow
def test_runs_behave_like_single_blocks_at_length() -> None:
    """The same over many more sequences."""
    check(3000, 80)


def test_a_scene_with_all_of_it() -> None:
    """Shared start, a run cut in the middle, a duplicate that merges, eviction from the tail, and hits after it."""
    cache = PrefixCache(10)
    first, second = (stream(0, 0, 6),), (stream(0, 0, 3), stream(1, 0, 2))
    assert cache.lookup(first, 5) == 0
    cache.allocate(6)
    a = cache.extend(cache.root, first, 0, 6)
    assert cache.lookup(second, 4) == 3
    b = cache.acquire_hit()
    cache.allocate(2)
    b = cache.extend(b, second, 3, 5)
    assert (cache.used, len(list(cache.nodes()))) == (8, 3)
    cache.allocate(2)  # a third request computes what the second one has just published
    twin = cache.extend(cache.root, (stream(0, 0, 2),), 0, 2)
    assert cache.used == 8
    for node in (twin, a, b):
        cache.release(node)
    assert (cache.used, cache.cached, cache.free) == (0, 8, 2)
    cache.allocate(4)  # the first one's tail is the oldest
    assert cache.evicted == 2
    assert cache.lookup(first, 6) == 4
    assert cache.lookup(second, 5) == 5
    cache.allocate(1)
    assert (cache.lookup(first, 6), cache.lookup(second, 5)) == (3, 5)


def test_short_runs_in_a_row_are_found_again() -> None:
    """Three blocks that each cross from one run into the next: what was found before it was used is found after it."""
    path = Content(((0, 5), (2, 16), (4, 16), (6, 200))).path(STRIDE)
    cache = PrefixCache(100)
    cache.allocate(10)
    cache.release(cache.extend(cache.root, path, 0, 10))
    assert cache.lookup(path, 10) == 10
    cache.acquire_hit()
    assert cache.lookup(path, 10) == 10


def test_the_comparison_finds_a_wrong_order_of_eviction() -> None:
    """Anti-vacuity: a cache that forgets the newest block instead of the oldest does not pass."""

    class Newest(Caches):
        def __init__(self) -> None:
            super().__init__()
            self.plain = NewestFirst(24)

    class NewestFirst(BlockByBlock):
        def release(self, last: Block) -> None:
            super().release(last)
            self.queue.reverse()

    with pytest.raises(AssertionError):
        run_state_machine_as_test(
            Newest,
            settings=settings(max_examples=200, stateful_step_count=40, deadline=None, database=None, derandomize=True),
        )
