"""Each manager's rule, on rows whose state is written by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fleetsim.plugins import load
from fleetsim.power.api import Brake, Cap, Clock, PoolState, ReplicaState, Row, Seats, Setting, Sleep, Wake


def step_s(ratio: float, batch: int, ctx_tokens: int) -> float:
    """A decode step: a part that no clock changes, and a part that goes with it [s]."""
    return 0.010 + 0.0001 * batch / ratio + 1e-7 * ctx_tokens


def prefill_s(ratio: float, tokens: float) -> float:
    return 1e-4 * tokens / ratio


def pool_state(name: str, low: bool = False, **changes: Any) -> PoolState:
    state = PoolState(name, low, 2, 100.0, 700.0, 64, 20.0, 1.0, step_s, prefill_s)
    for key, value in changes.items():
        setattr(state, key, value)
    return state


def row_of(*pools: tuple[PoolState, int], budget_w: float = 1000.0, attainment: float = 0.99) -> Row:
    row = Row([pool for pool, _ in pools], budget_w, attainment)
    row.replicas = [ReplicaState(place) for place, (_, count) in enumerate(pools) for _ in range(count)]
    row.elapsed_s = 2.0
    return row


def desk(name: str, row: Row, **config: Any) -> Any:
    policy = load("power_managers", name)
    return policy(policy.Config(**config), np.random.default_rng(0), row)


def at(row: Row, manager: Any, now_s: float, power_w: float) -> list[Setting]:
    row.now_s = row.seen_s = now_s
    row.power_w = power_w
    return list(manager.tick())


# --- polca ---------------------------------------------------------------------------------------------------------------


def test_polca_slows_low_priority_down_first() -> None:
    row = row_of((pool_state("low", low=True), 1), (pool_state("high"), 1))
    manager = desk("polca", row)
    assert at(row, manager, 2, 790) == []
    assert at(row, manager, 4, 810) == [Clock(0, pytest.approx(1275 / 1410, abs=1e-4))]
    (second,) = at(row, manager, 6, 900)
    assert second == Clock(0, pytest.approx(1110 / 1410, abs=1e-4))
    assert at(row, manager, 44, 900) == []  # 38 s later: the row is still given time
    (third,) = at(row, manager, 46, 900)
    assert third == Clock(1, pytest.approx(1305 / 1410, abs=1e-4))


def test_polca_undoes_below_the_hysteresis() -> None:
    row = row_of((pool_state("low", low=True), 1), (pool_state("high"), 1))
    manager = desk("polca", row, patience_s=0)
    at(row, manager, 2, 900)
    at(row, manager, 4, 900)
    assert at(row, manager, 6, 850) == []  # 0.85 is not below 0.89 - 0.05
    back = at(row, manager, 8, 830)
    assert back == [Clock(0, pytest.approx(1275 / 1410, abs=1e-4)), Clock(1, 1.0)]
    assert at(row, manager, 10, 760) == []  # 0.76 is not below 0.80 - 0.05
    assert at(row, manager, 12, 740) == [Clock(0, 1.0)]


def test_polca_brakes_everybody_at_the_budget() -> None:
    row = row_of((pool_state("low", low=True), 1), (pool_state("high"), 1))
    manager = desk("polca", row)
    settings = at(row, manager, 2, 1000)
    assert [s for s in settings if isinstance(s, Brake)] == [Brake(0, 0.2043), Brake(1, 0.2043)]
    row.replicas[0].braked = row.replicas[1].braked = True
    assert not any(isinstance(s, Brake) for s in at(row, manager, 4, 960))
    assert [s for s in at(row, manager, 6, 940) if isinstance(s, Brake)] == [Brake(0, None), Brake(1, None)]


# --- slo-clock -----------------------------------------------------------------------------------------------------------


def test_slo_clock_takes_the_lowest_that_is_fast_enough() -> None:
    pool = pool_state("main", ttft_limit_s=1.0, tpot_limit_s=0.025)
    row = row_of((pool, 1))
    replica = row.replicas[0]
    replica.running, replica.ctx_tokens = 39, 0
    manager = desk("slo-clock", row)
    # a step at f: 10 ms + 3.9 ms / f, at most 0.8 x 25 ms = 20 ms: f >= 0.4
    assert at(row, manager, 5, 0) == [Clock(0, 0.4)]
    replica.running = 69  # 10 ms + 6.9 ms / f <= 20 ms: f >= 0.69
    assert at(row, manager, 10, 0) == [Clock(0, 0.7)]
    replica.running = 200
    assert at(row, manager, 15, 0) == [Clock(0, 1.0)]


def test_slo_clock_leaves_time_for_prompts() -> None:
    pool = pool_state("main", ttft_limit_s=1.0, tpot_limit_s=0.025)
    row = row_of((pool, 1))
    replica = row.replicas[0]
    replica.running = 10
    replica.prompt_tokens, row.elapsed_s = 2900, 1.0  # 0.29 s of prompts per second at the usual clock
    pool.window.longest_prompt = 1000
    # a step at f: (10 ms + 1 ms / f) / (1 - 0.29 / f) <= 20 ms: f > 0.6; 0.1 s / f is early enough
    assert at(row, desk("slo-clock", row), 5, 0) == [Clock(0, 0.7)]


def test_slo_clock_counts_prompts_that_wait() -> None:
    pool = pool_state("main", ttft_limit_s=0.5, tpot_limit_s=1.0)
    row = row_of((pool, 1))
    row.replicas[0].waiting, row.replicas[0].waiting_tokens = 2, 8000
    pool.window.longest_prompt = 1000
    # 8000 tokens in 2 s take u = 0.4 / f of the time; 0.1 s / f / (1 - 0.4 / f) and a step of 11 ms within 0.4 s: f >= 0.66
    assert at(row, desk("slo-clock", row), 5, 0) == [Clock(0, 0.7)]
    row.replicas[0].waiting_tokens = 30000  # more than it can do at any clock
    assert at(row, desk("slo-clock", row), 5, 0) == [Clock(0, 1.0)]


def test_slo_clock_in_an_emergency() -> None:
    pool = pool_state("main", ttft_limit_s=1.0, tpot_limit_s=0.1)
    row = row_of((pool, 2))
    manager = desk("slo-clock", row)
    row.replicas[1].oldest_s = 1.01
    assert at(row, manager, 5, 0) == [Clock(0, 0.4), Clock(1, 1.0)]
    row.replicas[1].oldest_s = 0.0
    assert at(row, manager, 15, 0) == [Clock(0, 0.4), Clock(1, 1.0)]
    assert at(row, manager, 20, 0) == [Clock(0, 0.4), Clock(1, 0.4)]
    for replica, missed in zip(row.replicas, (2, 1), strict=True):
        replica.ttfts, replica.missed = 100, missed
    assert at(row, manager, 25, 0) == [Clock(0, 1.0), Clock(1, 0.4)]  # 2 % and 1 % late, 1 % allowed


# --- the others ----------------------------------------------------------------------------------------------------------


def test_batch_cap_finds_the_largest_batch() -> None:
    pool = pool_state("main", tpot_limit_s=0.020)
    row = row_of((pool, 2))
    manager = desk("batch-cap", row)
    assert at(row, manager, 5, 0) == []  # nothing runs
    for replica, ratio, tokens in zip(row.replicas, (1.0, 0.5), (2000, 10000), strict=True):
        replica.running, replica.clock_ratio, replica.ctx_tokens = 10, ratio, tokens
    # at half the clock with 1000 tokens each: 10 ms + 0.2 ms n + 0.1 ms n <= 18 ms: n <= 26
    assert at(row, manager, 10, 0) == [Seats(0, 26)]


def test_schedule_says_each_stage_once() -> None:
    row = row_of((pool_state("a"), 1), (pool_state("b"), 1))
    stages = [
        {"at_s": 3.0, "clock_ratio": 0.5, "pools": ["b"]},
        {"at_s": 4.0, "cap_w": 50.0, "max_seqs": 99},
        {"at_s": 9, "uncap": True},
    ]
    manager = desk("schedule", row, stages=stages)
    assert at(row, manager, 2, 0) == []
    caps = [Cap(0, pytest.approx(101.0)), Cap(1, pytest.approx(101.0))]  # not below idle power
    assert at(row, manager, 4, 0) == [Clock(1, 0.5), Seats(0, 64), Seats(1, 64), *caps]
    assert at(row, manager, 5, 0) == []
    assert at(row, manager, 9, 0) == [Cap(0, None), Cap(1, None)]


def test_sleep_keeps_some_awake_and_wakes_for_those_that_wait() -> None:
    pool = pool_state("main")
    row = row_of((pool, 4))
    manager = desk("sleep", row)
    for replica in row.replicas:
        replica.idle_s = 40.0
    assert at(row, manager, 40, 0) == [Sleep(3), Sleep(2), Sleep(1)]
    row.replicas[0].running, row.replicas[0].idle_s = 30, 0.0  # 30 of the 64 seats that would be left: above 0.4
    assert at(row, manager, 41, 0) == [Sleep(3), Sleep(2)]
    for replica in row.replicas[1:]:
        replica.state = "asleep"
    assert at(row, manager, 42, 0) == []
    row.replicas[0].waiting = 1
    assert at(row, manager, 43, 0) == [Wake(1)]
    row.replicas[1].state = "waking"
    assert at(row, manager, 44, 0) == []
    pool.waiting_outside = 150  # three replicas' worth, one is on its way
    assert at(row, manager, 45, 0) == [Wake(2), Wake(3)]


def test_grid_flex_brings_power_to_its_target_and_lets_go() -> None:
    row = row_of((pool_state("main"), 2), budget_w=1e9)
    row.host_w = 200.0
    call = {"start_s": 60.0, "duration_s": 30.0, "curtail_ratio": 0.25}
    manager = desk("grid-flex", row, calls=[call], baseline_s=10.0)
    for now_s in range(2, 60, 2):
        assert at(row, manager, now_s, 1600) == []
    # of 2 x 2 x 700 W accelerators draw 1400 W: level 0.5; target 1200 W, of which 1000 W are theirs: 0.5 x 1000 / 1400
    assert at(row, manager, 60, 1600) == [Cap(0, 250.0), Cap(1, 250.0)]
    assert at(row, manager, 62, 1190) == []  # within the deadband below the target
    assert at(row, manager, 64, 1000) == [Cap(0, 312.0), Cap(1, 312.0)]
    assert at(row, manager, 90, 1200) == [Cap(0, None), Cap(1, None)]
    assert at(row, manager, 92, 1600) == []


def test_grid_flex_holds_the_objective_if_it_is_told_to() -> None:
    pool = pool_state("main")
    row = row_of((pool, 1), budget_w=1e9)
    call = {"start_s": 2.0, "duration_s": 30.0, "curtail_ratio": 0.25}
    manager = desk("grid-flex", row, calls=[call], hold=True, by="seats")
    row.replicas[0].running = 40
    pool.window.ttfts, pool.window.late = 10, 1
    assert at(row, manager, 2, 700) == []
    pool.window.late = 0
    assert at(row, manager, 4, 700) == [Seats(0, 30)]
