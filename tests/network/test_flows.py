"""Transfers: fair shares against a plain reference, closed forms, books and scale laws."""

from math import inf

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetsim.errors import LawError
from fleetsim.kernel.clock import Clock
from fleetsim.network.flows import Flow, Network
from tests.network.reference import Transfer, drain_times


def star(ends: int, capacities: list[float], latency_s: float = 0.0) -> nx.DiGraph:
    """A switch in the middle: one edge from each of `ends` sources, and one to each of `ends` targets."""
    graph = nx.DiGraph()
    for i in range(ends):
        graph.add_edge(f"from:{i}", "switch", capacity=capacities[i], latency=latency_s, weight=1.0)
        graph.add_edge("switch", f"to:{i}", capacity=capacities[ends + i], latency=0.0, weight=1.0)
    return graph


class Ends:
    """Notes when each transfer arrives."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.times: dict[int, float] = {}

    def note(self, number: int):
        return lambda: self.times.setdefault(number, self.clock.now_s)


ENDS = 4
CAPACITY = st.sampled_from([1.0, 2.0, 3.0, 5.0, 10.0, 100.0])
TRANSFER = st.tuples(
    st.floats(0, 20).map(lambda x: round(x, 2)),
    st.integers(0, ENDS - 1),
    st.integers(0, ENDS - 1),
    st.sampled_from([0.5, 1.0, 7.0, 20.0, 33.0]),
    st.sampled_from([0.5, 1.0, 1.0, 3.0]),
    st.sampled_from([inf, inf, 0.4, 2.0]),
)


@settings(deadline=None, max_examples=150)
@given(st.lists(CAPACITY, min_size=2 * ENDS, max_size=2 * ENDS), st.lists(TRANSFER, min_size=1, max_size=14))
def test_all_arrive_when_a_plain_progressive_filling_says(capacities: list[float], drawn: list[tuple]) -> None:
    clock = Clock()
    network, ends = Network(clock, star(ENDS, capacities)), Ends(clock)
    plain = []
    for number, (start_s, source, target, size, weight, limit) in enumerate(drawn):
        plain.append(Transfer(start_s, (source, ENDS + target), size, weight, limit))

        def start(number=number, source=source, target=target, size=size, weight=weight, limit=limit) -> None:
            network.transfer(f"from:{source}", f"to:{target}", size, ends.note(number), weight, limit)
            network.verify()

        clock.at(start_s, start)
    horizon_s = max(drain_times(plain, capacities))
    for k in range(20):
        clock.at(horizon_s * k / 20, network.verify, 9)
    clock.run()
    network.verify()
    assert [ends.times[i] for i in range(len(plain))] == pytest.approx(drain_times(plain, capacities), rel=1e-6)
    size = sum(t.size_bytes for t in plain)
    assert network.arrived_bytes == pytest.approx(size)
    assert sum(use.moved_bytes for use in network.uses() if use.source == "switch") == pytest.approx(size)


CHANGE = st.tuples(
    st.floats(0, 40).map(lambda x: round(x, 2)), st.integers(0, 2 * ENDS - 1), st.sampled_from([0.0, 0.1, 0.5, 1.0])
)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(CAPACITY, min_size=2 * ENDS, max_size=2 * ENDS),
    st.lists(TRANSFER, min_size=1, max_size=10),
    st.lists(CHANGE, min_size=1, max_size=8),
)
def test_links_that_fail_and_come_back(
    capacities: list[float], drawn: list[tuple], changes: list[tuple[float, int, float]]
) -> None:
    clock = Clock()
    network, ends = Network(clock, star(ENDS, capacities)), Ends(clock)
    plain = [Transfer(start_s, (a, ENDS + b), size, weight, limit) for start_s, a, b, size, weight, limit in drawn]
    changes = sorted([*changes, *[(50.0, link, 1.0) for link in range(2 * ENDS)]])
    for time_s, link, share in changes:
        edge = (f"from:{link}", "switch") if link < ENDS else ("switch", f"to:{link - ENDS}")

        def change(edge=edge, share=share) -> None:
            network.scale([edge], share)
            network.verify()

        clock.at(time_s, change, 0)
    for number, (start_s, a, b, size, weight, limit) in enumerate(drawn):

        def start(number=number, a=a, b=b, size=size, weight=weight, limit=limit) -> None:
            network.transfer(f"from:{a}", f"to:{b}", size, ends.note(number), weight, limit)
            network.verify()

        clock.at(start_s, start)
    clock.run()
    network.verify()
    expected = drain_times(plain, capacities, changes)
    assert [ends.times[i] for i in range(len(plain))] == pytest.approx(expected, rel=1e-6)
    size = sum(t.size_bytes for t in plain)
    assert sum(use.moved_bytes for use in network.uses() if use.source == "switch") == pytest.approx(size)


def test_transfers_go_around_a_cut_where_there_is_a_way() -> None:
    graph = nx.DiGraph()
    for a, b, hops in (("a", "b", 1.0), ("a", "c", 1.0), ("c", "b", 1.0)):
        graph.add_edge(a, b, capacity=10.0, latency=0.0, weight=hops)
    clock = Clock()
    network, ends = Network(clock, graph), Ends(clock)
    network.transfer("a", "b", 100.0, ends.note(0))
    clock.at(4.0, lambda: network.scale([("a", "b")], 0.0))
    clock.at(6.0, lambda: network.transfer("a", "b", 20.0, ends.note(1)))
    clock.at(6.0, lambda: network.transfer("c", "b", 0.0, ends.note(2)))
    clock.run(7.0)
    network.verify()
    assert not network.is_cut("a", "b")
    network.scale([("c", "b")], 0.0)
    assert network.is_cut("a", "b")
    assert not network.busy
    assert network.estimate_s("a", "b", 1.0) == inf
    clock.at(17.0, lambda: network.scale([("c", "b")], 0.5))
    clock.run()
    # 100 bytes: 40 straight, 20 around alone, 5 with another, then half the bandwidth for both until that has its last 15
    assert ends.times == {2: 6.0, 1: 23.0, 0: 27.0}
    moved = {(use.source, use.target): use.moved_bytes for use in network.uses()}
    assert moved == pytest.approx({("a", "b"): 40.0, ("a", "c"): 80.0, ("c", "b"): 80.0})
    with pytest.raises(ValueError, match="no link from b to a"):
        network.scale([("b", "a")], 0.0)


@st.composite
def meshes(draw: st.DrawFn) -> tuple[nx.DiGraph, list[tuple[int, int, float, float]]]:
    """A random connected graph, and transfers between its nodes."""
    nodes = draw(st.integers(3, 8))
    graph = nx.DiGraph()
    edges = [(i, draw(st.integers(0, i - 1))) for i in range(1, nodes)]
    edges += draw(st.lists(st.tuples(st.integers(0, nodes - 1), st.integers(0, nodes - 1)), max_size=8))
    for a, b in edges:
        if a != b:
            capacity = draw(CAPACITY)
            graph.add_edge(str(a), str(b), capacity=capacity, latency=0.01, weight=1.0)
            graph.add_edge(str(b), str(a), capacity=capacity, latency=0.01, weight=1.0)
    node = st.integers(0, nodes - 1)
    sizes, starts = st.sampled_from([0.0, 1.0, 10.0, 40.0]), st.floats(0, 30)
    return graph, draw(st.lists(st.tuples(node, node, sizes, starts), min_size=1, max_size=20))


@settings(deadline=None, max_examples=100)
@given(meshes(), st.data())
def test_laws_hold_on_any_graph_with_cancellations(drawn: tuple, data: st.DataObject) -> None:
    graph, transfers = drawn
    clock = Clock()
    network, ends = Network(clock, graph), Ends(clock)
    flows: dict[int, Flow] = {}
    gone = set()

    def start(number: int, source: int, target: int, size: float) -> None:
        flows[number] = network.transfer(str(source), str(target), size, ends.note(number))
        network.verify()

    def cancel(number: int) -> None:
        if number in flows and number not in ends.times:
            gone.add(number)
            network.cancel(flows[number])
            network.verify()

    for number, (source, target, size, start_s) in enumerate(transfers):
        clock.at(start_s, lambda n=number, a=source, b=target, s=size: start(n, a, b, s))
    victims = data.draw(st.lists(st.tuples(st.integers(0, len(transfers) - 1), st.floats(0, 60)), max_size=5))
    for number, time_s in victims:
        clock.at(time_s, lambda n=number: cancel(n))
    clock.run()
    network.verify()
    assert set(ends.times) | gone == set(range(len(transfers)))
    assert not set(ends.times) & gone
    assert network.arrived_bytes + network.cancelled_bytes == pytest.approx(network.started_bytes)
    for number, (source, target, size, start_s) in enumerate(transfers):
        if number in ends.times and source != target:
            path = network.path(str(source), str(target))
            fastest = sum(link.latency_s for link in path) + size / min(link.capacity for link in path)
            assert ends.times[number] >= start_s + fastest * (1 - 1e-9)


def line(capacity: float = 10.0, latency_s: float = 0.5) -> nx.DiGraph:
    graph = nx.DiGraph()
    graph.add_edge("a", "b", capacity=capacity, latency=latency_s, weight=1.0)
    graph.add_edge("b", "c", capacity=2 * capacity, latency=latency_s, weight=1.0)
    return graph


def run(graph: nx.DiGraph, *transfers: tuple[float, str, str, float]) -> list[float]:
    """Arrival times of transfers (start, source, target, bytes)."""
    clock = Clock()
    network, ends = Network(clock, graph), Ends(clock)
    for number, (start_s, source, target, size) in enumerate(transfers):
        clock.at(start_s, lambda n=number, a=source, b=target, s=size: network.transfer(a, b, s, ends.note(n)) and None)
    clock.run()
    network.verify()
    return [ends.times[i] for i in range(len(transfers))]


def test_one_transfer_takes_latency_and_bytes_over_the_narrowest_link() -> None:
    assert run(line(), (1.0, "a", "c", 100.0)) == [pytest.approx(1 + 2 * 0.5 + 100 / 10)]


def test_nothing_takes_the_latency() -> None:
    assert run(line(), (2.0, "a", "c", 0.0)) == [3.0]
    assert run(line(), (2.0, "b", "b", 5.0)) == [2.0]


def test_two_share_a_link_in_halves_and_the_other_speeds_up_after_one_ends() -> None:
    """50 bytes at 5 B/s until 10 s; the other has 50 of 100 left and sends them at 10 B/s."""
    assert run(line(), (0.0, "a", "b", 50.0), (0.0, "a", "b", 100.0)) == pytest.approx([10.5, 15.5])


def test_a_late_one_slows_the_first_down() -> None:
    """40 bytes alone by 4 s, then halves: 60 left take until 16 s; the second has sent 60 by then, and 40 more take 4 s."""
    assert run(line(), (0.0, "a", "b", 100.0), (4.0, "a", "b", 100.0)) == pytest.approx([16.5, 20.5])


def test_what_one_cannot_use_others_get() -> None:
    """b to c carries 20: the flow from a has at most 10, the two from b take 5 each only while three want it."""
    clock = Clock()
    network, ends = Network(clock, line()), Ends(clock)
    flows = [network.transfer("a", "c", 1000.0, ends.note(0))]
    flows += [network.transfer("b", "c", 1000.0, ends.note(i)) for i in (1, 2)]
    assert [flow.rate for flow in flows] == pytest.approx([20 / 3] * 3)
    network.cancel(flows[2])
    assert [flow.rate for flow in flows[:2]] == pytest.approx([10, 10])
    assert network.link_rate("b", "c") == pytest.approx(20)
    network.cancel(flows[1])
    assert flows[0].rate == 10


def test_weights_and_limits() -> None:
    clock = Clock()
    network = Network(clock, line())
    heavy = network.transfer("a", "b", 100.0, lambda: None, weight=3.0)
    light = network.transfer("a", "b", 100.0, lambda: None)
    assert (heavy.rate, light.rate) == pytest.approx((7.5, 2.5))
    slow = network.transfer("a", "b", 100.0, lambda: None, limit=1.0)
    assert (heavy.rate, light.rate, slow.rate) == pytest.approx((6.75, 2.25, 1.0))


def test_a_cancelled_transfer_is_never_done_and_gives_its_share_back() -> None:
    clock = Clock()
    network, ends = Network(clock, line()), Ends(clock)
    kept = network.transfer("a", "b", 100.0, ends.note(0))
    dropped = network.transfer("a", "b", 100.0, ends.note(1))
    clock.at(2.0, lambda: network.cancel(dropped))
    clock.run(1.0)
    assert network.remaining_bytes(dropped) == pytest.approx(95)
    clock.run(3.0)
    assert network.remaining_bytes(dropped) == pytest.approx(90)
    assert network.remaining_bytes(kept) == pytest.approx(80)
    network.cancel(dropped)  # again: nothing happens
    clock.run()
    assert ends.times == {0: pytest.approx(11.5)}
    assert network.cancelled_bytes == 100
    assert network.uses()[0].moved_bytes == pytest.approx(110)


def test_a_transfer_cancelled_while_its_last_byte_travels_is_not_done() -> None:
    clock = Clock()
    network, ends = Network(clock, line()), Ends(clock)
    flow = network.transfer("a", "b", 10.0, ends.note(0))
    clock.at(1.2, lambda: network.cancel(flow))
    clock.run()
    network.verify()
    assert not ends.times
    assert network.cancelled_bytes == 10


def test_done_may_start_the_next_transfer() -> None:
    clock = Clock()
    network, ends = Network(clock, line(latency_s=0.0)), Ends(clock)
    network.transfer("a", "b", 10.0, lambda: network.transfer("a", "b", 10.0, ends.note(1)) and None)
    clock.run()
    assert ends.times == {1: pytest.approx(2.0)}


@settings(deadline=None, max_examples=50)
@given(st.lists(CAPACITY, min_size=2 * ENDS, max_size=2 * ENDS), st.lists(TRANSFER, min_size=1, max_size=10))
def test_twice_the_bandwidth_and_half_the_pauses_halve_all_times_but_the_latency(
    capacities: list[float], drawn: list[tuple]
) -> None:
    latency_s = 0.25

    def arrivals(factor: float) -> list[float]:
        transfers = [(start_s / factor, f"from:{a}", f"to:{b}", size) for start_s, a, b, size, _, _ in drawn]
        return run(star(ENDS, [c * factor for c in capacities], latency_s), *transfers)

    slow, fast = arrivals(1.0), arrivals(2.0)
    assert [2 * (t - latency_s) for t in fast] == pytest.approx([t - latency_s for t in slow], rel=1e-9)


def test_an_estimate_is_what_a_transfer_takes_if_nothing_changes() -> None:
    clock = Clock()
    network, ends = Network(clock, line()), Ends(clock)
    assert network.estimate_s("a", "c", 100.0) == pytest.approx(1 + 10)
    network.transfer("a", "b", 1e9, lambda: None)
    network.transfer("a", "b", 1e9, lambda: None, limit=2.0)
    expected_s = network.estimate_s("a", "c", 100.0)
    assert expected_s == pytest.approx(1 + 100 / 4)  # 10 B/s: 2 for the limited one, the rest in halves
    assert network.estimate_s("a", "c", 100.0, limit=1.0) == pytest.approx(1 + 100)
    network.transfer("a", "c", 100.0, ends.note(0))
    clock.run(100.0)
    assert ends.times[0] == pytest.approx(expected_s)


def test_transfers_over_idle_links_couple_nothing() -> None:
    """Links that cannot fill up do not join the flows over them: a core that does not block keeps replicas apart."""
    clock = Clock()
    graph = star(ENDS, [1.0] * ENDS + [100.0] * ENDS)
    network = Network(clock, graph)
    flows = [network.transfer(f"from:{i}", "to:0", 10.0, lambda: None) for i in range(ENDS)]
    assert [list(network._coupled_to((flow,))) for flow in flows] == [[flow] for flow in flows]
    clock.run()
    assert clock.events == 1 + ENDS  # all end at once, each arrives by itself


@pytest.mark.parametrize(
    ("source", "target", "size", "weight", "limit"),
    [
        ("a", "nowhere", 1, 1, inf),
        ("c", "a", 1, 1, inf),
        ("a", "b", -1, 1, inf),
        ("a", "b", 1, 0, inf),
        ("a", "b", 1, 1, 0),
    ],
)
def test_what_cannot_be_sent_is_refused(source: str, target: str, size: float, weight: float, limit: float) -> None:
    network = Network(Clock(), line())
    with pytest.raises(ValueError, match=r"network has no|a transfer of"):
        network.transfer(source, target, size, lambda: None, weight, limit)


def test_broken_books_are_noticed() -> None:
    network = Network(Clock(), line())
    flow = network.transfer("a", "b", 100.0, lambda: None)
    flow.rate = 11.0
    with pytest.raises(LawError, match="carries"):
        network.verify()
    flow.rate = 4.0
    with pytest.raises(LawError, match="nothing holds it back"):
        network.verify()
    flow.rate = 10.0
    network.started_bytes += 1
    with pytest.raises(LawError, match="under way"):
        network.verify()
