"""Requests that are collected and decided about together: nobody is lost, nobody waits for longer than the window says.

Everywhere the laws are on (`check=True`), and leaps must give what single steps give.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fleetsim
from fleetsim.errors import PolicyError
from fleetsim.routing.api import RequestView
from fleetsim.testing import check_router
from tests.fleet.policies import Patient
from tests.fleet.test_moves import APART, MANY, column, pool, run, same_in_single_steps, scenario
from tests.routing.test_rules import Course

HERE = "tests.fleet.policies"


def patient(decision: dict[str, Any] | None = None, **config: float) -> dict[str, Any]:
    return {"router": {"policy": f"{HERE}:Patient", **config}, **({"decision": decision} if decision else {})}


def noted(given: dict[str, Any], out: Path) -> tuple[fleetsim.Result, list[tuple[float, list[int]]]]:
    Patient.noted = []
    return run(given, out), Patient.noted


# --- the gateway -----------------------------------------------------------------------------------------------------------


def test_a_window_ends_when_it_is_full_or_its_first_request_has_waited(tmp_path: Path) -> None:
    result, windows = noted(scenario(gateway=patient(most=4, wait_s=0.05)), tmp_path)
    arrival_s = column(result, "arrival_s")
    assert [number for _, numbers in windows for number in numbers] == list(range(120))
    full = 0
    for at_s, numbers in windows:
        assert 1 <= len(numbers) <= 4
        if len(numbers) == 4:
            full += 1
            assert at_s == arrival_s[numbers[-1]] <= arrival_s[numbers[0]] + 0.05
        else:
            assert at_s == pytest.approx(arrival_s[numbers[0]] + 0.05, rel=1e-12)
    assert 5 < full < len(windows) - 5
    np.testing.assert_array_less(
        np.array(column(result, "queued_s")) - np.array(arrival_s), 0.066
    )  # with the front end


def test_a_window_is_charged_once(tmp_path: Path) -> None:
    """Its time delays each of its requests, its energy once for all of them."""
    charged = patient({"time": "30 ms", "energy": "2 J"}, most=4, wait_s=0.05)
    result, windows = noted(scenario(gateway=charged), tmp_path)
    assert result.summary["gateway_energy_j"] == pytest.approx(2.0 * len(windows))
    queued_s = column(result, "queued_s")
    frontend_s = queued_s[windows[0][1][0]] - windows[0][0] - 0.03
    for at_s, numbers in windows:
        for number in numbers:
            assert queued_s[number] == pytest.approx(at_s + 0.03 + frontend_s, rel=1e-9)


def test_one_worker_decides_about_one_window_at_a_time(tmp_path: Path) -> None:
    busy = patient({"time": "200 ms", "workers": 1}, most=4, wait_s=0.05)
    result, windows = noted(scenario(gateway=busy), tmp_path)
    gaps = np.diff([at_s for at_s, _ in windows])
    assert gaps.min() >= 0.2 - 1e-9
    assert np.count_nonzero(np.isclose(gaps, 0.2)) > 5
    assert result.summary["finished"] == 120


def test_a_window_of_one_is_no_window(tmp_path: Path) -> None:
    alone = run(scenario(gateway={"router": {"policy": f"{HERE}:Impatient"}}), tmp_path / "alone")
    one = run(scenario(gateway=patient(most=1)), tmp_path / "one")
    assert one.requests().equals(alone.requests())


@pytest.mark.parametrize("workers", [0, 1])
def test_who_gives_up_in_a_window_is_not_asked_about(workers: int, tmp_path: Path) -> None:
    gateway = {**patient({"time": "1 ms", "workers": workers}, most=50, wait_s=0.5), "first_token_timeout": "300 ms"}
    result, windows = noted(scenario(gateway=gateway), tmp_path / "short")
    assert windows
    waited = {number for _, numbers in windows for number in numbers}
    status = column(result, "status")
    gone = {number for number in range(120) if number not in waited}
    assert gone
    assert all(status[number] == "timed_out" for number in gone)
    assert all(column(result, "reason")[number] == "no first token in time" for number in gone)
    assert len(status) == 120
    for at_s, numbers in windows:
        assert all(at_s <= column(result, "arrival_s")[number] + 0.3 for number in numbers)


def test_all_may_give_up_before_the_window_ends(tmp_path: Path) -> None:
    gateway = {**patient(most=500, wait_s=5.0), "timeout": "200 ms"}
    result, windows = noted(scenario(gateway=gateway), tmp_path)
    assert windows == []
    assert result.summary["timed_out"] == 120


@pytest.mark.parametrize(("horizon", "wait_s"), [("333 ms", 10.0), ("1.31 s", 1.0)])
@pytest.mark.parametrize("hedge_after_s", [float("inf"), 0.05])
def test_a_run_may_end_while_requests_are_held(
    horizon: str, wait_s: float, hedge_after_s: float, tmp_path: Path
) -> None:
    gateway = patient(most=500, wait_s=wait_s, hedge_after_s=hedge_after_s)
    result = same_in_single_steps(scenario(gateway=gateway, run={"horizon": horizon}), tmp_path)
    held = [replica is None or replica < 0 for replica in column(result, "replica")]
    assert sum(held) > 3
    assert result.summary["unfinished"] > 3
    numbers = column(result, "request_id")
    assert len(set(numbers)) == len(numbers) == result.summary["requests"]


@MANY
@given(
    seed=st.integers(0, 1000),
    most=st.integers(1, 12),
    wait_s=st.sampled_from([0.0, 0.03, 0.3]),
    hedge_after_s=st.sampled_from([float("inf"), 0.05, 0.2]),
    retry_after_s=st.sampled_from([float("inf"), 0.15]),
    rejects=st.sampled_from([0, 3]),
    workers=st.integers(0, 2),
    timeout=st.sampled_from([None, "400 ms"]),
    apart=st.booleans(),
)
def test_windows_in_leaps_and_steps(
    seed: int,
    most: int,
    wait_s: float,
    hedge_after_s: float,
    retry_after_s: float,
    rejects: int,
    workers: int,
    timeout: str | None,
    apart: bool,
    tmp_path: Path,
) -> None:
    """With copies, second tries, clients that give up, rejections and busy deciders: the laws hold and nobody is lost."""
    config = {"hedge_after_s": hedge_after_s, "retry_after_s": retry_after_s, "rejects": rejects}
    gateway = patient({"time": "7 ms", "energy": "1 J", "workers": workers}, most=most, wait_s=wait_s, **config)
    if timeout:
        gateway["first_token_timeout"] = timeout
    result = same_in_single_steps(scenario(seed=seed, gateway=gateway, **(APART if apart else {})), tmp_path)
    assert column(result, "request_id") == list(range(120))
    assert result.summary["unfinished"] == 0


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("window = lambda self: (4, 0.1)", "answered (4, 0.1) for a window"),
        ("window = lambda self: Window(0, 0.1)", "for a window"),
        ("route_window = lambda self, requests: [0]", "1 answers about"),
        ("route_window = lambda self, requests: [9] * len(requests)", "there are 4 replicas"),
    ],
)
def test_wrong_answers_are_refused(answer: str, words: str, tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    exec(
        "from fleetsim.routing.api import Window\nfrom tests.fleet.policies import Patient\n"
        f"class Wrong(Patient):\n    {answer}\n",
        names,
    )
    with pytest.raises(PolicyError, match=words.replace("(", r"\(").replace(")", r"\)")):
        run(scenario(gateway={"router": {"policy": fleetsim.plugins.given(names["Wrong"])}}), tmp_path)
    with pytest.raises(PolicyError, match="window"):
        check_router(names["Wrong"])


def test_the_checker_takes_a_router_of_windows() -> None:
    assert check_router(Patient).decisions > 5000


# --- route-balance ---------------------------------------------------------------------------------------------------------


@MANY
@given(
    seed=st.integers(0, 1000),
    tokens=st.sampled_from([1000, 3200]),
    view=st.sampled_from(
        [
            {},
            {"freshness": "sampled", "period": "170 ms"},
            {"freshness": "delayed", "delay": "110 ms", "own_counts": False},
        ]
    ),
    router=st.sampled_from(
        [
            {"policy": "route-balance", "balance_weight": 0.7},
            {"policy": "route-balance", "balance_weight": 2.0, "latency_weight": 0.1, "holders": 4},
            {"policy": "route-balance", "window": "none", "balance_weight": 1.0},
            {"policy": "route-balance", "window": "fixed", "local_updates": False, "least_chance": 0.7},
            {"policy": "dynamo-kv"},
            {"policy": "dynamo-kv", "overlap_weight": 0.05},
            {"policy": "dynamo-kv", "temperature": 0.3},
        ]
    ),
)
def test_use_of_caches_is_that_of_the_time_in_question(
    seed: int, tokens: int, view: dict[str, Any], router: dict[str, Any], tmp_path: Path
) -> None:
    """Routers that weigh how full caches are choose the same in leaps and in single steps."""
    small = pool("main", 4, kv={"capacity_tokens": tokens, "block_tokens": 16})
    gateway = {"router": router, "view": view, "predictor": "learned"}
    same_in_single_steps(scenario(seed=seed, pools=[small], gateway=gateway), tmp_path)


def test_windows_grow_with_the_share_of_busy_replicas(tmp_path: Path) -> None:
    """Up to 4 for 50 ms while nobody waits; longer ones when queues have built up."""
    sizes = {}
    for rate in (20, 400):
        given = scenario(gateway={"router": {"policy": "route-balance"}, "decision": {"energy": "1 J"}})
        given["workload"] |= {"requests": 400, "arrivals": {"process": "poisson", "rate": f"{rate} req/s"}}
        result = run(given, tmp_path / str(rate))
        sizes[rate] = 400 / result.summary["gateway_energy_j"]
    assert sizes[20] < 4.0
    assert sizes[400] > 10


def test_without_updates_a_window_herds() -> None:
    """All requests of a window see the same replicas: the ablation sends them all to the one that is a little faster."""
    spread = {}
    for updates in (True, False):
        course = Course([1000.0, 1000.0, 1100.0, 1000.0])
        router = course.router("route-balance", output_tokens=1, local_updates=updates)
        window = [RequestView(course.request(1000)) for _ in range(8)]
        told = router.explain_window(window)
        answers = router.route_window(window)
        spread[updates] = Counter(answers)
        assert answers == [max(one, key=lambda i, one=one: one[i]["score"]) for one in told]
    assert spread[False] == {2: 8}
    assert spread[True] == {0: 2, 1: 2, 2: 2, 3: 2}


def test_the_longest_expected_answer_is_decided_first(tmp_path: Path) -> None:
    """The one replica that is four times as fast goes to it, wherever it stands in the window."""
    fast = {**pool("fast", 1), "accelerator": "h100-sxm"}
    chosen = {}
    for longest_first in (True, False):
        router = {"policy": "route-balance", "window": "fixed", "window_requests": 6, "longest_first": longest_first}
        given = scenario(pools=[pool("main", 1), fast])
        given["gateway"] = {"router": {**router, "window_wait": "10 s"}, "predictor": "oracle"}
        given["workload"]["requests"] = 6
        out = tmp_path / str(longest_first)
        result = run(given, out)
        turns = decided(given, out / "explained")
        lengths = column(result, "output_tokens")
        order = sorted(range(6), key=lambda number: turns[number])
        chosen[longest_first] = [lengths[number] for number in order]
    assert chosen[True] == sorted(chosen[True], reverse=True)
    assert chosen[False] != chosen[True]
    assert sorted(chosen[False]) == sorted(chosen[True])


def decided(given: dict[str, Any], out: Path) -> dict[int, float]:
    """The turn of each request in its window, as `--explain` tells."""
    result = fleetsim.run(given, out=out, allow_import=True, explain=range(6))
    rows = result.table("decisions").to_pylist()
    for row in rows:
        assert set(json.loads(row["figures"])) == {"score", "ttft_s", "tpot_s", "kept", "turn"}
    for number in range(6):
        mine = [row for row in rows if row["request_id"] == number]
        best = max(json.loads(row["figures"])["score"] for row in mine)
        assert [json.loads(row["figures"])["score"] for row in mine if row["chosen"]] == [best]
    return {row["request_id"]: json.loads(row["figures"])["turn"] for row in rows}


@settings(MANY, max_examples=5)
@given(seed=st.integers(0, 100))
def test_explaining_changes_nothing(seed: int, tmp_path: Path) -> None:
    for router in ({"policy": "route-balance", "least_chance": 0.5}, {"policy": f"{HERE}:Patient"}):
        given = scenario(seed=seed, gateway={"router": router})
        plain = run(given, tmp_path / "plain")
        told = fleetsim.run(given, out=tmp_path / "told", check=True, allow_import=True, explain=range(0, 120, 3))
        assert told.requests().equals(plain.requests())
        assert len(set(told.table("decisions")["request_id"].to_pylist())) == 40
