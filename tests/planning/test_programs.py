"""Portfolio, regions and SageServe: small cases by hand or by enumeration, laws on random ones, and the size that must be quick."""

from __future__ import annotations

import time
from itertools import product
from math import ceil
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetsim.errors import InputError
from fleetsim.planning.problems import load_problem
from fleetsim.planning.regions import StatedRegions
from fleetsim.planning.result import Plan
from fleetsim.planning.solve import Effort, optimise


def solved(**problem: Any) -> Plan:
    return load_problem({"name": "test", "problem": problem}).problem.solve(Effort(gap_ratio=0.0))


# --- portfolio --------------------------------------------------------------------------------------------------------


def portfolio(demands: list[list[float]], chip: dict[str, Any], hours: int = 1, **more: Any) -> Plan:
    cases = {f"case {k}": {"probability": 1.0 / len(demands), "demand": demand} for k, demand in enumerate(demands)}
    problem = {"kind": "portfolio", "hours": hours, "chips": {"h100": chip}, "cases": cases, "utilisation": 1.0}
    return solved(**problem, **more)


def test_reservations_are_a_newsvendors() -> None:
    """With demands 1 … 100 alike, that many are reserved that more are needed with probability reserved / on-demand price."""
    chip = {"throughput": 1, "reserved": "3 USD/h", "on_demand": "10 USD/h"}
    plan = portfolio([[float(k)] for k in range(1, 101)], chip, whole=False)
    assert plan.table[0]["reserved"] == pytest.approx(70, abs=1)
    expected = 3 * 70 + 10 * sum(max(k - 70, 0) for k in range(1, 101)) / 100
    assert plan.objective == pytest.approx(expected)


def test_risk_buys_more_reservations_and_adds_up() -> None:
    chip = {"throughput": 1, "reserved": "6 USD/h", "on_demand": "10 USD/h"}
    demands = [[10.0], [20.0], [30.0], [60.0]]
    mean = portfolio(demands, chip)
    cvar = portfolio(demands, chip, risk="cvar", risk_weight=0.5, tail=0.3)
    robust = portfolio(demands, chip, risk="robust")
    assert mean.table[0]["reserved"] < cvar.table[0]["reserved"] <= robust.table[0]["reserved"] == 60
    assert robust.objective == robust.figures["cost_worst_usd"] == 360
    for plan in (mean, cvar):
        weight = 0.5 if plan is cvar else 0.0
        told = (1 - weight) * plan.figures["cost_mean_usd"] + weight * plan.figures["cost_tail_mean_usd"]
        assert plan.objective == pytest.approx(told)
    assert mean.figures["cost_mean_usd"] <= cvar.figures["cost_mean_usd"]
    assert cvar.figures["cost_tail_mean_usd"] <= mean.figures["cost_tail_mean_usd"]


def test_spot_serves_what_interruptions_leave_of_it_and_no_more_than_its_share() -> None:
    spot = {"price": "1 USD/h", "interruptions": 0.5, "lost": "60 s", "restart": "300 s"}
    chip = {"throughput": 10, "on_demand": "3 USD/h", "spot": spot}
    free = portfolio([[95.0]], chip)
    assert free.table[0]["mean spot hours"] == ceil(95 / (10 * 0.95)) == 10
    floor = portfolio([[100.0]], chip, spot_share=0.5)
    assert (floor.table[0]["mean on-demand hours"], floor.table[0]["mean spot hours"]) == (5, 6)
    dear = portfolio([[95.0]], chip | {"on_demand": "1.04 USD/h"}, whole=False)
    assert dear.table[0]["mean spot hours"] == 0
    assert any("1.053 USD per useful hour" in note for note in dear.notes)


