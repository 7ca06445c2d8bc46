"""SGLang's rule: prefix while loads are close, load while they are not, and the belief that it keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fleetsim
from fleetsim.routing.api import FleetView, RequestView
from fleetsim.routing.cache_aware import CacheAware, CacheAwareConfig
from fleetsim.scenario.schema import Scenario
from fleetsim.testing import check_router
from fleetsim.workload.prefixes import Content
from fleetsim.workload.request import Request


class Gateway:
    """A router and its view, with requests that begin with one of several shared prefixes."""

    def __init__(self, replicas: int, **parameters: Any) -> None:
        self.view = FleetView(["main"] * replicas)
        self.router = CacheAware(CacheAwareConfig.model_validate(parameters), np.random.default_rng(0), self.view)
        self.number = 0

    def send(self, group: int, shared: int = 160, prompt_tokens: int = 320) -> int:
        content = Content(((group, shared),)) if shared else None
        self.number += 1
        position = self.router.route(RequestView(Request(self.number, 0.0, prompt_tokens, 1, content)))
        self.view.sent(position, prompt_tokens)
        return position


def test_checker_passes() -> None:
    cost = check_router("cache-aware").us_per_decision
    assert cost["1000 replicas"] < 500


def test_prompts_go_where_their_beginning_went_and_new_ones_where_least_is_remembered() -> None:
    """By hand: trees of 20 blocks on the first replica, 40 on the second."""
    gateway = Gateway(3)
    assert gateway.send(1, prompt_tokens=320) == 0
    assert gateway.send(2, prompt_tokens=640) == 1
    assert gateway.send(3, prompt_tokens=320) == 2
    assert [gateway.send(1) for _ in range(3)] == [0, 0, 0]  # 20 + 3 x 10 blocks now
    assert gateway.send(4, prompt_tokens=160) == 2
    assert gateway.send(5, prompt_tokens=640) == 2
    assert gateway.send(6) == 1
    assert gateway.router._index.sizes.values == [50, 60, 70]


@pytest.mark.parametrize(("prompt_tokens", "follows"), [(533, True), (534, False)])
def test_a_match_counts_above_the_threshold(prompt_tokens: int, follows: bool) -> None:
    """160 of 533 tokens are 0.3002, of 534 0.2996."""
    gateway = Gateway(2)
    assert gateway.send(1) == 0
    assert gateway.send(1, prompt_tokens=prompt_tokens) == (0 if follows else 1)


def test_load_decides_when_loads_are_far_apart() -> None:
    """All requests of one prefix on one replica until it has 65 more than the other, which then has as much prefix."""
    gateway = Gateway(2)
    assert [gateway.send(1) for _ in range(65)] == [0] * 65
    assert gateway.send(1) == 1
    assert gateway.send(1) == 0  # 65 and 1: 64 apart again
    busy = Gateway(2)
    for position, requests in ((0, 200), (1, 134)):
        for _ in range(requests):
            busy.view.sent(position, 10)
    assert busy.send(1) == 0  # 66 apart, but 200 < 1.5 x 134
    for _ in range(2):
        busy.view.ended(1, 10)
    assert busy.send(1) == 1  # 201 > 1.5 x 132


def test_what_is_remembered_is_bounded_at_every_interval() -> None:
    gateway = Gateway(2, tree_tokens=1600, eviction_interval_s=10)
    for group in range(40):
        gateway.send(group)
    sizes = gateway.router._index.sizes
    assert sum(sizes.values) == 40 * 20
    gateway.view.now_s = 10.0
    gateway.send(40)
    assert sum(sizes.values) <= 2 * 100 + 20
    assert gateway.router._index.longest(RequestView(Request(-1, 0.0, 160, 1, Content(((0, 160),)))).prefix(16))[0] == 0


def scenario(router: str | dict[str, Any], replicas: int = 8, requests: int = 1500) -> Scenario:
    """Sessions with long shared prefixes in many groups."""
    lengths = {"distribution": "lognormal", "mean": 200, "cv": 1.0, "min": 16, "max": 2000}
    return Scenario.model_validate(
        {
            "schema": 1,
            "name": "prefixes",
            "workload": {
                "kind": "synthetic",
                "requests": requests,
                "arrivals": {"process": "poisson", "rate": "20 req/s"},
                "prompt_tokens": lengths,
                "output_tokens": lengths,
                "prefixes": {"groups": 60, "tokens": 3000, "zipf": 0.5},
            },
            "gateway": {"router": router},
            "pools": [
                {
                    "name": "main",
                    "llm": "llama-3.1-8b",
                    "accelerator": "h100-sxm",
                    "replicas": replicas,
                    "engine": {"kv": {"capacity_tokens": 60000}},
                }
            ],
        }
    )


def test_caches_are_hit_more_often_than_by_routers_that_look_at_load(tmp_path: Path) -> None:
    """8 caches of 60,000 tokens cannot each hold 60 prefixes of 3,000 tokens; together they can."""
    hits = {}
    for router in ("cache-aware", "consistent-hash", "least-outstanding", "round-robin"):
        result = fleetsim.run(scenario(router), tmp_path / router, check=True)
        assert result.summary["finished"] == 1500
        hits[router] = result.summary["prefix_hit_ratio"]
    assert hits["cache-aware"] > 1.5 * hits["least-outstanding"]
    assert hits["consistent-hash"] > 1.2 * hits["least-outstanding"]
    assert hits["least-outstanding"] > 0.05
