"""Autoscalers that plan, learn or know do by hand-made figures what their papers say."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any

import numpy as np
import pytest

from fleetsim.scaling.api import Profile, Window
from fleetsim.scaling.capacity import best_batch, decode_rate, replica_seconds
from fleetsim.scaling.future import Future, Known
from fleetsim.workload.request import Request
from tests.scaling.desk import Desk


def window(requests: int, prompt: int = 1000, output: int = 200, **more: Any) -> Window:
    """So many requests that came and ended."""
    found = Window()
    found.arrivals = found.finished = requests
    found.prompt_tokens, found.output_tokens = requests * prompt, requests * output
    for name, value in more.items():
        setattr(found, name, value)
    return found


# --- what a replica carries ----------------------------------------------------------------------------------------------


def test_a_batch_is_bounded_by_seats_memory_and_time() -> None:
    pool = Desk("oracle", 1).pool
    assert best_batch(pool, 500.0, np.inf) == 100  # seats
    assert best_batch(pool, 2000.0, np.inf) == 50  # memory
    assert best_batch(pool, 1100.0, 0.02) == 47  # 10 ms + 0.21 ms each
    assert best_batch(pool, 1100.0, 0.001) == 1
    assert decode_rate(pool, 1100.0, 0.02) == pytest.approx(47 / (0.01 + 47 * 2.1e-4))


def test_work_is_that_of_the_pools_role() -> None:
    pool = Desk("oracle", 1).pool
    rate = decode_rate(pool, 1100.0, 0.02)
    assert replica_seconds(pool, 10, 10_000, 2000, 0.02) == pytest.approx(1.0 + 2000 / rate)
    pool.role = "prefill"
    assert replica_seconds(pool, 10, 10_000, 2000, 0.02) == pytest.approx(1.0)
    pool.role = "decode"
    assert replica_seconds(pool, 10, 10_000, 2000, 0.02) == pytest.approx(2000 / rate)


# --- dynamo-planner ------------------------------------------------------------------------------------------------------


def planner(role: str, replicas: int = 1, **config: Any) -> Desk:
    desk = Desk("dynamo-planner", replicas, **config)
    desk.pool.role = role
    return desk


def test_the_planner_counts_prompt_tokens() -> None:
    """10,000 prompt tokens per second and replica."""
    assert planner("prefill").tick(window=window(1800)) == 1
    assert planner("prefill").tick(window=window(1801)) == 2
    assert planner("prefill").tick(window=window(9000)) == 5


@pytest.mark.parametrize(("ttft_s", "replicas"), [(0.05, 3), (0.1, 5), (0.4, 5)])
def test_the_planner_corrects_prompts_downwards_only(ttft_s: float, replicas: int) -> None:
    seen = window(9000, ttfts=10, ttft_sum_s=10 * ttft_s)
    assert planner("prefill").tick(window=seen) == replicas


@pytest.mark.parametrize(("limit_s", "replicas"), [(np.inf, 2), (0.02, 2), (0.015, 3), (0.012, 6)])
def test_the_planner_meets_the_time_per_token(limit_s: float, replicas: int) -> None:
    """4,000 tokens of answers per second; 23 requests at a time within 15 ms make 1,551 of them."""
    assert planner("decode").tick(window=window(3600), tpot_limit_s=limit_s) == replicas


def test_the_planner_tightens_the_limit_by_what_it_sees() -> None:
    """20 requests run: 14.2 ms by the model. If they take a third longer, 20 ms must be 15 ms by the model."""
    seen = window(3600, tpots=10, tpot_sum_s=10 * 0.0142 * 4.0 / 3.0)
    assert planner("decode").tick(window=seen, tpot_limit_s=0.02, running=20) == 3


def test_the_planner_adds_both_parts_for_mixed_replicas() -> None:
    assert planner("mixed").tick(window=window(3600)) == 4  # 2.0 for prompts and 1.3 for answers


def test_by_load_prompts_follow_the_queue() -> None:
    desk = planner("prefill", 4, mode="load")
    assert desk.until(29.0, waiting=3) == 4
    assert desk.until(30.0, waiting=3) == 5
    assert desk.until(60.0, waiting=2) == 5
    assert desk.until(90.0, waiting=0) == 4


def test_by_load_a_queue_that_falls_fast_enough_is_let_be() -> None:
    assert planner("prefill", 4, mode="load").until(30.0, waiting=8) == 5
    desk = planner("prefill", 4, mode="load")
    desk.until(30.0, waiting=16)  # 4 for each: one more
    assert desk.until(60.0, waiting=10) == 5  # 2 for each, less by 2 in each interval
    assert desk.until(90.0, waiting=15) == 6


def test_by_load_answers_follow_memory_and_wait_after_an_addition() -> None:
    desk = planner("decode", 2, mode="load")
    assert desk.until(30.0, kv_used_ratio=0.95) == 3
    assert [desk.until(30.0 * i, kv_used_ratio=0.4) for i in range(2, 7)] == [3, 3, 3, 2, 1]


# --- sageserve -----------------------------------------------------------------------------------------------------------


def test_reactive_goes_one_by_one_with_pauses() -> None:
    desk = Desk("sageserve", 3, mode="reactive", cooldown_s=120.0)
    assert [desk.tick(kv_used_ratio=0.6) for _ in range(4)] == [4, 4, 5, 5]
    assert [desk.tick(kv_used_ratio=0.2) for _ in range(3)] == [4, 4, 3]
    assert desk.tick(kv_used_ratio=0.4) == 3


def test_a_plan_carries_the_forecast_and_a_buffer() -> None:
    """A period's work of 600 requests keeps one prompt replica busy; so does the buffer's tenth of it."""
    desk = Desk("sageserve", 1, mode="immediate", load_ratio=1.0)
    desk.pool.role = "prefill"
    assert desk.tick(window=window(1800)) == 4  # 3 and 0.3
    assert desk.tick(window=window(6000)) == 4  # until the next plan
    assert desk.until(3660.0, window=window(6000)) == 11


def test_a_plan_waits_for_memory_to_confirm_it() -> None:
    desk = Desk("sageserve", 1, mode="lt-u", load_ratio=1.0)
    desk.pool.role = "prefill"
    busy = window(1800)
    assert desk.tick(window=busy, kv_used_ratio=0.4) == 1  # 4 are planned
    assert [desk.tick(window=busy, kv_used_ratio=0.6) for _ in range(5)] == [2, 3, 4, 4, 4]
    assert desk.tick(window=busy, kv_used_ratio=0.95) == 5  # whatever the plan
    assert [desk.tick(window=busy, kv_used_ratio=0.1) for _ in range(3)] == [4, 4, 4]


@pytest.mark.parametrize(("mode", "replicas"), [("lt-u", 4), ("lt-ua", 3)])
def test_a_wrong_forecast_is_no_bound(mode: str, replicas: int) -> None:
    desk = Desk("sageserve", 4, mode=mode, load_ratio=1.0)
    desk.pool.role = "prefill"
    desk.tick(window=window(1800), kv_used_ratio=0.4)
    assert desk.tick(window=window(300), kv_used_ratio=0.1) == replicas


# --- newsvendor ----------------------------------------------------------------------------------------------------------


def vendor(**config: Any) -> Desk:
    desk = Desk("newsvendor", 1, **config)
    desk.pool.role = "prefill"
    return desk


def test_a_sure_demand_is_met_at_the_believed_load() -> None:
    """600 requests a period keep one replica busy; at 0.7 of what it carries, 4,200 need ten."""
    desk = vendor()
    for _ in range(5):
        wanted = desk.tick(window=window(4200))
    assert wanted == 10


def test_a_newsvendor_takes_the_critical_quantile() -> None:
    """Without the bound on the chance, and with cost c per replica and v per lost share, the textbook's answer."""
    desk = vendor(violation_probability=0.999, replica_cost=1.0, violation_cost=10.0, load_ratio=1.0)
    demands = np.random.default_rng(0).uniform(4.0, 8.0, 4000)
    found = desk.policy._cheapest(demands, 1.0)
    costs = [a + 10.0 * np.mean(np.maximum(demands - a, 0.0) / demands) for a in range(1, 12)]
    assert found == 1 + int(np.argmin(costs))
    assert 4 <= found <= 8


