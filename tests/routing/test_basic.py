"""The routers that look at load only: the index they share, and the rule of each on a fleet."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fleetsim
from fleetsim.plugins import load
from fleetsim.routing.api import KV_FULL, FleetView, MinIndex, RequestView
from fleetsim.scenario.schema import Scenario
from fleetsim.workload.request import Request

# --- the index ------------------------------------------------------------------------------------------------------


@given(
    values=st.lists(st.integers(-3, 3), min_size=1, max_size=9),
    changes=st.lists(st.tuples(st.integers(0, 8), st.integers(-3, 3), st.booleans()), max_size=300),
)
def test_index_gives_the_smallest_and_of_equals_the_one_unchanged_for_longest(
    values: list[int], changes: list[tuple[int, int, bool]]
) -> None:
    """Against a search through all counters, asked after some changes and not after others."""
    index = MinIndex(values)
    now, changed = list(values), list(range(len(values)))
    for time, (position, change, ask) in enumerate(changes, len(values) + 1):
        position %= len(values)
        index.add(position, change)
        now[position] += change
        changed[position] = time
        if ask:
            assert index.smallest() == min(range(len(now)), key=lambda i: (now[i], changed[i]))
    assert index.smallest() == min(range(len(now)), key=lambda i: (now[i], changed[i]))
    assert index.values == now


def test_index_stays_small_when_it_is_never_asked() -> None:
    """Old entries do not pile up; the cost of a change does not grow with the number of changes."""
    index = MinIndex([0, 0, 0])
    for k in range(10_000):
        index.add(k % 3, 1 if k % 2 else -1)
    assert len(index._heap) <= 8 * 3 + 65


# --- the view -------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 50)), max_size=60), st.randoms(use_true_random=False))
def test_view_counts_what_was_sent_started_and_ended(sends: list[tuple[int, int]], random: Any) -> None:
    """Outstanding, decoding and pending tokens, and both indexes, against sets of requests in each state."""
    view = FleetView(["a"] * 4)
    by_outstanding, by_work = view.index_outstanding(), view.index_work(64)
    by_most, by_kv = view.index_most_outstanding(), view.index_kv(7)
    sent: list[tuple[int, int]] = []
    started: list[tuple[int, int]] = []
    for position, tokens in sends:
        view.sent(position, tokens)
        sent.append((position, tokens))
        while sent and random.random() < 0.4:
            one = sent.pop(random.randrange(len(sent)))
            view.started(*one)
            started.append(one)
        while started and random.random() < 0.4:
            view.ended(*started.pop(random.randrange(len(started))))
        pending, decoding = Counter[int](), Counter(p for p, _ in started)
        for p, t in sent:
            pending[p] += t
        outstanding = Counter(p for p, _ in sent + started)
        assert view.outstanding == [outstanding[p] for p in range(4)] == by_outstanding.values
        assert [-outstanding[p] for p in range(4)] == by_most.values
        assert view.in_flight == len(sent) + len(started)
        held = [sum(t + 7 for q, t in sent + started if q == p) for p in range(4)]
        assert by_kv.values == [tokens * (KV_FULL // view.capacity_tokens[p]) for p, tokens in enumerate(held)]
        assert view.decoding == [decoding[p] for p in range(4)]
        assert view.pending_tokens == [pending[p] for p in range(4)]
        assert by_work.values == [pending[p] + 64 * decoding[p] for p in range(4)]


# --- each rule on a tiny fleet ----------------------------------------------------------------------------------------


def fleet(router: str | dict[str, Any], replicas: int, workload: dict[str, Any], seed: int = 0) -> Scenario:
    """One pool of a small LLM."""
    return Scenario.model_validate(
        {
            "schema": 1,
            "name": "routing",
            "seed": seed,
            "workload": {"kind": "synthetic", **workload},
            "gateway": {"router": router},
            "pools": [{"name": "main", "llm": "llama-3.1-8b", "accelerator": "h100-sxm", "replicas": replicas}],
        }
    )


def fixed(value: int) -> dict[str, Any]:
    return {"distribution": "fixed", "value": value}


def burst(requests: int) -> dict[str, Any]:
    """Requests so close together that none ends before the last comes."""
    arrivals = {"process": "deterministic", "rate": "100000 req/s"}
    return {"requests": requests, "arrivals": arrivals, "prompt_tokens": fixed(64), "output_tokens": fixed(50)}


def steady(requests: int, rate: int = 40) -> dict[str, Any]:
    arrivals = {"process": "poisson", "rate": f"{rate} req/s"}
    lengths = {"distribution": "lognormal", "mean": 200, "cv": 1.5, "min": 1, "max": 2000}
    return {"requests": requests, "arrivals": arrivals, "prompt_tokens": lengths, "output_tokens": lengths}


def replicas_chosen(scenario: Scenario, folder: Path) -> list[int]:
    result = fleetsim.run(scenario, folder / "out", check=True)
    assert result.summary["finished"] == result.summary["requests"]
    chosen: list[int] = result.requests().sort_by("request_id")["replica"].to_pylist()
    return chosen


def test_round_robin_takes_the_replicas_in_turn(tmp_path: Path) -> None:
    assert replicas_chosen(fleet("round-robin", 3, steady(20)), tmp_path) == [i % 3 for i in range(20)]


def test_random_is_even_and_forgetful(tmp_path: Path) -> None:
    """Shares of 5 replicas, and of the 25 pairs in a row, within five standard deviations."""
    chosen = replicas_chosen(fleet("random", 5, burst(4000)), tmp_path)
    singles, pairs = Counter(chosen), Counter(pairwise(chosen))
    assert max(abs(singles[i] - 800) for i in range(5)) < 5 * (4000 * 0.2 * 0.8) ** 0.5
    assert max(abs(pairs[i, j] - 160) for i in range(5) for j in range(5)) < 5 * (4000 * 0.04 * 0.96) ** 0.5


@pytest.mark.parametrize("router", ["least-outstanding", "join-shortest-queue"])
def test_a_burst_of_equal_requests_is_spread_evenly(router: str, tmp_path: Path) -> None:
    chosen = replicas_chosen(fleet(router, 4, burst(40)), tmp_path)
    assert all(sorted(chosen[i : i + 4]) == [0, 1, 2, 3] for i in range(0, 40, 4))


def test_least_outstanding_never_chooses_a_busier_replica(tmp_path: Path) -> None:
    """At every arrival, the chosen replica has as few requests as any, counted from the request table."""
    result = fleetsim.run(fleet("least-outstanding", 4, steady(600)), tmp_path / "out", check=True)
    table = result.requests().sort_by("request_id")
    arrival, end = table["arrival_s"].to_numpy(), table["end_s"].to_numpy()
    replica = table["replica"].to_numpy()
    busiest = 0
    for n in range(1, 600):
        there = (arrival[:n] < arrival[n]) & (end[:n] > arrival[n])
        counts = np.bincount(replica[:n][there], minlength=4)
        assert counts[replica[n]] == counts.min()
        busiest = max(busiest, int(counts.max()))
    assert busiest >= 5


def test_power_of_as_many_choices_as_replicas_is_the_least_outstanding(tmp_path: Path) -> None:
    """With all replicas drawn, the chosen one has the fewest; with one choice, it is as uneven as random."""
    everywhere = fleet({"policy": "power-of-two-choices", "choices": 4}, 4, burst(40))
    anywhere = fleet({"policy": "power-of-two-choices", "choices": 1}, 4, burst(400))
    assert set(Counter(replicas_chosen(everywhere, tmp_path)).values()) == {10}
    uneven = Counter(replicas_chosen(anywhere, tmp_path))
    assert max(uneven.values()) - min(uneven.values()) > 5


def test_two_choices_are_never_the_same_replica(tmp_path: Path) -> None:
    """Of two replicas both are drawn, so a burst alternates in count; random choice would not."""
    chosen = replicas_chosen(fleet("power-of-two-choices", 2, burst(60)), tmp_path)
    assert all(sorted(chosen[i : i + 2]) == [0, 1] for i in range(0, 60, 2))


def test_shortest_queue_by_tokens_avoids_the_replica_with_the_long_prompt() -> None:
    """One long prompt outweighs many short ones, until its first token comes."""
    view = FleetView(["main", "main"])
    router = create("join-shortest-queue", view)
    assert send(router, view, 5000) == 0
    assert [send(router, view, 100) for _ in range(20)] == [1] * 20
    view.started(0, 5000)
    assert send(router, view, 100) == 0  # it now counts 64
    least = FleetView(["main", "main"])
    by_number = create("least-outstanding", least)
    assert [send(by_number, least, 5000), *(send(by_number, least, 100) for _ in range(3))] == [0, 1, 0, 1]


def create(name: str, view: FleetView, **parameters: Any) -> Any:
    policy = load("routers", name)
    return policy(policy.Config(**parameters), np.random.default_rng(0), view)


def send(router: Any, view: FleetView, prompt_tokens: int, session: int = -1) -> int:
    """Route a request and count it as the gateway does."""
    request = Request(0, 0.0, prompt_tokens, 1, session=session)
    position: int = router.route(RequestView(request))
    view.sent(position, prompt_tokens)
    return position


def test_sessions_keep_their_replica_whoever_else_comes() -> None:
    """The replica of a session depends on the session and the number of replicas alone."""
    alone, crowd = FleetView(["main"] * 7), FleetView(["main"] * 7)
    few, many = create("session-affinity", alone), create("session-affinity", crowd)
    homes = {session: send(few, alone, 10, session) for session in range(100)}
    assert len(set(homes.values())) == 7
    for session in range(100):
        send(many, crowd, 10, 1_000_000 + session)
        send(many, crowd, 5000)
        assert send(many, crowd, 10, session) == homes[session]
        assert send(many, crowd, 10, session) == homes[session]


def test_sessions_move_only_to_a_replica_that_was_added() -> None:
    """Rendezvous hashing: with 8 replicas instead of 7, about an eighth moves, and all of it to the new one."""
    seven, eight = FleetView(["main"] * 7), FleetView(["main"] * 8)
    before, after = create("session-affinity", seven), create("session-affinity", eight)
    pairs = [(send(before, seven, 10, session), send(after, eight, 10, session)) for session in range(2000)]
    moved = [new for old, new in pairs if old != new]
    assert set(moved) == {7}
    assert abs(len(moved) - 250) < 5 * (2000 * 7 / 64) ** 0.5


def test_turns_of_a_session_stay_together_in_a_run(tmp_path: Path) -> None:
    """And hit the prefix cache there, which other routers scatter."""
    workload = {**steady(400, 20), "prompt_tokens": fixed(100), "output_tokens": fixed(100)}
    workload["sessions"] = {"turns": fixed(8), "think_time": "500 ms"}
    hits = {}
    for router in ("session-affinity", "round-robin"):
        result = fleetsim.run(fleet(router, 4, workload), tmp_path / router, check=True)
        table = result.requests()
        homes: dict[int, set[int]] = {}
        for session, replica in zip(table["session_id"].to_pylist(), table["replica"].to_pylist(), strict=True):
            homes.setdefault(session, set()).add(replica)
        hits[router] = result.summary["prefix_hit_ratio"]
        together = all(len(replicas) == 1 for replicas in homes.values())
        assert together == (router == "session-affinity")
        assert {r for replicas in homes.values() for r in replicas} == {0, 1, 2, 3}
    assert hits["session-affinity"] > 1.5 * hits["round-robin"] > 0


def test_requests_without_a_session_go_to_the_least_outstanding() -> None:
    view = FleetView(["main"] * 3)
    router = create("session-affinity", view)
    assert sorted(send(router, view, 10) for _ in range(3)) == [0, 1, 2]
