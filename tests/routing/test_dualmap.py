"""DualMap's keys, rings and rule."""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fleetsim
from fleetsim.routing.api import FleetView, Freshness, RequestView, Route
from fleetsim.routing.dualmap import Dualmap, DualmapConfig
from fleetsim.routing.hash_ring import HashRing
from fleetsim.routing.hot_prefixes import HotPrefixes
from fleetsim.testing import check_router
from fleetsim.testing.station import Station
from fleetsim.workload.prefixes import Content
from fleetsim.workload.request import Request
from tests.routing.test_basic import fleet, steady

DATA = Path(os.environ.get("FLEETSIM_DATA", Path(__file__).parents[3] / "shared" / "data"))
TRACE = DATA / "traces" / "open" / "prefix" / "mooncake_conversation_first40min.jsonl.gz"


class Clock:
    now_s = 0.0

    def time_s(self) -> float:
        return self.now_s


def course(replicas: int, speed: float = 5000.0) -> tuple[FleetView, list[Station], Clock]:
    clock = Clock()
    stations = [Station(speed, 16, clock.time_s) for _ in range(replicas)]
    return FleetView(["main"] * replicas, (), stations, Freshness(), clock.time_s), stations, clock


def create(view: FleetView, **parameters: Any) -> Dualmap:
    return Dualmap(DualmapConfig(**parameters), np.random.default_rng(0), view)


def asked(number: int, tokens: int, content: Content | None = None) -> RequestView:
    return RequestView(Request(number, 0.0, tokens, 10, content))


@pytest.mark.parametrize("parameters", [{}, {"virtual_nodes": 1}, {"block_tokens": 16, "window_requests": 50}])
def test_checker_passes(parameters: dict[str, Any]) -> None:
    check_router("dualmap", parameters)


# --- keys -------------------------------------------------------------------------------------------------------------


def trace_keys(extend: float, shrink: float, replicas: int, window: int) -> Iterator[int]:
    """Length of each request's key over the public conversation trace."""
    if not TRACE.is_file():
        pytest.skip("no Mooncake conversation trace in the data folder")
    hot = HotPrefixes(extend / replicas, shrink / replicas, window, min(4 * replicas, window), 64)
    with gzip.open(TRACE, "rt") as lines:
        for line in lines:
            row = json.loads(line)
            hashes = tuple(row["hash_ids"])  # the last one names the rest of the prompt
            key = hot.count((hashes,))
            yield len(hashes) if key is None else len(key.keys)


@pytest.mark.parametrize("replicas", [8, 16])
def test_keys_of_the_conversation_trace_have_two_blocks(replicas: int) -> None:
    """Published: 95 % of the keys, with thresholds of 2/n and 1/n; all requests share the first block."""
    lengths = Counter(trace_keys(2.0, 1.0, replicas, 300))
    assert lengths[2] / lengths.total() >= 0.95


def length(hot: HotPrefixes, blocks: tuple[int, ...]) -> int:
    key = hot.count((blocks,))
    assert key is not None
    return len(key.keys)


def test_keys_grow_while_a_prefix_is_frequent_and_shrink_when_it_no_longer_is() -> None:
    hot = HotPrefixes(0.25, 0.125, 100, 40, 8)
    lengths = [length(hot, (1, 2, 3, 1000 + i)) for i in range(100)]
    assert lengths[:11] == [1] * 10 + [4]  # more than a quarter of the 40 that a young window counts as
    assert set(lengths[10:]) == {4}  # all three shared blocks are frequent, the fourth is not
    assert hot.count(((1, 2),)) is None  # nothing of it tells it apart
    other = [length(hot, (7 + i, 5)) for i in range(100)]
    assert set(other) == {1}
    assert length(hot, (1, 2, 3, 9999)) == 1  # rare again
    assert len(hot._root.children) == 100


def test_two_groups_of_shared_prefixes_get_keys_just_long_enough() -> None:
    """40 % share 12 blocks, 15 % share 5, the rest the first: the published lengths 13, 6 and 2 (thresholds near 1/8)."""
    rng = np.random.default_rng(3)
    hot = HotPrefixes(1.0 / 8, 0.7 / 8, 600, 32, 64)
    lengths: dict[str, Counter[int]] = {"a": Counter(), "b": Counter(), "c": Counter()}
    for i in range(6000):
        group = "a" if (u := rng.random()) < 0.4 else "b" if u < 0.55 else "c"
        shared = {"a": tuple(range(12)), "b": (0, *range(101, 105)), "c": (0,)}[group]
        blocks = length(hot, (*shared, 10_000 + i, 50_000 + i))
        if i > 1000:
            lengths[group][blocks] += 1
    assert [lengths[group].most_common(1)[0][0] for group in "abc"] == [13, 6, 2]


# --- rings ------------------------------------------------------------------------------------------------------------