def test_bad_portfolios_are_told() -> None:
    chip = {"throughput": 1, "on_demand": "1 USD/h"}
    for demands, changes, more, message in (
        ([[1.0, 2.0]], {}, {"hours": 24}, "ends after 2 hours, the horizon is 24"),
        ([[-1.0]], {}, {}, "greater than or equal to 0|at least 0|below"),
        ([[0.0]], {}, {}, "there is no demand"),
        ([[9.0]], {"limit": 5}, {}, "at most 5 h100: missed by 4 h100"),
        ([[9.0]], {"on_demand": None}, {}, "h100 has no price"),
    ):
        given_chip = {key: value for key, value in (chip | changes).items() if value is not None}
        with pytest.raises(InputError, match=message):
            portfolio(demands, given_chip, **more)


# --- regions ----------------------------------------------------------------------------------------------------------


def regions(**changes: Any) -> dict[str, Any]:
    problem: dict[str, Any] = {
        "kind": "regions",
        "hours": 4,
        "utilisation": 0.5,
        "chips": {"h100": {"price": "2 USD/h", "power": "1 kW", "idle": "200 W", "throughput": [10]}},
        "buckets": {"batch": {"rates": {"west": "10 req/s"}, "slack_h": 0}},
        "regions": {"west": {"electricity": [1.0, 0.0, 1.0, 0.0], "pue": 1.5}},
    }
    return problem | changes


def test_one_region_by_hand() -> None:
    plan = solved(**regions())
    kwh = 4 * (2 * 0.2 + 1 * 0.8) * 1.5
    assert plan.figures["energy_kwh"] == pytest.approx(kwh)
    assert plan.objective == pytest.approx(4 * 2 * 2 + kwh / 2 * 1.0)


def test_work_that_may_wait_waits_for_cheap_hours() -> None:
    waits = solved(**regions(buckets={"batch": {"rates": {"west": "10 req/s"}, "slack_h": 1}}))
    assert waits.objective == pytest.approx(4 * 2 * 2)  # two hours of 20 requests/s, electricity for nothing
    assert waits.table[0]["least"] == pytest.approx(0)
    assert waits.table[0]["most"] == pytest.approx(4)
    dear = regions(buckets={"batch": {"rates": {"west": "10 req/s"}, "slack_h": 1}})
    dear["chips"]["h100"]["startup_cost"] = 100.0
    assert solved(**dear).table[0]["least"] > 0


def test_limits_of_carbon_and_power_hold_and_are_priced() -> None:
    two = regions(
        regions={"west": {"carbon": "500 g/kWh"}, "east": {"carbon": "100 g/kWh", "electricity": "0.5 USD/kWh"}}
    )
    free = solved(**two)
    assert {row["region"] for row in free.table} == {"west"}
    capped = solved(**two, carbon_limit=free.figures["carbon_kg"] / 2)
    assert capped.figures["carbon_kg"] == pytest.approx(free.figures["carbon_kg"] / 2)
    assert capped.objective > free.objective
    (price,) = capped.prices
    assert price.what == "one more kg of CO2"
    again = solved(**two, carbon_limit=free.figures["carbon_kg"] / 2 + 0.1)
    assert (capped.objective - again.objective) / 0.1 == pytest.approx(price.saved)
    tight = regions(regions={"west": {"power_limit": "1.1 kW"}})
    with pytest.raises(InputError, match=r"at most 1.1 kW in west in hour 0: missed by 0.1 kW"):
        solved(**tight)


def test_bad_regions_are_told() -> None:
    with pytest.raises(InputError, match="electricity of west ends after 4 hours, the horizon is 24: give more values"):
        solved(**regions(hours=24))
    with pytest.raises(InputError, match="batch arises in mars, which is no region"):
        solved(**regions(buckets={"batch": {"rates": {"mars": "1 req/s"}}}))
    chips = {"h100": {"price": "2 USD/h", "power": "1 kW", "throughput": [0]}}
    with pytest.raises(InputError, match="no chip serves batch"):
        solved(**regions(chips=chips))
    for terms, said in (
        ({"spot": {"tpu": {"price": "1 USD/h"}}}, "region west speaks of tpu"),
        ({"spot": {"h100": {"price": "1 USD/h", "limit": [1, 2]}}}, "spot limit of h100 of west ends after 2 hours"),
        ({"spot": {"h100": {"price": "1 USD/h", "interruptions": 2, "restart": "1 h"}}}, "interrupted before"),
    ):
        with pytest.raises(InputError, match=said):
            solved(**regions(regions={"west": terms}))


