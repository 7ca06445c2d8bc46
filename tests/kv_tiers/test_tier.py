"""A tier against plain block-by-block caches: what it holds, what goes first, and what inclusive and exclusive tiers add up to."""

from __future__ import annotations

from collections import OrderedDict
from math import inf

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetsim.engine.batch import Batch
from fleetsim.engine.kv_tiers.replica_tiers import Place, ReplicaTiers, path_of
from fleetsim.engine.kv_tiers.tier import Tier, Writer
from fleetsim.errors import LawError
from fleetsim.kernel.clock import Clock
from fleetsim.network.flows import Network
from fleetsim.scenario.schema import KvTiers
from fleetsim.workload.prefixes import Content
from fleetsim.workload.request import Request


class Lru:
    """Blocks by their whole path, least recently used first; children before their parents, as they were used later."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.blocks: OrderedDict[tuple[int, ...], None] = OrderedDict()

    def use(self, keys: tuple[int, ...], blocks: int) -> int:
        """Use the first `blocks` of a path; how many of them were there."""
        prefixes = [keys[: i + 1] for i in range(blocks)]
        hits = next((i for i, p in enumerate(prefixes) if p not in self.blocks), blocks)
        wanted = prefixes[: max(hits, self.capacity)]
        for prefix in reversed(wanted):
            self.blocks[prefix] = None
            self.blocks.move_to_end(prefix)
        over = len(self.blocks) - self.capacity
        for prefix in [p for p in self.blocks if p not in wanted][: max(over, 0)]:
            del self.blocks[prefix]
        return hits


PATHS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(1, 8)), min_size=1, max_size=40)


def keys(group: int, branch: int, blocks: int) -> tuple[int, ...]:
    """Three blocks of a group, then those of a branch."""
    start = tuple(1000 * group + i for i in range(min(blocks, 3)))
    return (*start, *(1000 * group + 100 * (branch + 1) + i for i in range(blocks - 3)))


@settings(deadline=None, max_examples=200)
@given(PATHS, st.integers(2, 25))
def test_holds_what_a_plain_cache_of_blocks_holds(drawn: list[tuple[int, int, int]], capacity: int) -> None:
    tier, plain = Tier("host", capacity, 1.0), Lru(capacity)
    for group, branch, blocks in drawn:
        path = keys(group, branch, min(blocks, capacity))
        held = tier.holds((path,), len(path))
        assert tier.insert((path,), 0, len(path)) == len(path) - held
        assert held == plain.use(path, len(path))
        tier.verify()
    assert {path_of(node)[0] for node in tier.index.nodes()} <= set(plain.blocks)


def test_what_is_read_stays_and_what_it_follows_too() -> None:
    tier = Tier("host", 4, 1.0)
    assert tier.insert(((1, 2, 3),), 0, 3) == 3
    node = tier.pin(((1, 2),), 2)
    assert tier.insert(((7, 8, 9),), 0, 3) == 2  # no more room beside the two that are kept
    assert tier.holds(((1, 2, 3),), 3) == 2
    tier.verify()
    tier.unpin(node)
    assert tier.insert(((7, 8, 9),), 2, 3) == 1
    assert tier.insert(((5, 6),), 1, 2) == 0  # what it follows is not here
    tier.verify()


def test_broken_books_are_noticed() -> None:
    tier = Tier("host", 4, 1.0)
    tier.insert(((1, 2),), 0, 2)
    tier.index.cached += 1
    with pytest.raises(LawError, match="counted"):
        tier.verify()
    tier.index.cached -= 1
    tier.index.lookup(((1, 2),), 2)
    tier.index.acquire_hit()
    with pytest.raises(LawError, match="for nobody"):
        tier.verify()


def test_paths_of_nodes_have_as_few_segments_as_those_of_requests() -> None:
    tier = Tier("host", 20, 1.0)
    runs, hashes = (range(0, 64, 16), range(1000, 1032, 16)), ((1, 2, 3, 4),)
    for path, blocks in ((runs, 6), (hashes, 4)):
        tier.insert(path, 0, 2)
        tier.pin(path, 1)  # cuts the run in two
        tier.insert(path, 0, blocks)
        leaf = tier.pin(path, blocks)
        assert path_of(leaf) == path
        tier.verify()


# --- one replica's memory and a tier below, one request after the other -------------------------------------------------


class Machine:
    """A batch with tiers below it on an idle network; requests come one at a time."""

    def __init__(self, blocks: int, host_blocks: int, **config: object) -> None:
        graph = nx.DiGraph()
        for a, b in (("gpu", "host"), ("host", "gpu")):
            graph.add_edge(a, b, capacity=1e3, latency=0.0, weight=1.0)
        self.clock = Clock()
        self.batch = Batch(blocks, 1, True)
        self.host = Tier("host", host_blocks, 1.0)
        replica = Stand(self.clock)
        network = Network(self.clock, graph)
        settings = KvTiers.model_validate({"host": {}, "overlap": False, **config})
        self.tiers = ReplicaTiers(settings, network, replica, "gpu", [Place(self.host, "host")], 1, 2)  # type: ignore[arg-type]
        self.batch.tiers = self.tiers
        replica.batch = self.batch
        if self.tiers.writes_back:
            self.batch.cache.on_evict = lambda node: self.tiers.evicted(self.tiers.writers[0], node)
        self.served = 0

    def serve(self, hashes: tuple[int, ...]) -> tuple[int, int]:
        """Blocks found anywhere, and of these the ones loaded from the host."""
        batch = self.batch
        request = Request(self.served, 0.0, len(hashes) + 1, 1, Content(hashes=hashes, hash_tokens=1))
        self.served += 1
        batch.waiting.append(request)
        assert batch.admit(request, 10_000, True)
        for loading, tokens in batch.to_load:
            assert loading.carrier is not None
            loading.carrier.fetch(loading, tokens)
        batch.to_load = []
        batch.clear_plan()
        self.clock.run()
        rest = request.target - request.computed
        if request.loaded_tokens:
            assert batch.extend(request, rest)
        batch.finish_chunk(request, rest)
        batch.clear_plan()
        self.clock.run()
        batch.verify()
        self.host.verify()
        return request.cached_tokens, request.loaded_tokens


class Stand:
    """What tiers need of a replica."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.batch: Batch | None = None

    def loaded(self, request: Request) -> None:
        assert self.batch is not None
        self.batch.loaded(request)


