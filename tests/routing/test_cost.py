"""Cost of a decision does not grow with the number of replicas."""

from __future__ import annotations

from heapq import heappop, heappush
from time import perf_counter_ns

import numpy as np
import pytest

from fleetsim.plugins import load
from fleetsim.routing.api import FleetView, RequestView
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