@pytest.mark.parametrize(
    ("profile", "terms", "usd"),
    [
        ([1, 1, 1, 1], {"reserved": {"h100": "1 USD/h"}}, 4 * 2 * 1.0),
        ([1, 0, 0, 0], {"reserved": {"h100": "1 USD/h"}}, 2 * 2.0),
        ([1, 0.5, 0.5, 0.5], {"reserved": {"h100": "1 USD/h"}}, 4 * 1 * 1.0 + 1 * 2.0),
        # spot serves nine tenths of its time and may be half of what runs: n - 0.1 n / 2 = 2
        (
            [1, 1, 1, 1],
            {"spot": {"h100": {"price": "0.5 USD/h", "interruptions": 0.1, "restart": "1 h"}}},
            4 * (2 / 0.95) / 2 * (2 + 0.5),
        ),
        ([1, 1, 1, 1], {"spot": {"h100": {"price": "0.5 USD/h", "limit": [1, 1, 0, 0]}}}, 2 * 2.5 + 2 * 4),
        ([1, 1, 1, 1], {"reserved": {"h100": "1 USD/h"}, "limits": {"h100": 2}}, 8.0),
    ],
)
def test_terms_by_hand(profile: list[float], terms: dict[str, Any], usd: float) -> None:
    bucket = {"batch": {"rates": {"west": "10 req/s"}, "profile": profile}}
    plan = solved(**regions(buckets=bucket, regions={"west": terms}, spot_share=0.5))
    assert plan.objective == pytest.approx(usd)
    bills = [plan.figures[f"cost_{term}_usd"] for term in ("reserved", "on_demand", "spot")]
    assert sum(bills) == pytest.approx(usd)
    (row,) = plan.table
    assert row["reserved"] * 4 + row["on-demand hours"] + row["spot hours"] >= row["replica hours"] - 1e-9


def test_what_cannot_be_rented_is_not() -> None:
    with pytest.raises(InputError, match="no plan keeps all requirements"):
        solved(**regions(regions={"west": {"not_on_demand": ["h100"]}}))


