"""Routers by hand: small fleets of replicas whose state the test sets, and every choice worked out beside it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import fleetsim
from fleetsim.errors import PolicyError
from fleetsim.plugins import load
from fleetsim.routing.api import FleetView, Freshness, RequestView, Route
from fleetsim.scenario.load import load_mapping
from fleetsim.testing import check_router
from fleetsim.testing.station import Station
from fleetsim.workload.prefixes import Content
from fleetsim.workload.request import Request
from tests.routing.test_basic import fixed, fleet, steady

PARAMETERS: list[tuple[str, dict[str, Any]]] = [
    ("preble", {"output_s": 0.5, "window_s": 2.0}),
    ("dynamo-kv", {"temperature": 0.5}),
    ("vllm-dp", {"stats_interval_s": 0.0}),
    ("min-ttft", {"holders": 0}),
    ("least-work", {"choices": 2}),
    ("least-work", {"choices": 3}),
    ("join-idle-queue", {"idle_below": 4}),
    ("prefix-score", {"precise": True}),
    ("fleetopt", {"short_pool": "pool-0", "boundary_tokens": 400, "gamma": 2.0, "compressed_share": 0.5}),
    ("route-balance", {"least_chance": 0.7, "balance_weight": 0.5, "holders": 8}),
    ("weighted-least-outstanding", {"weights": {"pool-0": 1.0, "pool-1": 3.0}}),
    ("melange", {"prompt_edges": [200], "shares": {"pool-0": [[1.0], [0.0]]}}),
    ("epsilon", {"inner": "preble", "epsilon": 0.3}),
    ("shadow", {"inner": "min-ttft", "shadow": "lmetric"}),
    ("hedge", {"inner": "dynamo-kv"}),
    ("retry", {"inner": "cache-aware", "retries": 3}),
]


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS)
def test_checker_passes_with_other_parameters(name: str, parameters: dict[str, Any]) -> None:
    check_router(name, parameters)


class Course:
    """Replicas whose state a test sets."""

    def __init__(self, speeds: list[float], pools: list[str] | None = None) -> None:
        self.now_s = 0.0
        self.stations = [Station(speed, 16, lambda: self.now_s) for speed in speeds]
        pools = pools or ["main"] * len(speeds)
        self.view = FleetView(pools, (), self.stations, Freshness(), lambda: self.now_s)
        self.number = 100

    def router(self, name: str, **parameters: Any) -> Any:
        policy = load("routers", name)
        return policy(policy.Config.model_validate(parameters), np.random.default_rng(0), self.view)

    def request(self, tokens: int, content: Content | None = None) -> Request:
        self.number += 1
        return Request(self.number, self.now_s, tokens, 10, content)

    def send(self, position: int, tokens: int, content: Content | None = None) -> Request:
        request = self.request(tokens, content)
        self.view.sent(position, tokens, request)
        self.stations[position].sent(request)
        return request

    def start(self, position: int, request: Request) -> None:
        self.view.started(position, request.prompt_tokens, self.now_s - request.arrival_s)
        self.stations[position].started(request)

    def end(self, position: int, request: Request) -> None:
        self.view.ended(position, request.prompt_tokens)
        self.stations[position].ended(request)

    def cache(self, position: int, tokens: int, content: Content) -> None:
        """Let a replica hold the start of `content`, and nothing run there."""
        request = self.send(position, tokens, content)
        self.start(position, request)
        self.end(position, request)

    def ask(self, router: Any, tokens: int, content: Content | None = None, at_s: float | None = None) -> Any:
        if at_s is not None:
            self.now_s = at_s
        self.view.now_s = self.now_s
        return router.route(RequestView(self.request(tokens, content)))


SHARED = Content(((1, 4000),))


def test_min_ttft_weighs_queues_caches_and_chips() -> None:
    course = Course([1000.0, 1000.0, 4000.0])
    router = course.router("min-ttft")
    assert course.ask(router, 1000) == 2  # 0.26 s against 1.05 s: the fast chip
    course.send(2, 12_000)
    assert course.ask(router, 1000) == 0  # 4.8 s of work there
    course.cache(1, 4000, SHARED)
    assert course.ask(router, 3500, SHARED) == 1
    course.send(1, 3000)
    assert course.ask(router, 3500, SHARED) == 1  # a queue of 3.5 s, but computing all of it takes 4.1 s
    course.send(1, 3000)
    assert course.ask(router, 3500, SHARED) == 0
    assert course.router("min-ttft", holders=0).route(RequestView(course.request(3500, SHARED))) == 0


def test_least_work_is_seconds_not_requests() -> None:
    course = Course([1000.0, 4000.0])
    router = course.router("least-work")
    for _ in range(3):
        course.send(1, 500)
    assert course.ask(router, 100) == 0  # 1,500 tokens there take 0.4 s, own ones 0.03 s more; here 0.1 s
    assert course.ask(router, 1000) == 1
    running = [course.send(0, 10) for _ in range(40)]
    for request in running:
        course.start(0, request)
    assert course.ask(router, 100) == 1  # 40 x 64 tokens


def test_lmetric_multiplies() -> None:
    course = Course([1000.0] * 3)
    router = course.router("lmetric")
    course.cache(0, 3200, SHARED)
    running = [course.send(0, 160) for _ in range(2)]
    for request in running:
        course.start(0, request)
    course.send(1, 100)
    # uncached and queued tokens x (requests + 1): 16 x 3 = 48, (3200 + 100) x 2, 3200 x 1
    assert course.ask(router, 3200, SHARED) == 0
    # without the prefix: 500 x 3, 600 x 2, 500 x 1
    assert course.ask(router, 500) == 2
    course.send(2, 1000)
    # 500 x 3, 600 x 2, 1500 x 2
    assert course.ask(router, 500) == 1


def test_dynamo_adds_blocks() -> None:
    course = Course([1000.0] * 2)
    router = course.router("dynamo-kv")
    course.cache(0, 3200, SHARED)
    assert {course.ask(router, 500) for _ in range(40)} == {0, 1}  # a tie: at random
    assert course.ask(router, 3200, SHARED) == 0
    course.start(0, course.send(0, 6000))  # 375 of a block count of 16,384 x 0.1 in use: more than 199 blocks saved
    assert course.ask(router, 3200, SHARED) == 1
    assert course.router("dynamo-kv", overlap_weight=10.0).route(RequestView(course.request(3200, SHARED))) == 0
    warm = course.router("dynamo-kv", temperature=1.0)
    drawn = Counter(course.ask(warm, 3200, SHARED) for _ in range(4000))
    # costs differ by their whole range, so the ratio is e
    assert drawn[1] / drawn[0] == pytest.approx(np.e, rel=0.1)


def test_vllm_dp_reads_every_100_ms_and_counts_what_it_sent_since() -> None:
    course = Course([1000.0] * 3)
    router = course.router("vllm-dp")
    assert [course.ask(router, 10) for _ in range(4)] == [0, 1, 2, 0]  # four points for each
    for position in (1, 1, 2):
        request = course.send(position, 10)
        course.start(position, request)
    assert course.ask(router, 10, at_s=0.05) == 1  # not known yet
    assert course.ask(router, 10, at_s=0.1) == 0  # 0, 2 and 1 running
    assert course.ask(router, 10, at_s=0.11) == 2
    course.send(2, 10)
    assert course.ask(router, 10, at_s=0.3) == 0  # 0, 2, 4 + 1
    assert course.ask(router, 10, at_s=0.3) == 1  # 4, 2, 5


def test_join_idle_queue() -> None:
    course = Course([1000.0] * 3)
    router = course.router("join-idle-queue")
    for expected in range(3):
        assert course.ask(router, 10) == expected
        course.send(expected, 10)
    assert {course.ask(router, 10) for _ in range(60)} == {0, 1, 2}  # none idle: at random
    course.view.ended(1, 10)
    assert course.ask(router, 10) == 1
    course.send(1, 10)
    course.view.ended(1, 10)
    course.view.ended(0, 10)
    course.view.sent(1, 10)
    assert course.ask(router, 10) == 0  # 1 was idle and is no longer


def test_aibrix_prefers_prefixes_within_two_deviations() -> None:
    course = Course([1000.0] * 10)
    router = course.router("aibrix-prefix")
    first = course.ask(router, 3200, SHARED)
    assert course.ask(router, 3200, SHARED) == first
    for _ in range(8):  # mean 0.8, deviation 2.4: the bound is 5.6
        course.send(first, 10)
    second = course.ask(router, 3200, SHARED)
    assert second != first
    for _ in range(4):
        course.view.ended(first, 10)
    assert course.ask(router, 3200, SHARED) in (first, second)
    for _ in range(17):  # more than 16 above the least
        course.view.sent(second, 10)
    other = course.ask(router, 3200, SHARED)
    assert other not in (first, second)


def test_preble_exploits_half_and_explores_by_recent_load() -> None:
    course = Course([1000.0] * 3)
    router = course.router("preble", window_s=10.0)
    assert course.ask(router, 3200, SHARED) == 0
    assert course.ask(router, 2000) == 1  # load: 3.7 s at 0
    assert course.ask(router, 2000) == 2
    assert course.ask(router, 4000, SHARED) == 0  # 3,200 of 4,000 were sent there
    tail = Content(((1, 1000), (2, 9000)))
    # only 1,000 of 10,000 tokens are there: explore; 4.6 + 13.8, 2.2 + 15, 2.2 + 15 s
    assert course.ask(router, 10_000, tail) == 1
    assert course.ask(router, 100, at_s=10.5) == 0  # all of it was longer ago than the window


def test_precise_prefix_score_reads_caches_not_memories() -> None:
    course = Course([1000.0] * 3)
    router = course.router("prefix-score", precise=True)
    course.cache(2, 4000, SHARED)
    assert course.ask(router, 3200, SHARED) == 2
    believing = course.router("prefix-score")
    assert course.ask(believing, 3200, SHARED) != 2  # it was never told


def test_weighted_requests_follow_weights_and_speeds() -> None:
    course = Course([1000.0, 3000.0], ["slow", "fast"])
    for parameters in ({}, {"weights": {"slow": 1.0, "fast": 3.0}}):
        router = course.router("weighted-least-outstanding", **parameters)
        chosen = []
        for _ in range(8):
            chosen.append(course.ask(router, 10))
            course.view.sent(chosen[-1], 10)
        assert Counter(chosen) == {1: 6, 0: 2}
        for position in chosen:
            course.view.ended(position, 10)
    with pytest.raises(PolicyError, match="missing: \\['slow'\\]"):
        course.router("weighted-least-outstanding", weights={"fast": 1.0})


def test_pool_state_learns_speeds_from_first_tokens_and_notices_a_slow_down() -> None:
    """The true rate within 10 % after 50 first tokens; half the speed within 30 more: flagged and avoided."""
    course = Course([1000.0, 1000.0])
    router = course.router("pool-state")
    rng = np.random.default_rng(2)

    def first_tokens(count: int, position: int, token_s: float) -> None:
        for tokens in rng.integers(100, 4000, count).tolist():
            request = course.send(position, tokens)
            course.view.started(position, tokens, 0.05 + tokens * token_s + rng.normal(0.0, 0.02))
            course.stations[position].started(request)
            course.end(position, request)

    for position, token_s in ((0, 1e-3), (1, 2e-3)):
        first_tokens(50, position, token_s)
    known = router.explain(RequestView(course.request(100)))
    assert known[0]["token_s"] == pytest.approx(1e-3, rel=0.1)
    assert known[1]["token_s"] == pytest.approx(2e-3, rel=0.1)
    assert course.ask(router, 1000) == 0
    course.send(0, 1000)
    assert course.ask(router, 1000) == 1 or known[0]["wait_s"] < known[1]["wait_s"]
    first_tokens(30, 0, 4e-3)
    known = router.explain(RequestView(course.request(100)))
    assert known[0]["slow"] == 1.0
    assert known[1]["slow"] == 0.0
    assert course.ask(router, 1000) == 1


def test_route_balance_scores_and_filters() -> None:
    course = Course([1000.0, 4000.0], ["cheap", "fast"])
    prices = {"usd_per_token": {"cheap": 1e-7, "fast": 8e-7}}
    only = {"latency_weight": 0.0, "cost_weight": 0.0, "quality_weight": 0.0}
    assert course.ask(course.router("route-balance", **prices, **only | {"cost_weight": 1.0}), 1000) == 0
    assert course.ask(course.router("route-balance", **prices, **only | {"latency_weight": 1.0}), 1000) == 1
    assert (
        course.ask(
            course.router("route-balance", quality={"cheap": 0.9, "fast": 0.5}, **only | {"quality_weight": 1}), 9
        )
        == 0
    )
    # cost decides, but the cheap one cannot keep the objective; where nobody can, cost decides again
    filtered = course.router("route-balance", **prices, **only | {"cost_weight": 1.0}, least_chance=0.7, ttft_slo_s=0.5)
    assert course.ask(filtered, 1000) == 1
    assert course.ask(filtered, 30_000) == 0


def test_fleetopt_routes_by_length_and_compresses_the_borderline() -> None:
    course = Course([1000.0] * 4, ["short", "short", "long", "long"])
    router = course.router("fleetopt", boundary_tokens=1000, gamma=1.5, output_tokens=100, compress_s=0.02)
    assert course.ask(router, 900) == 0
    course.view.sent(0, 900)
    assert course.ask(router, 10) == 1
    assert course.ask(router, 901) == Route(1, prompt_tokens=900, prepare_s=0.02)
    assert course.ask(router, 1401) == 2
    assert router.compressed == 1
    half = course.router("fleetopt", boundary_tokens=1000, gamma=1.5, output_tokens=100, compressed_share=0.5)
    answers = [course.ask(half, 1200) for _ in range(400)]
    assert 150 < sum(isinstance(answer, Route) for answer in answers) == half.compressed < 250
    with pytest.raises(PolicyError, match="finds no pool 'tiny'"):
        course.router("fleetopt", short_pool="tiny")


def test_melange_keeps_the_shares_of_a_plan() -> None:
    course = Course([1000.0] * 3, ["fast", "cheap", "cheap"])
    shares = {"fast": [[0.25], [1.0]], "cheap": [[0.75], [0.0]]}
    router = course.router("melange", prompt_edges=[500], shares=shares)
    short = []
    for _ in range(8):
        short.append(course.ask(router, 500))
        course.view.sent(short[-1], 500)
    assert short == [1, 0, 2, 1, 2, 0, 1, 2]
    assert [course.ask(router, 501) for _ in range(5)] == [0] * 5
    with pytest.raises(PolicyError, match="shares of pools that are not there: slow"):
        course.router("melange", shares={"slow": [[1.0]]})
    with pytest.raises(PolicyError, match="must be 2 rows of 1"):
        course.router("melange", prompt_edges=[500], shares={"fast": [[1.0]]})


def test_epsilon_explores_as_often_as_it_says() -> None:
    course = Course([1000.0] * 4)
    router = course.router("epsilon", epsilon=0.2, inner={"policy": "min-ttft"})
    chosen = Counter(course.ask(router, 100) for _ in range(4000))
    assert chosen[0] / 4000 == pytest.approx(0.8 + 0.2 / 4, abs=0.02)
    assert max(abs(chosen[i] / 4000 - 0.05) for i in (1, 2, 3)) < 0.012


def test_shadow_counts_agreement() -> None:
    course = Course([1000.0] * 4)
    router = course.router("shadow", inner="round-robin", shadow="min-ttft")
    assert [course.ask(router, 10) for _ in range(8)] == [0, 1, 2, 3] * 2
    assert (router.asked, router.agreed, router.second) == (8, 2, 0)
    assert course.router("shadow", inner="dualmap").decision_s == 0.0006


def test_second_tries_go_elsewhere() -> None:
    course = Course([1000.0] * 3)
    for name, field in (("hedge", "hedge_after_s"), ("retry", "retry_after_s")):
        router = course.router(name, inner="min-ttft", after_s=0.7)
        first = course.ask(router, 100)
        assert (first.replica, getattr(first, field)) == (0, 0.7)
        again = course.request(100)
        again.attempt, again.replica = 1, 0
        second = router.route(RequestView(again))
        assert second == Route(1)


# --- in whole runs ----------------------------------------------------------------------------------------------------


def mapping(router: Any, replicas: int, workload: dict[str, Any]) -> dict[str, Any]:
    dumped: dict[str, Any] = fleet(router, replicas, workload).model_dump(mode="json", by_alias=True, exclude_none=True)
    return dumped


def test_compressed_prompts_are_shorter_in_the_table_and_later(tmp_path: Path) -> None:
    base = mapping("random", 1, {**steady(300, 10), "prompt_tokens": fixed(1200), "output_tokens": fixed(50)})
    short, long = base["pools"][0] | {"name": "short"}, base["pools"][0] | {"name": "long"}
    base["pools"] = [short, long]
    base["gateway"] = {
        "router": {
            "policy": "fleetopt",
            "boundary_tokens": 1000,
            "gamma": 1.3,
            "output_tokens": 50,
            "compress_s": 0.25,
        }
    }
    table = fleetsim.run(base, tmp_path / "out", check=True).requests()
    assert set(table["pool"].to_pylist()) == {"short"}
    assert set(table["prompt_tokens"].to_pylist()) == {950}
    assert set(table["dropped_tokens"].to_pylist()) == {250}
    assert np.subtract(table["queued_s"].to_numpy(), table["arrival_s"].to_numpy()).min() >= 0.25


def test_hedged_and_retried_runs_keep_the_books(tmp_path: Path) -> None:
    for name in ("hedge", "retry"):
        router = {"policy": name, "after_s": 0.08, "inner": {"policy": "power-of-two-choices"}}
        workload = {
            **steady(400, 60),
            "prompt_tokens": {"distribution": "lognormal", "mean": 1500, "cv": 1.5, "min": 10, "max": 12000},
        }
        result = fleetsim.run(fleet(router, 3, workload), tmp_path / name, check=True)
        assert result.summary["finished"] == result.summary["requests"] == 400


def test_decisions_are_explained(tmp_path: Path) -> None:
    """One row per candidate: what the view showed, what the router said of it, and which one it was."""
    workload = {**steady(200, 40), "prefixes": {"groups": 4, "tokens": 600}}
    base = mapping({"policy": "shadow", "inner": "min-ttft", "shadow": "lmetric"}, 3, workload)
    plain = fleetsim.run(base, tmp_path / "plain", check=True)
    assert not (tmp_path / "plain" / "decisions.parquet").exists()
    result = fleetsim.run(base, tmp_path / "out", check=True, explain=[50, 150])
    assert result.requests().equals(plain.requests())  # asking changes nothing
    rows = pq.read_table(tmp_path / "out" / "decisions.parquet").to_pylist()
    assert [(row["request_id"], row["candidate"]) for row in rows] == [(i, c) for i in (50, 150) for c in range(3)]
    replicas = dict(zip(*(result.requests()[name].to_pylist() for name in ("request_id", "replica")), strict=True))
    for number in (50, 150):
        about = [row for row in rows if row["request_id"] == number]
        (chosen,) = [row for row in about if row["chosen"]]
        assert chosen["candidate"] == replicas[number]
        figures = {row["candidate"]: json.loads(row["figures"]) for row in about}
        assert min(figures, key=lambda c: figures[c]["ttft_s"]) == replicas[number]
        for row in about:
            assert figures[row["candidate"]]["ttft_s"] == pytest.approx(row["ttft_s"], abs=1e-3)
            assert row["ttft_s"] >= row["prefill_s"] > 0.0
        second = json.loads(chosen["said"])["shadow_replica"]
        assert second == min(figures, key=lambda c: figures[c]["shadow.product"])
    own = fleetsim.run(mapping("least-outstanding", 3, workload), tmp_path / "own", explain=[7]).out
    assert set(pq.read_table(own / "decisions.parquet")["waiting"].to_pylist()) == {None}


@pytest.mark.parametrize(
    "router", ["min-ttft", "lmetric", "dynamo-kv", "preble", "least-work", "dualmap", "route-balance"]
)
def test_fast_chips_get_more_where_the_router_knows(router: str, tmp_path: Path) -> None:
    """Two chips of different speed under load: every request ends, and the faster one gets at least its share."""
    base = mapping(router, 2, {**steady(600, 30), "prompt_tokens": fixed(1500), "output_tokens": fixed(20)})
    slow = base["pools"][0] | {"name": "slow", "accelerator": "l4", "replicas": 2}
    base["pools"] = [base["pools"][0], slow]
    base = load_mapping(base, {}, Path()).scenario.model_dump(mode="json", by_alias=True, exclude_none=True)
    result = fleetsim.run(base, tmp_path / "out", check=True)
    served = Counter(result.requests()["pool"].to_pylist())
    assert result.summary["finished"] == 600
    if router in ("min-ttft", "least-work", "route-balance", "preble"):
        assert served["main"] > 2 * served["slow"]