TURNS = st.lists(st.integers(0, 11), min_size=10, max_size=80)


@settings(deadline=None, max_examples=60)
@given(TURNS, st.sampled_from([8, 12, 24]))
def test_inclusive_tiers_find_what_one_cache_of_the_larger_size_finds(groups: list[int], host_blocks: int) -> None:
    """Written through, the host holds all that the replica does: the larger capacity counts, not the sum."""
    machine, plain = Machine(9, host_blocks), Lru(host_blocks)
    for group in groups:
        path = tuple(range(100 * group, 100 * group + 4))
        found, _ = machine.serve(path)
        expected = plain.use(path, 4)
        assert found >= expected
        if host_blocks > 9:
            assert found == expected


@settings(deadline=None, max_examples=60)
@given(TURNS, st.sampled_from([8, 16, 24]))
def test_exclusive_tiers_find_what_one_cache_of_both_sizes_finds(groups: list[int], host_blocks: int) -> None:
    """Written back and given up below when loaded, capacities add up, less what is on its way up (paths have four blocks)."""
    machine = Machine(9, host_blocks, write="write_back", inclusive=False)
    least, most = Lru(8 + host_blocks - 4), Lru(8 + host_blocks)
    for group in groups:
        path = tuple(range(100 * group, 100 * group + 4))
        found, _ = machine.serve(path)
        assert least.use(path, 4) <= found <= most.use(path, 4)


def test_selective_writes_only_what_a_second_request_used() -> None:
    machine = Machine(9, 100, write="selective")
    path = (1, 2, 3, 4)
    machine.serve(path)
    assert machine.host.written_blocks == 0
    machine.serve((1, 2, 9, 9))
    assert machine.host.written_blocks == 2
    assert machine.host.holds((path,), 4) == 2


def test_pages_are_written_and_read_whole() -> None:
    machine = Machine(9, 100, page_tokens=3)
    machine.serve((1, 2, 3, 4, 5))
    assert machine.host.holds(((1, 2, 3, 4, 5),), 5) == 3
    machine.serve(tuple(range(50, 58)))  # pushes the first out
    assert machine.serve((1, 2, 3, 4, 5)) == (3, 3)


def test_a_writer_writes_what_its_source_still_holds_when_its_turn_comes() -> None:
    clock, graph = Clock(), nx.DiGraph()
    graph.add_edge("host", "ssd", capacity=1.0, latency=0.0, weight=1.0)
    above, below = Tier("host", 10, 1.0), Tier("ssd", 10, 1.0)
    writer = Writer(Network(clock, graph), "host", "ssd", below, inf, None, above.holds)
    above.insert(((1, 2, 3),), 0, 3)
    above.insert(((7, 8),), 0, 2)
    writer.add(((1, 2, 3),), 3)
    writer.add(((7, 8),), 2)
    above.insert(
        (tuple(range(20, 28)),), 0, 8
    )  # the oldest three go, though they are on their way; of the others, none
    clock.run()
    assert (below.holds(((1, 2, 3),), 3), below.holds(((7, 8),), 2)) == (3, 2)
    assert writer.bytes == below.written_blocks == 5
