"""Routers that choose a site first, and admissions that wait for better hours, by hand and in whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleetsim.catalog.series import HOUR_S, StepSeries, constant, hourly
from fleetsim.plugins import load
from fleetsim.routing.api import ADMIT, Defer, FleetView, RequestView
from fleetsim.routing.places import Place, Places
from fleetsim.testing import check_admission, check_router
from fleetsim.workload.request import Request
from tests.fleet.test_moves import column, same_in_single_steps, scenario
from tests.fleet.test_sites import lonely, sites, spread

NAMES = ("eu", "us", "asia")
WAY_S = {("eu", "us"): 0.09, ("eu", "asia"): 0.25, ("us", "asia"): 0.16}
ROUTERS = [
    ("nearest-site", {"spill_per_replica": 1.0}),
    ("cheapest-site", {"max_rtt_s": 0.1}),
    ("greenest-site", {"max_rtt_s": 0.0, "patient_classes": ("chat",)}),
]
DEFERRALS = [
    ("defer-to-green", {"slack_s": 300.0, "window_s": 30.0}),
    ("defer-to-green", {"slack_s": 300.0, "window_s": 30.0, "forecast": "yesterday", "min_gain_ratio": 0.0}),
    ("defer-to-cheap", {"slack_s": 60.0, "window_s": 60.0}),
]


@pytest.mark.parametrize(("name", "parameters"), ROUTERS)
def test_the_checker_passes_routers(name: str, parameters: dict[str, Any]) -> None:
    assert len(check_router(name, parameters).checks) == 7


@pytest.mark.parametrize(("name", "parameters"), DEFERRALS)
def test_the_checker_passes_deferrals(name: str, parameters: dict[str, Any]) -> None:
    assert len(check_admission(name, parameters).checks) == 6


def both_s(origin: str | None, site: str) -> float:
    if origin is None:
        return 0.0
    return 0.001 if origin == site else WAY_S.get((origin, site), WAY_S.get((site, origin), 0.0))


def view(
    carbon: list[StepSeries], usd: tuple[float, ...] = (3.0, 2.0, 4.0), each: int = 2, tariff: float = 0.0
) -> FleetView:
    """Three sites with so many replicas each, one after the other."""
    found = FleetView(["main"] * 3 * each)
    places = [
        Place(name, 1.0 + 0.5 * (name == "us"), series, constant(tariff))
        for name, series in zip(NAMES, carbon, strict=True)
    ]
    prices = [constant(price) for price in usd]
    of = [i // each for i in range(3 * each)]
    found.places = Places(places, of, [prices[i] for i in of], [1000.0 * (1 + 9 * (i == 1)) for i in of], both_s)
    return found


def router(fleet: FleetView, name: str, **parameters: Any) -> Any:
    policy = load("routers", name)
    return policy(policy.Config(**parameters), np.random.default_rng(0), fleet)


def asked(number: int, origin: str | None = None, klass: str | None = None) -> RequestView:
    request = Request(number, 0.0, 100, 10, klass=klass)
    request.origin = origin
    return RequestView(request)


def sent(fleet: FleetView, one: Any, count: int, **of: Any) -> list[int]:
    """Where so many requests go, none of which ends: numbers of sites."""
    found = []
    for number in range(count):
        place = one.route(asked(number, **of))
        fleet.sent(place, 100)
        found.append(fleet.places.place_of[place])
    return found


FLAT = [constant(300.0), constant(250.0), constant(100.0)]


def test_the_nearest_site_spills_over_to_the_next() -> None:
    fleet = view(FLAT)
    assert sent(fleet, router(fleet, "nearest-site", spill_per_replica=2), 13, origin="asia") == [2] * 4 + [1] * 4 + [
        0
    ] * 4 + [2]


def test_within_a_site_the_least_loaded_replica_gets_it() -> None:
    fleet = view(FLAT)
    one = router(fleet, "nearest-site")
    fleet.sent(0, 50)
    assert one.route(asked(1, "eu")) == 1
    fleet.ended(0, 50)
    fleet.sent(1, 50)
    assert one.route(asked(2, "eu")) == 0


def test_sites_that_are_gone_are_passed_over_until_they_are_back() -> None:
    fleet = view(FLAT)
    one = router(fleet, "nearest-site", spill_per_replica=3)
    for place in (0, 1):
        fleet.set_present(place, False)
    assert sent(fleet, one, 1, origin="eu") == [1]
    fleet.set_present(1, True)
    assert sent(fleet, one, 4, origin="eu") == [0, 0, 0, 1]  # one replica has room for three


def test_the_cheapest_site_counts_energy_and_cooling() -> None:
    dear = view(FLAT, tariff=0.1)  # 10 kW in America at PUE 1.5 make 2.0 USD/h 3.5; Europe's 1 kW makes 3.0 USD/h 3.1
    assert sent(dear, router(dear, "cheapest-site"), 1, origin="asia") == [0]
    free = view(FLAT)
    assert sent(free, router(free, "cheapest-site"), 1, origin="asia") == [1]
    near = view(FLAT)
    assert sent(near, router(near, "cheapest-site", max_rtt_s=0.05), 1, origin="asia") == [2]
    patient = view(FLAT)
    assert sent(patient, router(patient, "cheapest-site", max_rtt_s=0.05), 1, origin="asia", klass="batch") == [1]


def test_the_greenest_site_follows_the_sun() -> None:
    day = [400.0] * 24
    suns = []
    for noon in (12, 20, 4):
        values = list(day)
        for hour in range(noon - 3, noon + 4):
            values[hour % 24] = 100.0
        suns.append(hourly(values, 0.0, True, "intensity"))
    fleet = view(suns)
    one = router(fleet, "greenest-site")
    for hour, site in ((4, 2), (12, 0), (20, 1), (28, 2), (36, 0)):
        fleet.now_s = hour * HOUR_S
        assert sent(fleet, one, 1, origin="eu") == [site]
    bounded = router(fleet, "greenest-site", max_rtt_s=0.1)
    fleet.now_s = 28 * HOUR_S
    assert sent(fleet, bounded, 1, origin="eu") == [
        0
    ]  # Asia, the cleanest now, is too far; Europe is cleaner than America x PUE
    assert sent(fleet, bounded, 1, origin=None) == [2]


# --- better hours ---------------------------------------------------------------------------------------------------------


def deferral(name: str, series: StepSeries, **parameters: Any) -> tuple[Any, FleetView]:
    fleet = FleetView(["main"])
    fleet.places = Places([Place("", 1.2, series, series)], [0], [constant(1.0)], [700.0])
    policy = load("admissions", name)
    return policy(policy.Config(**parameters), np.random.default_rng(0), fleet), fleet


DAY = [300.0] * 10 + [200.0, 100.0, 100.0, 150.0] + [350.0] * 10


WINDOWS = [(0, 24, 11), (0, 11, 10), (0, 5, None), (11, 24, None), (15, 24, 35), (14, 6, None)]
"""Hour of arrival, slack [h], hour of the window that is waited for."""


@pytest.mark.parametrize("name", ["defer-to-green", "defer-to-cheap"])
@pytest.mark.parametrize(("hour", "slack_h", "window"), WINDOWS)
def test_work_waits_for_the_lowest_window_within_its_slack(
    name: str, hour: int, slack_h: int, window: int | None
) -> None:
    one, fleet = deferral(name, hourly(DAY, 0.0, True, "x"), slack_s=slack_h * HOUR_S)
    fleet.now_s = hour * HOUR_S
    request = Request(1, fleet.now_s, 100, 10, klass="batch")
    answer = one.decide(RequestView(request))
    if window is None:
        assert answer is ADMIT
        return
    assert isinstance(answer, Defer)
    assert window * HOUR_S <= answer.until_s <= (window + 1) * HOUR_S
    assert answer.until_s <= request.arrival_s + slack_h * HOUR_S
    fleet.now_s = answer.until_s
    assert one.decide(RequestView(request)) is ADMIT


def test_a_window_that_is_longer_than_an_hour_may_begin_within_one() -> None:
    """Two hours and a half begin with the two lowest hours, since 150 comes after them and 200 before."""
    one, fleet = deferral("defer-to-green", hourly(DAY, 0.0, True, "x"), slack_s=24 * HOUR_S, window_s=2.5 * HOUR_S)
    begins = []
    for number in range(400):
        answer = one.decide(asked(number, klass="batch"))
        assert isinstance(answer, Defer)
        begins.append(answer.until_s / HOUR_S)
    assert 11.0 <= min(begins) < 11.1
    assert 13.4 < max(begins) <= 13.5
    assert np.mean(begins) == pytest.approx(12.25, abs=0.15)
    assert fleet.now_s == 0.0


def test_online_work_does_not_wait_and_small_gains_are_not_waited_for() -> None:
    one, _ = deferral("defer-to-green", hourly(DAY, 0.0, True, "x"), slack_s=24 * HOUR_S)
    assert one.decide(asked(1, klass="chat")) is ADMIT
    urgent = Request(2, 0.0, 1, 1)
    urgent.priority = -1
    assert isinstance(one.decide(RequestView(urgent)), Defer)
    picky, _ = deferral(
        "defer-to-green", hourly([100.0, 96.0], 0.0, True, "x"), slack_s=24 * HOUR_S, min_gain_ratio=0.05
    )
    assert picky.decide(asked(3, klass="batch")) is ADMIT


def test_yesterday_is_all_that_is_known_without_a_forecast() -> None:
    days = hourly([*DAY, *(400.0 - value for value in DAY)], 0.0, False, "x")
    one, fleet = deferral("defer-to-green", days, slack_s=20 * HOUR_S, forecast="yesterday")
    assert one.decide(asked(1, klass="batch")) is ADMIT  # nothing is known on the first day
    fleet.now_s = 24 * HOUR_S
    request = Request(2, fleet.now_s, 1, 1, klass="batch")
    answer = one.decide(RequestView(request))
    assert isinstance(answer, Defer)
    assert 35 <= answer.until_s / HOUR_S <= 36  # where the first day was lowest, although the second is highest there
    end, late = deferral("defer-to-green", days, slack_s=20 * HOUR_S)
    late.now_s = 46 * HOUR_S
    assert (
        end.decide(RequestView(Request(3, late.now_s, 1, 1, klass="batch"))) is ADMIT
    )  # the series ends: nothing to wait for


def test_waiting_for_the_cleanest_hours_saves_what_the_series_says(tmp_path: Path) -> None:
    """All of the work waits: its carbon falls by the ratio of the lowest window to the hour in which it came."""
    base = scenario(
        workload=lonely(None, 20)
        | {"class": "batch", "requests": 30, "arrivals": {"process": "poisson", "rate": "36 req/h"}},
        energy={
            "carbon_intensity": {"hourly": [400.0, 400.0, 300.0, 100.0, 400.0, 400.0, 400.0, 400.0], "repeat": True}
        },
        run={"interval": "10 min"},
        classes={"batch": {}},
    )
    wait = {"policy": "defer-to-green", "slack_s": 5 * HOUR_S}
    now = same_in_single_steps(base, tmp_path / "now")
    later = same_in_single_steps({**base, "gateway": {"admission": wait}}, tmp_path / "later")
    assert set(column(later, "status")) == {"finished"}
    start = np.array(column(later, "first_scheduled_s"))
    assert ((start >= 3 * HOUR_S) & (start < 4 * HOUR_S + 60)).all()
    assert later.summary["carbon_requests_g"] < 0.35 * now.summary["carbon_requests_g"]
    np.testing.assert_allclose(column(later, "site_energy_j"), column(now, "site_energy_j"), rtol=0.3)


def test_following_the_sun_saves_carbon_and_costs_latency(tmp_path: Path) -> None:
    given = spread(2, sites=sites(), workload=lonely("eu"))
    near = same_in_single_steps({**given, "gateway": {"router": "nearest-site"}}, tmp_path / "near")
    green = same_in_single_steps({**given, "gateway": {"router": "greenest-site"}}, tmp_path / "green")
    bound = {"policy": "greenest-site", "max_rtt_s": 0.1}
    bounded = same_in_single_steps({**given, "gateway": {"router": bound}}, tmp_path / "bound")
    assert set(column(near, "site")) == set(column(bounded, "site")) == {"eu"}
    assert set(column(green, "site")) == {"asia"}
    assert green.summary["carbon_requests_g"] < 0.2 * near.summary["carbon_requests_g"]
    gain_s = green.summary["ttft_mean_s"] - near.summary["ttft_mean_s"]
    assert gain_s == pytest.approx(0.24 - 0.001, rel=1e-6)
