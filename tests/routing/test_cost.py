"""Cost of a decision does not grow with the number of replicas."""

from __future__ import annotations

from heapq import heappop, heappush
from time import perf_counter_ns

import numpy as np
import pytest

from fleetsim.plugins import load
from fleetsim.routing.api import FleetView, Freshness, RequestView
from fleetsim.routing.prefix_index import PrefixIndex
from fleetsim.routing.telemetry import Load
from fleetsim.testing.station import Station
from fleetsim.workload.prefixes import Content
from fleetsim.workload.request import Request

_REQUESTS = 6000


def median_us(name: str, replicas: int) -> float:
    """Median time of a decision [µs] once every replica has 5 requests and all have been sent one of two prefixes."""
    rng = np.random.default_rng(1)
    contents = [Content(((group, 2000),)) for group in range(2)]
    prompts = (2000 + rng.integers(1, 2000, _REQUESTS)).tolist()
    lasts = (rng.exponential(1.0, _REQUESTS)).tolist()
    view = FleetView(["main"] * replicas)
    policy = load("routers", name)
    router = policy(policy.Config(), np.random.default_rng(0), view)
    prefix_holders = RequestView(Request(_REQUESTS, 0.0, 2000, 1, contents[0])).prefix(16)
    for replica in range(replicas):
        for _ in range(5):
            view.sent(replica, 100)
        if hasattr(router, "_index") and hasattr(router._index, "insert"):
            router._index.insert(prefix_holders, replica)
    due: list[tuple[float, int, int]] = []
    spent = []
    for i, (prompt, last) in enumerate(zip(prompts, lasts, strict=True)):
        view.now_s = i / (20 * replicas)
        while due and due[0][0] <= view.now_s:
            view.ended(*heappop(due)[1:])
        request = RequestView(Request(i, view.now_s, prompt, 10, contents[i % 2]))
        start_ns = perf_counter_ns()
        position = router.route(request)
        spent.append(perf_counter_ns() - start_ns)
        view.sent(position, prompt)
        heappush(due, (view.now_s + last, position, prompt))
    return float(np.median(spent)) / 1e3


@pytest.mark.parametrize("name", ["cache-aware", "prefix-score", "consistent-hash", "least-kv", "sticky"])
def test_a_thousand_replicas_cost_little_more_than_sixty_four(name: str) -> None:
    """A scan would cost 16 times as much. Two keys that carry all the load are the worst case of a hash ring."""
    few = min(median_us(name, 64) for _ in range(2))
    many = min(median_us(name, 1000) for _ in range(2))
    assert many < 5 * few, f"{few:.2f} µs at 64 replicas, {many:.2f} µs at 1,000"


class Counted(Station):
    """A replica that counts how often its load is read."""

    def __init__(self) -> None:
        super().__init__(20_000.0, 16, lambda: 0.0)
        self.reads = 0

    def load(self, at_s: float) -> Load:
        """Its load."""
        self.reads += 1
        return super().load(at_s)


_WATCHING = ("dynamo-kv", "min-ttft", "lmetric", "route-balance", "vllm-dp", "least-work", "prefix-score", "preble")


@pytest.mark.parametrize("name", _WATCHING)
def test_a_decision_reads_only_the_replicas_that_changed(name: str) -> None:
    """Among 1,000, as among 64: none where nothing happened, and at most those to which something did."""
    stations = [Counted() for _ in range(1000)]
    view = FleetView(["main"] * 1000, [60_000] * 1000, stations, Freshness(), lambda: 0.0)
    policy = load("routers", name)
    router = policy(policy.Config(), np.random.default_rng(0), view)
    content = Content(((1, 600),))

    def decide(number: int) -> int:
        before = sum(station.reads for station in stations)
        view.now_s = float(number)
        router.route(RequestView(Request(number, float(number), 1000, 10, content)))
        return sum(station.reads for station in stations) - before

    decide(0)
    assert decide(1) == 0
    for i in range(7):
        stations[100 * i].sent(Request(10 + i, 0.0, 1000, 10, content))
    assert decide(2) <= 7
    assert decide(3) == 0


def test_marking_a_prefix_writes_once_for_each_set_of_holders() -> None:
    """A prefix cut at 30 places (by prompts of as many lengths) that the same replicas hold is one write, not 30."""
    index = PrefixIndex(1000)
    for replica in range(50):
        for blocks in range(1, 31):
            index.insert((range(0, 16 * blocks, 16),), replica)
    for replica in range(50, 60):
        index.insert((range(0, 16 * 10, 16),), replica)
    path = (range(0, 16 * 30, 16),)

    class Writes:
        """Counts what an array is asked to take."""

        def __init__(self) -> None:
            self.count = 0

        def __setitem__(self, places: object, value: object) -> None:
            self.count += 1

    for limit in (64, 1000):
        for _ in range(2):
            writes = Writes()
            index.mark(path, limit, 16, writes)
            assert writes.count == 2