def test_a_chance_bounds_it_from_below() -> None:
    demands = np.random.default_rng(0).uniform(4.0, 8.0, 4000)
    found = vendor(violation_cost=0.0).policy._cheapest(demands, 1.0)
    assert found == 8  # the 95 % quantile is 7.8


def test_changes_cost() -> None:
    demands = np.full(100, 5.0)
    desk = vendor(switching_cost=5.0)
    desk.pool.wanted = 7
    assert desk.policy._cheapest(np.append(demands, 8.0), 1.0) == 7


def test_what_a_replica_carries_is_learnt() -> None:
    """All is well at 0.9 of what the model says for hours: then that is believed; one bad hour, and no more."""
    desk = vendor()
    assert desk.policy.load_ratio == pytest.approx(0.7)
    good = window(540, ttfts=540)
    for _ in range(60):
        desk.tick(window=good, ready=1)
    assert desk.policy.load_ratio == pytest.approx(0.95)  # 540 of 600: the bin from 0.9 to 0.95
    bad = window(480, ttfts=480, late=240)
    for _ in range(60):
        desk.tick(window=bad, ready=1)
    assert desk.policy.load_ratio < 0.85


def test_forecasts_that_promise_too_much_are_spread() -> None:
    """Demand doubles each time: no walk of past changes is wide enough."""
    desk = vendor()
    for i in range(80):
        desk.tick(window=window(int(10 * 1.1**i)))
    assert desk.policy.spread > 1.5