def random_problem(seed: int, hours: int = 6, slack: int = 2) -> StatedRegions:
    rng = np.random.default_rng(seed)
    chips = {
        f"chip{g}": {
            "price": f"{rng.uniform(1, 4)} USD/h",
            "power": "600 W",
            "idle": "90 W",
            "throughput": rng.uniform(1, 9, 3).tolist(),
        }
        for g in range(2)
    }
    buckets = {
        f"bucket{j}": {
            "rates": {f"r{k}": f"{rng.uniform(1, 30)} req/s" for k in range(2)},
            "profile": rng.uniform(0.3, 1.5, hours).tolist(),
            "slack_h": slack if j == 0 else 0,
            "local": j == 1,
        }
        for j in range(3)
    }
    places = {f"r{k}": {"electricity": rng.uniform(0, 0.4, hours).tolist(), "pue": 1.2} for k in range(2)}
    stated = load_problem(
        {
            "name": "r",
            "problem": {"kind": "regions", "hours": hours, "chips": chips, "buckets": buckets, "regions": places},
        }
    ).problem
    assert isinstance(stated, StatedRegions)
    return stated


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_all_work_is_served_in_its_time_and_its_place(seed: int) -> None:
    stated = random_problem(seed)
    program, columns = stated.formulate()
    running, served = columns.running, columns.served
    solution = optimise(program)
    rates, counts = solution.values[served], solution.values[running]
    for j, bucket in enumerate(stated.buckets.values()):
        profile = np.array(bucket.profile)
        come = np.cumsum(sum(bucket.rates.values()) * profile)
        done = np.cumsum(rates[:, j].sum(axis=(0, 1)))
        assert done[-1] == pytest.approx(come[-1])
        assert (done <= come + 1e-6).all()
        if bucket.slack_h:
            assert (done[bucket.slack_h :] >= come[: -bucket.slack_h] - 1e-6).all()
        else:
            assert done == pytest.approx(come)
        if bucket.local:
            own = np.array([rate * profile for rate in bucket.rates.values()])
            assert rates[:, j].sum(axis=0) == pytest.approx(own, abs=1e-6)
    table = np.array([chip.throughput for chip in stated.chips.values()])
    work = np.einsum("gbrt,gb->grt", rates, 1 / table)
    assert (work <= counts * stated.utilisation + 1e-6).all()
    assert optimise(random_problem(seed, slack=0).formulate()[0]).objective >= solution.objective - 1e-6


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_five_chips_a_hundred_buckets_a_day_and_three_regions_take_less_than_a_minute(whole: bool) -> None:
    rng = np.random.default_rng(1)
    base, day = rng.uniform(0.5, 12, 100), 1 + 0.5 * np.sin(np.arange(24) / 24 * 2 * np.pi)
    chips = {
        f"chip{g}": {
            "price": f"{p} USD/h",
            "power": "500 W",
            "idle": "80 W",
            "throughput": (base * s * rng.uniform(0.5, 1.5, 100)).tolist(),
        }
        for g, (p, s) in enumerate([(3, 2), (2, 1.4), (1, 0.6), (1.5, 0.9), (5, 3)])
    }
    buckets = {
        f"b{j}": {
            "rates": {f"r{k}": f"{rng.uniform(1, 30)} req/s" for k in range(3)},
            "profile": (day * rng.uniform(0.9, 1.1, 24)).tolist(),
            "local": j % 2 == 1,
            "slack_h": 6 if j % 5 == 0 else 0,
        }
        for j in range(100)
    }
    places = {
        f"r{k}": {
            "limits": {"chip0": 40},
            "electricity": rng.uniform(0.04, 0.2, 24).tolist(),
            "power_limit": "400 kW",
            "pue": 1.2,
        }
        for k in range(3)
    }
    problem = {"kind": "regions", "hours": 24, "chips": chips, "buckets": buckets, "regions": places, "whole": whole}
    started = time.perf_counter()
    plan = load_problem({"name": "big", "problem": problem}).problem.solve(Effort(60.0, 0.01))
    assert plan.figures["variables"] > 36_000
    assert plan.status == "optimal"
    assert plan.gap_ratio <= 0.01
    assert time.perf_counter() - started < 60


# --- SageServe --------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_sageserve_equals_enumeration(seed: int) -> None:
    rng = np.random.default_rng(seed)
    costs = {"a": int(rng.integers(1, 9)), "b": int(rng.integers(1, 9))}
    speeds = {"a": int(rng.integers(1, 6)), "b": int(rng.integers(1, 6))}
    starts = {"a": int(rng.integers(0, 4)), "b": int(rng.integers(0, 4))}
    now = {"a": int(rng.integers(0, 4)), "b": int(rng.integers(0, 4))}
    forecast = int(rng.integers(1, 12))
    model = {"tokens_per_s": speeds, "startup_cost": starts, "forecast": {"r": forecast}, "instances": {"r": now}}
    plan = solved(kind="sageserve", costs=costs, models={"m": model})
    best = min(
        sum(costs[c] * n + starts[c] * max(n - now[c], 0) for c, n in zip("ab", counts, strict=True))
        for counts in product(range(13), repeat=2)
        if sum(speeds[c] * n for c, n in zip("ab", counts, strict=True)) >= forecast
    )
    assert plan.objective == pytest.approx(best)
    kept = sum(costs[c] * now[c] for c in "ab")
    assert plan.figures["published_objective_usd"] == pytest.approx(best - kept)
