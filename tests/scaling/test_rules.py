"""Autoscalers do by hand-made figures what their documentation says."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fleet.test_moves import column, pool, same_in_single_steps, scenario
from tests.scaling.desk import Desk

# --- hpa ---------------------------------------------------------------------------------------------------------------


def test_hpa_doubles_at_twice_its_target() -> None:
    assert Desk("hpa", 4, target=10.0).tick(running=80) == 8


def test_hpa_tolerates_a_tenth() -> None:
    assert Desk("hpa", 4, target=100.0).tick(running=436) == 4
    assert Desk("hpa", 4, target=100.0).tick(running=364) == 4
    assert Desk("hpa", 4, target=100.0).tick(running=444) == 5


def test_hpa_stays_five_minutes_after_a_drop() -> None:
    desk = Desk("hpa", 4, target=10.0)
    desk.until(60.0, running=40)
    assert desk.until(60.0 + 300.0, running=0) == 4
    assert desk.tick(running=0) == 1


def test_hpa_adds_four_or_as_many_as_there_are() -> None:
    desk = Desk("hpa", 1, target=10.0)
    assert desk.tick(running=1000) == 5
    assert desk.tick(running=1000) == 10
    assert desk.tick(running=1000) == 20


def test_hpa_counts_those_that_start_as_idle() -> None:
    desk = Desk("hpa", 4, target=10.0)
    desk.tick(running=80)
    assert desk.tick(running=80, ready=4) == 8  # 80 requests for 8 asked for: right


def test_hpa_limits_removals() -> None:
    desk = Desk("hpa", 10, target=10.0, down_window_s=0.0, down_ratio=0.5)
    assert [desk.tick(running=0) for _ in range(4)] == [5, 3, 2, 1]


# --- keda --------------------------------------------------------------------------------------------------------------


def test_keda_wakes_and_sleeps() -> None:
    desk = Desk("keda", 0)
    assert desk.tick() == 0  # polled: nothing
    assert desk.tick(waiting_outside=3) == 0  # not polled
    assert desk.tick(waiting_outside=3) == 1
    assert desk.pool.now_s == 45.0
    assert desk.until(45.0 + 299.0, waiting_outside=0) == 1
    assert desk.until(45.0 + 300.0) == 0


def test_keda_stays_where_the_pool_must_have_one() -> None:
    assert Desk("keda", 1, least=1).until(1000.0) == 1


def test_keda_shares_a_queue() -> None:
    desk = Desk("keda", 2, target=5.0)
    assert desk.tick(waiting=23) == 5
    assert desk.tick(waiting=27) == 5  # 5.4 for each: tolerated
    assert desk.tick(waiting=28) == 6


def test_keda_is_active_above_its_activation_only() -> None:
    assert Desk("keda", 0, activation=3.0).until(300.0, waiting_outside=3) == 0
    assert Desk("keda", 0, activation=3.0).until(300.0, waiting_outside=4) == 1


# --- kpa ---------------------------------------------------------------------------------------------------------------


def test_kpa_aims_at_seven_tenths() -> None:
    assert Desk("kpa", 1, concurrency=10).until(60.0, running=7) == 1
    assert Desk("kpa", 1, concurrency=10).until(60.0, running=8) == 2


def test_kpa_panics_when_the_short_window_asks_for_twice_as_many() -> None:
    desk = Desk("kpa", 1, concurrency=10)
    desk.until(120.0, running=7)
    assert desk.tick(running=70) == 4  # mean of 7, 7 and 70 over 7; the long window alone would ask for 2
    assert desk.tick(running=70) == 7
    assert desk.tick(running=70) == 10
    began_s = 124.0  # then 7 were asked for with 4 ready: not twice as many any more
    assert desk.until(began_s + 58.0, running=0) == 10  # nothing goes in panic
    desk.until(began_s + 66.0, running=0)
    assert desk.pool.wanted < 10


def test_kpa_extends_panic_only_above_the_threshold() -> None:
    """With 1 replica, 8 requests ask for 2 in both windows: twice as many, so it is panic; with 2 replicas it is not."""
    desk = Desk("kpa", 1, concurrency=10, down_rate=10.0)
    desk.until(60.0, running=8, ready=1)
    assert desk.pool.wanted == 2
    assert desk.until(60.0 + 60.0, running=1) == 2
    assert desk.until(60.0 + 62.0, running=1) == 1


def test_kpa_without_panic_follows_the_long_window() -> None:
    desk = Desk("kpa", 4, concurrency=10)
    desk.until(200.0, running=28)
    assert desk.until(210.0, running=35) == 5  # 29 / 7
    assert desk.until(230.0, running=28) == 5
    assert desk.until(290.0, running=14) == 2


def test_kpa_halves_at_most() -> None:
    desk = Desk("kpa", 8, concurrency=10)
    desk.until(100.0, running=56)
    counts = [desk.tick(running=0) for _ in range(31)]
    assert counts[-3:] != [0, 0, 0]
    steps = [b / a for a, b in pairwise(counts) if b != a]
    assert min(steps) >= 0.5


def test_kpa_leaves_none_after_a_stable_window_and_a_grace() -> None:
    desk = Desk("kpa", 1, concurrency=10)
    desk.until(60.0, running=1)
    assert desk.until(60.0 + 60.0 + 28.0, running=0) == 1
    assert desk.until(60.0 + 60.0 + 30.0, running=0) == 0
    assert desk.tick(waiting_outside=1) == 1


def test_kpa_starts_in_panic_with_more_than_one() -> None:
    desk = Desk("kpa", 6, concurrency=10)
    assert desk.until(60.0, running=1) == 6
    assert desk.until(70.0, running=1) < 6


def test_kpa_may_wait_before_it_removes() -> None:
    desk = Desk("kpa", 1, concurrency=10, down_delay_s=100.0)
    desk.until(100.0, running=14)
    assert desk.until(160.0 + 60.0, running=1) == 2  # the stable window asks for one from 134 s on
    assert desk.until(160.0 + 80.0, running=1) == 1


# --- apa ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("used", "replicas"), [(0.5, 8), (0.549, 8), (0.451, 8), (0.56, 9), (0.44, 8), (0.43, 7), (1.0, 16), (0.05, 4)]
)
def test_apa_follows_outside_its_tolerances(used: float, replicas: int) -> None:
    assert Desk("apa", 8).tick(kv_used_ratio=used) == replicas


def test_apa_limits_its_rates() -> None:
    assert Desk("apa", 3, up_rate=1.5).tick(kv_used_ratio=1.0) == 5  # ceil(4.5) of 6
    assert Desk("apa", 9, down_rate=1.5).tick(kv_used_ratio=0.0) == 6
    assert Desk("apa", 1).tick(kv_used_ratio=0.0) == 1


def test_apa_averages_over_its_window() -> None:
    desk = Desk("apa", 8, window_s=20.0)
    desk.tick(kv_used_ratio=0.5)
    assert desk.tick(kv_used_ratio=0.7) == 10  # 0.6 on average


# --- to zero and back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "autoscaler",
    [
        {"policy": "keda", "metric": "concurrency", "cooldown_s": 60.0},
        {"policy": "kpa", "stable_window_s": 20.0},
    ],
)
def test_a_pool_sleeps_between_two_bursts(autoscaler: dict[str, Any], tmp_path: Path) -> None:
    one = pool("main", 1) | {
        "max_replicas": 3,
        "min_replicas": 0,
        "autoscaler": autoscaler,
        "startup": {"weights": "none", "init": "5 s"},
    }
    given = scenario(pools=[one])
    pieces = [("4 s", "5 req/s"), ("400 s", "0 req/s"), ("4 s", "5 req/s"), ("1 h", "0 req/s")]
    steps = [{"duration": duration, "rate": rate} for duration, rate in pieces]
    given["workload"] |= {"requests": 30, "arrivals": {"process": "piecewise", "steps": steps}}
    result = same_in_single_steps(given, tmp_path)
    assert set(column(result, "status")) == {"finished"}
    arrival, first = (np.array(column(result, name)) for name in ("arrival_s", "first_scheduled_s"))
    late = arrival > 300.0
    woken_s = arrival[late].min()
    assert (first[late] >= woken_s + 5.0).all()  # they waited until a replica had started
    off_s = result.summary["simulated_s"] - result.summary["accelerator_hours"] * 3600.0
    assert off_s > 200.0