# --- llumnix -------------------------------------------------------------------------------------------------------------


def test_freeness_counts_steps_until_memory_is_full() -> None:
    desk = Desk("llumnix", 2)
    desk.tick(running=100, kv_used_ratio=0.5)
    assert desk.policy.freeness == pytest.approx(1000.0)  # 100,000 of 200,000 tokens over 100 requests
    desk.tick(running=100, waiting=50, kv_used_ratio=0.5)
    assert desk.policy.freeness == pytest.approx(500.0)


def test_llumnix_adds_after_a_while_without_room() -> None:
    desk = Desk("llumnix", 2)
    assert desk.until(30.0, running=100, kv_used_ratio=0.996) == 2
    assert desk.until(35.0, running=100, kv_used_ratio=0.996) == 3
    assert desk.until(60.0, running=100, kv_used_ratio=0.996) == 3
    assert desk.until(300.0, running=100, kv_used_ratio=0.99) == 3  # 30 steps: neither
    assert desk.until(400.0, running=100, kv_used_ratio=0.5) == 1


# --- knative-rl ----------------------------------------------------------------------------------------------------------


def test_q_learning_does_the_sums_of_the_textbook() -> None:
    """Alpha 0.5, gamma 0.9; the first reward is 2 (best throughput and best latency so far), the second 0.5 + 0.5."""
    desk = Desk("knative-rl", 1, start=64)
    policy = desk.policy
    policy._explore = 0.0
    desk.pool.max_seqs = 256
    desk.tick(window=window(100, output=60, latency_sum_s=100.0), busy_ratio=0.5)
    (first, values), *_ = policy._values.items()
    assert first == (8, 5, 9)
    assert values == [0.0, 0.0, 0.0]
    assert policy.max_seqs == 64  # nothing is known: stay
    desk.tick(window=window(100, output=30, latency_sum_s=200.0), busy_ratio=0.5)
    assert policy._values[first] == [0.0, 0.5 * (0.5 + 0.5), 0.0]
    desk.tick(window=window(100, output=60, latency_sum_s=200.0), busy_ratio=0.5)
    assert policy._values[first][1] == pytest.approx(0.5 * 0.5 + 0.5 * (1.5 + 0.9 * 0.5))


def test_q_learning_finds_a_better_limit() -> None:
    """Throughput grows up to 64 requests at a time and latency beyond: with enough trials it leaves the limit of 8."""
    desk = Desk("knative-rl", 1, start=8, explore=0.3, explore_least=0.3, discount=0.5)
    desk.pool.max_seqs = 96
    limits = []
    for _ in range(4000):
        limit = desk.policy.max_seqs
        rate, latency_s = 1000.0 * min(limit, 64) / 64, max(limit / 64, 1.0) ** 2
        seen = window(100, output=int(rate * 0.3), latency_sum_s=100 * latency_s)
        desk.tick(window=seen, busy_ratio=0.95)
        limits.append(limit)
    assert 48 <= np.median(limits[-1000:]) <= 80


def test_q_learning_keeps_away_from_missed_objectives() -> None:
    desk = Desk("knative-rl", 1, start=40, step=8)
    for _ in range(300):
        limit = desk.policy.max_seqs
        seen = window(
            100, output=limit, latency_sum_s=100.0, tpots=100, tpot_sum_s=100 * (0.01 if limit <= 32 else 0.1)
        )
        desk.tick(window=seen, busy_ratio=0.5, tpot_limit_s=0.05)
    assert desk.policy.max_seqs <= 40


