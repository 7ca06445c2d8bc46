"""Limits of power, racks, inventory and carbon in every program that buys: they hold, have a price, and are explained."""

from __future__ import annotations

from itertools import product
from math import ceil
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetsim.errors import InputError
from fleetsim.planning.problems import load_problem
from fleetsim.planning.racks import Racks
from fleetsim.planning.result import Plan
from fleetsim.planning.solve import Effort


def solved(**problem: Any) -> Plan:
    return load_problem({"name": "test", "problem": problem}).problem.solve(Effort(gap_ratio=0.0))


def melange(**changes: Any) -> Plan:
    offers = {
        "big": {"price": "4 USD/h", "throughputs": [10], "power": "700 W"},
        "small": {"price": "1 USD/h", "throughputs": [2], "power": "350 W"},
    }
    return solved(**{"kind": "melange", "rates": {"all": "20 req/s"}, "offers": offers, "slices": 10} | changes)


def test_power_of_racks_keeps_its_meaning() -> None:
    racks = Racks.model_validate({"count": 2, "power": "1 kW"})
    assert (racks.fit(700.0), racks.fit(350.0), racks.fit(500.0), racks.fit(1001.0)) == (1, 2, 2, 0)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(4, 30),
    st.integers(1, 6),
    st.sampled_from([700, 1000, 1500]),
    st.sampled_from([None, 2, 4]),
    st.floats(0.5, 4.0),
)
def test_plans_within_limits_equal_enumeration(
    rate: int, count: int, rack_w: int, power_kw: float | None, carbon_kg: float
) -> None:
    problem: dict[str, Any] = {
        "rates": {"all": f"{rate} req/s"},
        "slices": rate,
        "racks": {"count": count, "power": f"{rack_w} W"},
        "carbon": "500 g/kWh",
        "carbon_limit": carbon_kg,
    }
    if power_kw is not None:
        problem["power_limit"] = f"{power_kw} kW"
    best = None
    for big, small in product(range(8), range(31)):
        kw = 0.7 * big + 0.35 * small
        racks = ceil(big / (rack_w // 700)) + ceil(small / (rack_w // 350))
        whole = (min(big * 10, rate) // 1 + min(small * 2, rate)) >= rate  # slices are single requests per second
        if whole and racks <= count and kw * 0.5 <= carbon_kg + 1e-9 and (power_kw is None or kw <= power_kw + 1e-9):
            cost = 4.0 * big + small
            best = cost if best is None else min(best, cost)
    if best is None:
        with pytest.raises(InputError, match="no plan keeps all requirements"):
            melange(**problem)
        return
    plan = melange(**problem)
    assert plan.objective == pytest.approx(best)
    assert plan.figures["racks"] <= count
    assert plan.figures["carbon_kg_per_h"] <= carbon_kg + 1e-6


def test_melanges_limits_have_a_price() -> None:
    free = melange()
    assert free.objective == 8.0
    assert melange(power_limit="3.5 kW").objective == 8.0
    free = melange(
        offers={
            "small": {"price": "1 USD/h", "throughputs": [2], "power": "350 W"},
            "big": {"price": "9 USD/h", "throughputs": [10], "power": "700 W"},
        }
    )
    assert free.objective == 10.0
    offers = {
        "small": {"price": "1 USD/h", "throughputs": [2], "power": "350 W"},
        "big": {"price": "9 USD/h", "throughputs": [10], "power": "700 W"},
    }
    tight = melange(offers=offers, racks={"count": 4, "power": "1 kW"})
    assert tight.objective == 5 + 9  # five small ones in three racks, one big one in the fourth: 6 of 2 and one of 10
    (price,) = tight.prices
    assert str(price).startswith("one more rack would save")
    more = melange(offers=offers, racks={"count": 5, "power": "1 kW"})
    assert price.saved == pytest.approx(tight.objective - more.objective)
    clean = melange(offers=offers, carbon="1000 g/kWh", pue=1.0, carbon_limit=2.9)
    assert clean.figures["carbon_kg_per_h"] <= 2.9
    assert [str(p).split(" would")[0] for p in clean.prices] == ["one more kg of CO2 per hour"]
    with pytest.raises(InputError, match=r"at most 1 racks: missed by 1 racks"):
        melange(offers=offers, racks={"count": 1, "power": "1 kW"})
    with pytest.raises(InputError, match=r"at most 1 kg of CO2 per hour: missed by 0\.4 kg/h"):
        melange(offers=offers, carbon="1000 g/kWh", carbon_limit=1.0)
    with pytest.raises(InputError, match="small has no power, which limits of racks or carbon need"):
        melange(offers={"small": {"price": "1 USD/h", "throughputs": [2]}}, racks={"count": 1, "power": "1 kW"})


def portfolio(**changes: Any) -> Plan:
    problem: dict[str, Any] = {
        "kind": "portfolio",
        "hours": 3,
        "utilisation": 1.0,
        "chips": {
            "h100": {"throughput": 10, "on_demand": "4 USD/h", "power": "700 W"},
            "l40s": {"throughput": 4, "on_demand": "1 USD/h", "power": "350 W"},
        },
        "cases": {
            "low": {"probability": 0.5, "demand": [8, 12, 8]},
            "high": {"probability": 0.5, "demand": [16, 24, 16]},
        },
    }
    return solved(**problem | changes)


def test_portfolios_keep_power_racks_and_carbon() -> None:
    free = portfolio(pue=1.0)
    assert free.figures["power_most_kw"] == pytest.approx(6 * 0.35)
    tight = portfolio(power_limit="2 kW")
    assert tight.figures["power_most_kw"] <= 2.0
    assert tight.objective > free.objective
    assert str(tight.prices[0]).startswith("one more kW of power would save")
    assert tight.prices[0].saved == pytest.approx(tight.objective - portfolio(power_limit="3 kW").objective)
    hot = portfolio(power_limit="2 kW", pue=1.1)
    assert hot.figures["power_most_kw"] <= 2.0
    assert hot.objective >= tight.objective
    cases = {"low": {"probability": 0.5, "demand": [8, 12, 8]}, "high": {"probability": 0.5, "demand": [16, 26, 16]}}
    racks = portfolio(racks={"count": 3, "power": "700 W"}, cases=cases)
    assert racks.objective == pytest.approx(
        0.5 * (2 + 3 + 2) + 0.5 * (4 + (4 + 4) + 4)
    )  # l40s in two racks, one h100 in the third
    assert racks.prices[0].what == "one more rack"
    carbon = portfolio(carbon=[100, 200, 300], carbon_limit=0.95)
    kg = {name: value for name, value in carbon.figures.items() if "carbon" in name}
    assert kg["carbon_mean_kg"] <= 0.95
    assert carbon.objective > free.objective
    assert all("kg of CO2 in high" in price.what for price in carbon.prices)


def test_infeasible_portfolios_say_what_stands_in_the_way() -> None:
    for changes, message in (
        ({"power_limit": "1.4 kW"}, r"at most 1\.4 kW: missed by 0\.35 kW"),
        ({"racks": {"count": 2, "power": "700 W"}}, r"at most 2 racks: missed by 1 racks"),
        ({"carbon": [1000, 1000, 1000], "carbon_limit": 1.0}, r"at most 1 kg of CO2 in high: missed by"),
        ({"carbon": [1000, 1000], "carbon_limit": 1.0}, "carbon ends after 2 hours, the horizon is 3"),
        ({"racks": {"count": 2, "power": "300 W"}}, r"a rack of 0\.3 kW holds no replica: the smallest takes 0\.35 kW"),
        (
            {"power_limit": "1 kW", "chips": {"h100": {"throughput": 10, "on_demand": "4 USD/h"}}},
            "h100 has no power, which the limits of power, racks or carbon need",
        ),
    ):
        with pytest.raises(InputError, match=message):
            portfolio(**changes)


def regions(**places: Any) -> Plan:
    problem: dict[str, Any] = {
        "kind": "regions",
        "hours": 2,
        "utilisation": 1.0,
        "chips": {
            "h100": {"price": "4 USD/h", "power": "700 W", "idle": "100 W", "throughput": [10]},
            "l40s": {"price": "1 USD/h", "power": "350 W", "idle": "50 W", "throughput": [4]},
        },
        "buckets": {"chat": {"rates": {"west": "16 req/s"}, "profile": [0.5, 1.0]}},
        "regions": {"west": {"carbon": "500 g/kWh"}, "east": {"prices": {"h100": "9 USD/h", "l40s": "3 USD/h"}}},
    }
    problem["regions"] = {name: problem["regions"][name] | places.get(name, {}) for name in problem["regions"]}
    return solved(**problem | {"whole": True})


def test_regions_have_racks_and_carbon_limits_of_their_own() -> None:
    free = regions()
    assert free.objective == pytest.approx(2 + 4)
    racks = regions(west={"racks": {"count": 1, "power": "1 kW"}})
    most = {(row["chip"], row["region"]): row["most"] for row in racks.table}
    assert most == {("l40s", "west"): 2, ("l40s", "east"): 2}
    assert racks.objective == pytest.approx(2 + 2 + 6)
    assert [str(price).split(" would")[0] for price in racks.prices] == ["one more rack in west"]
    assert racks.prices[0].saved == pytest.approx(4.0)
    clean = regions(west={"carbon_limit": 0.6})
    assert clean.objective > free.objective
    assert [price.what for price in clean.prices] == ["one more kg of CO2 in west"]
    tight = {"racks": {"count": 1, "power": "1 kW"}}
    with pytest.raises(InputError, match=r"at most 1 racks in (west|east): missed by"):
        regions(west=tight, east=tight | {"racks": {"count": 1, "power": "400 W"}})