def test_who_comes_takes_over_only_what_becomes_its_own() -> None:
    ring = HashRing("test", 64)
    for replica in range(8):
        ring.insert(replica)
    before = [ring.owner(f"key {i}") for i in range(4000)]
    assert min(Counter(before).values()) > 4000 / 8 / 2
    ring.insert(8)
    after = [ring.owner(f"key {i}") for i in range(4000)]
    assert {new for old, new in zip(before, after, strict=True) if old != new} == {8}
    assert 4000 / 9 / 2 < sum(new == 8 for new in after) < 4000 / 9 * 2
    ring.remove(8)
    ring.remove(8)
    assert [ring.owner(f"key {i}") for i in range(4000)] == before
    assert all(ring.owner(f"key {i}", owner) != owner for i, owner in enumerate(before))


def test_replicas_that_leave_get_nothing_and_others_keep_their_keys() -> None:
    view, _, _ = course(6)
    router = create(view, block_tokens=16)
    contents = [Content(((group, 400),)) for group in range(300)]
    pairs = [router.candidates(asked(i, 400, content)) for i, content in enumerate(contents)]
    assert all(first != second for first, second in pairs)
    router.remove(2)
    now = [router.candidates(asked(i, 400, content)) for i, content in enumerate(contents)]
    assert not any(2 in pair for pair in now)
    assert all(new == old for old, new in zip(pairs, now, strict=True) if 2 not in old and old[0] != 2)
    router.insert(2)
    assert [router.candidates(asked(i, 400, content)) for i, content in enumerate(contents)] == pairs
    for other in (0, 1, 3, 4):
        router.remove(other)
    router.remove(5)
    with pytest.raises(ValueError, match="last replica"):
        router.remove(2)
    assert router.candidates(asked(0, 400, contents[0])) == (2, 2)


# --- the rule ---------------------------------------------------------------------------------------------------------


def test_rule_by_hand() -> None:
    """Equal hits: less pending; unequal: the hit, while it clears its queue within the objective; then the other."""
    view, stations, clock = course(4)
    router = create(view, block_tokens=16, slo_s=2.0)
    content = Content(((5, 3200),))
    request = asked(1000, 3200, content)
    first, second = router.candidates(request)
    view.now_s = 0.0
    assert router.route(request) == first  # a tie
    stations[first].sent(Request(1, 0.0, 1000, 10))
    view.now_s = 0.0
    assert router.route(asked(1001, 3200, content)) == second  # equal hits (none): less pending
    primer = Request(2, 0.0, 3200, 10, content)
    stations[first].sent(primer)
    clock.now_s = 0.5
    stations[first].started(primer)
    view.now_s = 0.5
    assert view.hit_tokens(first, request) == 3184
    assert router.route(asked(1002, 3200, content)) == first  # unequal: affinity, although it has more pending
    clears = router.clears_tokens(first)
    assert view.prefill_s(first, clears, 0) + stations[first].frontend_s == pytest.approx(2.0)
    stations[first].sent(Request(3, 0.0, int(clears) - 999, 10))
    view.now_s = 0.5
    assert router.overloaded(first)
    assert router.route(asked(1003, 3200, content)) == second
    stations[second].sent(Request(4, 0.0, 10 * int(clears), 10))
    view.now_s = 0.5
    assert router.overloaded(second)
    answer = router.route(asked(1004, 3200, content))
    assert isinstance(answer, Route)
    assert answer.replica == first  # both: the earlier first token
    assert answer.prepare_s == 0.0022  # and a look through its queue, where nobody gains
    assert not answer.moves
    assert router.benefit_s(request, second, first) > 0.0 > router.benefit_s(request, first, second)
    assert set(router.explain(request)) == {first, second}


def test_replica_that_finishes_no_prompt_for_three_seconds_is_overloaded() -> None:
    view, stations, clock = course(2)
    router = create(view)
    clock.now_s = view.now_s = 100.0
    content = Content(((5, 3200),))
    request = asked(0, 3200, content)
    for position in range(2):
        router.ttft_s(request, position)  # idle when last looked at
    stations[0].sent(Request(1, 0.0, 50, 10))
    clock.now_s = view.now_s = 102.9
    assert not router.overloaded(0)
    before_s = router.ttft_s(request, 0)
    clock.now_s = view.now_s = 103.1
    assert router.overloaded(0)
    assert not router.overloaded(1)
    assert router.ttft_s(request, 0) == pytest.approx(before_s + 3.1)


def test_a_run_keeps_conversations_together_and_charges_the_decision(tmp_path: Path) -> None:
    workload = {**steady(600, 20), "prefixes": {"groups": 24, "tokens": 1500}}
    hits, starts = {}, {}
    for router in ({"policy": "dualmap", "block_tokens": 64}, "random"):
        name = router if isinstance(router, str) else str(router["policy"])
        result = fleetsim.run(fleet(router, 8, workload), tmp_path / name, check=True)
        hits[name] = result.summary["prefix_hit_ratio"]
        table = result.requests()
        delays = np.subtract(table["queued_s"].to_numpy(), table["arrival_s"].to_numpy())
        starts[name] = float(delays.min())
    assert hits["dualmap"] > 1.15 * hits["random"]
    assert starts["dualmap"] - starts["random"] == pytest.approx(0.0006, abs=1e-9)