# --- oracle --------------------------------------------------------------------------------------------------------------


def test_an_oracle_has_them_ready_when_they_are_needed() -> None:
    """A minute's work for five replicas comes after ten minutes; they take 90 s to start."""
    requests = [Request(i, 600.0 + i / 100.0, 1000, 1) for i in range(3000)]
    desk = Desk("oracle", 0, load_ratio=1.0)
    desk.pool.role = "prefill"
    desk.pool.startup_s = 90.0
    desk.pool.future = Known(Future(requests), "any")
    wanted = [desk.tick() for _ in range(12)]
    # looks at 60, 120, … s; a replica wanted at 480 s is ready at 570 s, one wanted at 540 s not before 630 s
    assert wanted == [0] * 7 + [5, 5, 5, 0, 0]


# --- cron ----------------------------------------------------------------------------------------------------------------


def test_a_schedule_is_followed_ahead_of_time() -> None:
    """Starting takes ten seconds and looks are a minute apart: the tick before the last minute of an hour looks into the next."""
    desk = Desk("cron", 2, schedule=[2, 5, 0])
    assert desk.until(3480) == 2
    assert desk.tick() == 5
    assert desk.until(7140) == 5
    assert desk.until(7200) == 0
    assert desk.until(10800 - 60) == 2
    later = Desk("cron", 2, schedule=[2, 5, 0], begin_hour=4.5, lead_s=0, period_s=1)
    assert later.tick() == 5
    assert later.until(1799) == 5
    assert later.until(1800) == 0


# --- dynamollm -----------------------------------------------------------------------------------------------------------


def profiled(power_w: Callable[[float], float], slower: bool, idle_w: float) -> Callable[[float], Profile]:
    """50 ms a prompt, 20 ms a step, at a power by the clock; both go with the clock if `slower`."""

    def at_clock(ratio: float) -> Profile:
        pace = 1.0 / ratio if slower else 1.0
        watts = power_w(ratio)
        return Profile(
            lambda n, c: (0.02 * pace, 0.02 * pace * watts), lambda tokens: (0.05 * pace, 0.05 * pace * watts), idle_w
        )

    return at_clock


def dynamollm(**config: Any) -> Desk:
    desk = Desk("dynamollm", 1, least=1, most=20, period_s=10.0, **config)
    desk.pool.ttft_limit_s, desk.pool.tpot_limit_s = 1.0, 0.1
    window = desk.pool.window
    window.arrivals, window.prompt_tokens, window.finished, window.output_tokens = 400, 40_000, 100, 10_000
    return desk


def test_replicas_that_draw_the_same_whatever_they_do_should_be_few() -> None:
    """44 requests/s are planned for. One replica's steps yield 5,000 tokens/s in what prompts leave: 100 x <= 5000 (1 - 0.05 x)."""
    desk = dynamollm()
    desk.pool.at_clock = profiled(lambda _: 100.0, slower=False, idle_w=100.0)
    assert desk.tick() == ceil(44.0 / (5000.0 / 350.0)) == 4


def test_replicas_that_draw_nothing_idle_should_be_many_and_slow() -> None:
    """At half the clock a job takes twice as long at an eighth of the power: a quarter of the energy, on twice the replicas."""
    desk = dynamollm(clocks=[0.5, 1.0])
    desk.pool.at_clock = profiled(lambda f: 800.0 * f**3, slower=True, idle_w=0.0)
    # steps of 40 ms yield 2,500 tokens/s: 100 x <= 2500 (1 - 0.1 x): x <= 7.14;
    # 0.04 / (1 - 0.1 x) <= 0.08: x <= 5
    assert desk.tick() == ceil(44.0 / 5.0) == 9
    only_fast = dynamollm(clocks=[1.0])
    only_fast.pool.at_clock = desk.pool.at_clock
    assert only_fast.tick() < 9


def test_more_than_all_can_do_takes_all() -> None:
    desk = dynamollm()
    desk.pool.at_clock = profiled(lambda _: 100.0, slower=False, idle_w=0.0)
    desk.pool.window.arrivals = 40_000
    desk.pool.window.prompt_tokens = 4_000_000
    assert desk.tick() == 20


def test_without_a_profile_nothing_changes() -> None:
    desk = dynamollm()
    desk.pool.wanted = 3
    assert desk.tick() == 3
