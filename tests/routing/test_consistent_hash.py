"""Consistent hashing with bounded loads: where requests go, and that no replica is above the bound."""

from __future__ import annotations

from bisect import bisect_right
from math import ceil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fleetsim
from fleetsim.routing.api import FleetView, RequestView
from fleetsim.routing.consistent_hash import ConsistentHash, ConsistentHashConfig, _place
from fleetsim.testing import check_router
from fleetsim.workload.prefixes import Content
from fleetsim.workload.request import Request
from tests.routing.test_basic import fleet, steady


def create(view: FleetView, **parameters: float) -> ConsistentHash:
    return ConsistentHash(ConsistentHashConfig.model_validate(parameters), np.random.default_rng(0), view)


def asked(number: int, session: int = -1, group: int | None = None, prompt_tokens: int = 1000) -> RequestView:
    content = None if group is None else Content(((2 * group, 256),))
    return RequestView(Request(number, 0.0, prompt_tokens, 1, content, session))


def test_checker_passes() -> None:
    assert check_router("consistent-hash").us_per_decision["1000 replicas"] < 500


def test_one_replica_takes_its_arc_of_the_ring_and_overflows_to_the_next() -> None:
    """By hand with one place per replica: start at the key, go on clockwise past those that are full."""
    view = FleetView(["a"] * 4)
    router = create(view, virtual_nodes=1, load_bound=1.25)
    ring = sorted((_place(f"replica/{i}/0"), i) for i in range(4))
    at = bisect_right([place for place, _ in ring], _place("session/5"))
    order = [ring[(at + i) % 4][1] for i in range(4)]
    chosen = []
    for number in range(8):
        position = router.route(asked(number, session=5))
        view.sent(position, 1)
        chosen.append(position)
    # limits ceil(1.25 (m + 1) / 4) for m = 0..7: 1 1 1 2 2 2 3 3
    first, second, third, _ = order
    assert chosen == [first, second, third, first, second, third, first, second]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 10**6)), min_size=1, max_size=200),
    st.floats(1.01, 3.0),
    st.integers(1, 9),
)
def test_no_replica_is_given_more_than_the_bound(
    events: list[tuple[int, bool, int]], bound: float, replicas: int
) -> None:
    """With hot keys and requests that end in any order."""
    view = FleetView(["a"] * replicas)
    router = create(view, load_bound=bound, virtual_nodes=3)
    running: list[int] = []
    for number, (session, end, which) in enumerate(events):
        position = router.route(asked(number, session=session))
        view.sent(position, 1)
        running.append(position)
        assert running.count(position) <= ceil(bound / replicas * len(running))
        if end:
            view.ended(running.pop(which % len(running)), 1)


def test_idle_fleet_sends_a_key_to_one_place_and_keys_everywhere() -> None:
    """Sessions and shared beginnings are keys; a session counts for more than the beginning."""
    view = FleetView(["a"] * 10)
    router = create(view)
    homes = [router.route(asked(i, session=i)) for i in range(500)]
    assert [router.route(asked(1000 + i, session=i, group=3)) for i in range(500)] == homes
    assert set(homes) == set(range(10))
    groups = [router.route(asked(i, group=i)) for i in range(500)]
    assert [router.route(asked(1000 + i, group=i, prompt_tokens=700)) for i in range(500)] == groups
    assert len({router.route(asked(i)) for i in range(200)}) == 10  # prompts that nobody shares
    assert len({router.route(asked(i, prompt_tokens=3)) for i in range(200)}) == 10  # less than a block


def test_only_the_first_blocks_are_the_key() -> None:
    view = FleetView(["a"] * 50)
    short, long = create(view, key_blocks=16), create(view, key_blocks=17)
    assert len({short.route(asked(i, group=1)) for i in range(50)}) == 1
    assert len({long.route(asked(i, group=1)) for i in range(50)}) > 20


def test_an_added_replica_takes_its_share_and_nothing_else_moves() -> None:
    seven, eight = create(FleetView(["a"] * 7)), create(FleetView(["a"] * 8))
    pairs = [(seven.route(asked(i, session=i)), eight.route(asked(i, session=i))) for i in range(4000)]
    moved = [after for before, after in pairs if before != after]
    assert set(moved) == {7}
    assert len(moved) == pytest.approx(500, rel=0.35)  # shares of the ring vary by about 1/sqrt(100)


def test_bound_holds_in_a_run_with_one_hot_prefix(tmp_path: Path) -> None:
    """From the request table: what each replica had when a request came to it, that one included. Requests spill over."""
    workload = {**steady(600, 60), "prefixes": {"groups": 3, "tokens": 500, "zipf": 2.0}}
    result = fleetsim.run(fleet("consistent-hash", 6, workload), tmp_path / "out", check=True)
    table = result.requests().sort_by("request_id")
    arrival, end = table["arrival_s"].to_numpy(), table["end_s"].to_numpy()
    replica = table["replica"].to_numpy()
    fullest = 0
    for n in range(600):
        there = (arrival[:n] < arrival[n]) & (end[:n] > arrival[n])
        here = 1 + int((replica[:n][there] == replica[n]).sum())
        assert here <= ceil(1.25 * (int(there.sum()) + 1) / 6)
        fullest = max(fullest, here)
    assert fullest >= 4
    assert set(replica.tolist()) == set(range(6))  # three prefixes alone would use three
