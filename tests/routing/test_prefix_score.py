"""Scores by prefix, queue and KV use, and the estimate of KV use on its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fleetsim
from fleetsim.plugins import load
from fleetsim.routing.api import FleetView, RequestView
from fleetsim.testing import check_router
from fleetsim.workload.prefixes import Content
from fleetsim.workload.request import Request
from tests.routing.test_cache_aware import scenario


def create(name: str, view: FleetView, **parameters: Any) -> Any:
    policy = load("routers", name)
    return policy(policy.Config(**parameters), np.random.default_rng(0), view)


def asked(number: int, group: int | None, prompt_tokens: int = 160, shared: int = 160) -> RequestView:
    content = None if group is None else Content(((group, shared),))
    return RequestView(Request(number, 0.0, prompt_tokens, 1, content))


@pytest.mark.parametrize("name", ["prefix-score", "least-kv"])
def test_checker_passes(name: str) -> None:
    assert check_router(name).us_per_decision["1000 replicas"] < 500


# --- least KV use ---------------------------------------------------------------------------------------------------


def test_least_kv_goes_by_tokens_as_part_of_the_capacity() -> None:
    """By hand, with 100 tokens of output allowed for: parts 300/1000 and 400/2000, later 600/1000 and 550/2000."""
    view = FleetView(["small", "large"], [1000, 2000])
    router = create("least-kv", view, expected_output_tokens=100)
    view.sent(0, 200)
    view.sent(1, 300)
    assert router.route(asked(0, None)) == 1
    view.sent(1, 400)  # 900/2000
    assert router.route(asked(1, None)) == 0
    view.ended(1, 300)
    view.sent(0, 50)  # 450/1000 against 500/2000
    assert router.route(asked(2, None)) == 1


def test_larger_caches_get_more_requests(tmp_path: Path) -> None:
    """In a run on two pools, of which one has a third of the other's KV cache."""
    config = scenario("least-kv", requests=600).model_dump(mode="json", by_alias=True, exclude_none=True)
    pool = config["pools"][0]
    sizes = {"small": 60_000, "large": 180_000}
    config["pools"] = [
        {**pool, "name": name, "replicas": 2, "engine": {"kv": {"capacity_tokens": tokens}}}
        for name, tokens in sizes.items()
    ]
    result = fleetsim.run(type(scenario("random")).model_validate(config), tmp_path / "out", check=True)
    counts = np.bincount(result.requests()["replica"].to_numpy(), minlength=4)
    assert counts.sum() == 600
    assert counts[2:].sum() > 1.5 * counts[:2].sum()


# --- scores ---------------------------------------------------------------------------------------------------------


def scored(outstanding: tuple[int, int, int], sent: dict[int, int], **parameters: float) -> int:
    """Choice for a prompt of 10 blocks where each replica in `sent` was sent the first so many of them; no KV use."""
    view = FleetView(["main"] * 3, [1 << 20] * 3)
    router = create("prefix-score", view, kv_weight=0, **parameters)
    for replica, blocks in sent.items():
        router._index.insert(asked(replica, 1, 16 * blocks).prefix(16), replica)
    for replica, requests in enumerate(outstanding):
        for _ in range(requests):
            view.sent(replica, 100)
    chosen: int = router.route(asked(9, 1))
    return chosen


def test_prefix_against_queue_by_hand() -> None:
    """2 x matched / 10 + queue score of 0 for the busiest and 1 for the idlest candidate."""
    assert scored((0, 4, 9), {1: 4}) == 0  # 1 is worth 0.8 + 0, 0 is worth 0 + 1
    assert scored((0, 4, 9), {1: 6}) == 1  # 1.2 against 1
    assert scored((0, 4, 8), {1: 6, 2: 10}) == 2  # 0: 1; 1: 1.2 + 0.5; 2: 2.0
    assert scored((0, 2, 8), {1: 7, 2: 10}) == 1  # 1: 1.4 + 0.75 = 2.15; 2: 2.0
    assert scored((0, 4, 8), {0: 5, 1: 7, 2: 10}) == 0  # 0: 1 + 1 = 2 ties with 2: the least loaded; 1: 1.4 + 0.5
    assert scored((0, 4, 9), {1: 10}, prefix_weight=0.9) == 0
    assert scored((3, 3, 3), {2: 1}) == 2  # all equal but the prefix


def test_only_the_deepest_candidates_are_scored_beside_the_least_loaded() -> None:
    """With room for one, the longest prefix; the replica that would score best is not looked at."""
    sent = {1: 7, 2: 10}
    assert scored((0, 2, 8), sent, candidates=1) == 2
    assert scored((0, 2, 8), sent, candidates=0) == 0


def test_kv_use_counts() -> None:
    """Equal queues and no prefix weight: the candidate with more free cache."""
    view = FleetView(["main"] * 2, [1000, 1000])
    router = create("prefix-score", view, prefix_weight=0, expected_output_tokens=0)
    for replica in range(2):
        router._index.insert(asked(replica, 1).prefix(16), replica)
    view.sent(0, 600)
    view.sent(1, 500)
    assert router.route(asked(3, 1)) == 1
    view.ended(1, 500)
    view.sent(1, 700)
    assert router.route(asked(4, 1)) == 0


def test_no_more_is_remembered_than_the_caches_hold() -> None:
    view = FleetView(["main"] * 2, [1600, 3200])
    router = create("prefix-score", view)
    for number in range(200):
        router.route(asked(number, number))
        first, second = router._index.sizes.values
        assert first <= 1.125 * 100
        assert second <= 1.125 * 200


def test_caches_are_hit_more_often_than_by_the_least_outstanding(tmp_path: Path) -> None:
    hits = {}
    for router in ("prefix-score", "least-outstanding"):
        result = fleetsim.run(scenario(router), tmp_path / router, check=True)
        hits[router] = result.summary["prefix_hit_ratio"]
    assert hits["prefix-score"] > 1.3 * hits["least-outstanding"] > 0.1, hits
