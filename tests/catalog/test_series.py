"""Series of prices and intensities: what holds when, and what is refused."""

from __future__ import annotations

import gzip
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetsim.calibration.grids import FITS, fit
from fleetsim.catalog.accelerator import load_accelerator
from fleetsim.catalog.data import names
from fleetsim.catalog.grid import load_grid
from fleetsim.catalog.price import load_prices, price_of
from fleetsim.catalog.series import HOUR_S, StepSeries, constant, hourly, series_of
from fleetsim.errors import DataError
from fleetsim.scenario.timed import Price, Series

values = st.lists(st.floats(0, 1000), min_size=1, max_size=30)

CLUSTER = (
    Path(os.environ.get("FLEETSIM_DATA", Path(__file__).parents[3] / "shared" / "data")) / "traces" / "open" / "cluster"
)


@given(values, st.floats(0, 0.99), st.floats(0, 200), st.floats(0, 200))
def test_a_repeated_list_is_read_by_the_hour(listed: list[float], share: float, a: float, b: float) -> None:
    """`at` and `integral` are those of the list read naively, at any time and from any hour on."""
    begin = share * len(listed)
    series = hourly(listed, begin, True, "x")
    low, high = min(a, b), max(a, b)

    def naive(hour: float) -> float:
        return listed[int(hour + begin) % len(listed)]

    for hour in (low, high):
        if abs((hour + begin) - round(hour + begin)) > 1e-6:  # not just where it changes
            assert series.at(hour * HOUR_S) == naive(hour)
    edges = [low, *(h - begin for h in range(int(low + begin) + 1, int(high + begin) + 1)), high]
    whole = sum((y - x) * naive((x + y) / 2) for x, y in itertools.pairwise(edges) if y > x)
    assert series.integral(low * HOUR_S, high * HOUR_S) == pytest.approx(whole * HOUR_S, rel=1e-9, abs=1e-3)


@given(values, st.floats(0, 0.99), st.booleans())
def test_changes_are_where_values_change(listed: list[float], share: float, repeat: bool) -> None:
    series = hourly(listed, share * len(listed), repeat, "x")
    time_s, seen = 0.0, 0
    while seen < 40:
        change_s = series.next_change_s(time_s)
        last_s = min(change_s, series.known_s, time_s + 100 * HOUR_S)
        inner = np.linspace(time_s, last_s, 5)[1:-1]
        assert {series.at(float(t)) for t in inner} == {series.at(time_s)}
        if change_s == float("inf") or change_s >= series.known_s:
            break
        assert change_s > time_s
        time_s, seen = change_s, seen + 1


def test_a_list_that_is_not_repeated_ends() -> None:
    series = hourly([1.0, 2.0, 3.0], 1.5, False, "the price")
    assert (series.at(0.0), series.at(0.5 * HOUR_S), series.known_s) == (2.0, 3.0, 1.5 * HOUR_S)
    assert series.next_change_s(0.6 * HOUR_S) == series.known_s
    with pytest.raises(DataError, match="the price ends at 5400 s, before the run does"):
        series.integral(0.0, 2 * HOUR_S)


def test_a_constant_never_changes() -> None:
    series = constant(7.0)
    assert series.constant
    assert series.next_change_s(0.0) == float("inf")
    assert series.mean(3.0, 900.0) == series.mean(5.0, 5.0) == series.average == 7.0
    assert StepSeries([0.0, 1.0], [3.0, 3.0]).constant  # equal steps are one


# --- files --------------------------------------------------------------------------------------------------------------


def file_series(tmp_path: Path, text: str, **block: object) -> StepSeries:
    (tmp_path / "p.csv").write_text(text)
    given = Series.model_validate({"file": "p.csv", **block})
    return series_of(given, "price of energy", tmp_path, "energy.electricity_price")


def test_files_hold_dates_or_seconds(tmp_path: Path) -> None:
    dates = "time,value\n2022-07-01 00:00:00,10\n2022-07-01 01:00:00,20\n2022-07-01 02:00:00,-5\n"
    series = file_series(tmp_path, dates, unit="USD/MWh")
    assert [series.at(h * HOUR_S) for h in (0, 0.99, 1, 2)] == [0.01, 0.01, 0.02, -0.005]
    assert series.known_s == 3 * HOUR_S
    later = file_series(tmp_path, dates, begin="2022-07-01 01:30:00", repeat=False)
    assert (later.at(0.0), later.at(0.5 * HOUR_S), later.known_s) == (20.0, -5.0, 1.5 * HOUR_S)
    named = "when,eur\n01jan2022 00:00:00,1\n01jan2022 01:00:00,2\n"
    assert file_series(tmp_path, named, time="when", value="eur", scale=1.05).at(HOUR_S) == pytest.approx(2.1)
    assert file_series(tmp_path, "time,value\n0,1\n60,2\n", repeat=True).at(130.0) == 1.0
    with gzip.open(tmp_path / "p.csv.gz", "wt") as file:
        file.write("time,value\n0,1\n60,2\n")
    packed = Series.model_validate({"file": "p.csv.gz"})
    assert series_of(packed, "carbon intensity", tmp_path, "x").at(61.0) == 2.0


@pytest.mark.parametrize(
    ("text", "block", "message"),
    [
        ("time,value\n0,1\n", {}, "1 rows are no series"),
        ("time,value\n0,1\n0,2\n", {}, r"p.csv:3  column time: the time is not after the one before"),
        ("time,value\n0,1\n9,nan\n", {}, r"p.csv:3  column value: nan is no value"),
        ("time,value\n0,1\nsoon,2\n", {}, 'p.csv:3  no time and number: "soon" and "2"'),
        ("time,value\n0,1\n1\n", {}, "p.csv:3  no time and number"),
        ("time,watts\n0,1\n1,2\n", {}, 'p.csv:1  no column "value"'),
        ("time,value\n0,1\n1,2\n", {"begin": "7"}, "not between its first and last row"),
        ("time,value\n0,1\n1,2\n", {"begin": "noon"}, 'begins at "noon", which is no time'),
        ("", {}, 'no column "time"'),
    ],
)
def test_files_that_are_no_series(text: str, block: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        file_series(tmp_path, text, **block)


def test_files_that_are_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        series_of(Series(file="no.csv"), "carbon intensity", tmp_path, "x")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(DataError, match="is no CSV file"):
        series_of(Series(file="b.csv"), "carbon intensity", tmp_path, "x")
    (tmp_path / "b.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match=r"b\.csv\.gz"):
        series_of(Series(file="b.csv.gz"), "carbon intensity", tmp_path, "x")


# --- grids and prices of the catalogue ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names("grid"))
def test_grids_load(name: str) -> None:
    grid = load_grid(name)
    for dimension, seasons in grid.days.items():
        year = np.array(seasons["year"])
        each = np.array([seasons[season] for season in ("winter", "spring", "summer", "autumn")])
        np.testing.assert_allclose(each.mean(axis=0), year, rtol=0.05)  # seasons are of almost equal length
        assert grid.residuals[dimension] > 0
    with pytest.raises(DataError, match="only the"):
        grid.day("price" if name != "belgium" else "carbon intensity", "year")


def test_a_grid_begins_at_an_hour_of_its_day() -> None:
    day = load_grid("california").day("carbon intensity", "summer")
    given = Series(grid="california", season="summer", begin_hour=19, scale=2.0)
    series = series_of(given, "carbon intensity", Path(), "x")
    assert [series.at(h * HOUR_S) for h in range(30)] == [2 * day[(19 + h) % 24] for h in range(30)]


@pytest.mark.parametrize("spec", FITS, ids=lambda spec: spec.grid)
def test_grids_are_the_means_of_their_data(spec: object) -> None:
    if not CLUSTER.is_dir():
        pytest.skip(f"no evaluation data at {CLUSTER} (set FLEETSIM_DATA)")
    days, residual = fit(spec, CLUSTER)  # type: ignore[arg-type]
    grid = load_grid(spec.grid)  # type: ignore[attr-defined]
    (dimension,) = grid.days
    places = 1 if dimension == "carbon intensity" else 4
    for season, values in days.items():
        np.testing.assert_allclose(grid.day(dimension, season), values, atol=0.51 * 10**-places)
    assert grid.residuals[dimension] == pytest.approx(residual, abs=0.51 * 10**-places)


@pytest.mark.parametrize("name", names("price"))
def test_prices_load_and_terms_are_in_order(name: str) -> None:
    offers = load_prices(name)
    load_accelerator(name)  # lists belong to accelerators of the catalogue
    for offer in offers:
        same = {o.term: o.usd_per_h for o in offers if (o.provider, o.region) == (offer.provider, offer.region)}
        assert same.get("spot", 0.0) < same["on-demand"]
        assert same["reserved"] == pytest.approx(0.6 * same["on-demand"], rel=1e-3)


def test_prices_are_looked_up_by_term_region_and_provider() -> None:
    def usd(accelerator: str, **price: str) -> float:
        return price_of(Price.model_validate(price), load_accelerator(accelerator), Path()).at(0.0)

    assert usd("h100-sxm", term="spot", region="eu-north1") == 1.25
    assert usd("h100-sxm", term="on-demand", provider="oracle") == 10.0
    assert usd("a100-80", term="on-demand") == 1.5  # the cheapest
    assert usd("a100-80", term="spot", region="us-east-1") == 1.47  # a list without regions holds for all
    assert price_of(None, load_accelerator("h100-sxm"), Path()).at(0.0) == 2.95
    assert price_of(4.5, load_accelerator("h100-sxm"), Path()).at(0.0) == 4.5
    for price, message in (
        ({"term": "spot", "provider": "oracle"}, 'no term "spot"'),
        ({"term": "spot", "provider": "nobius"}, 'no provider "nobius"'),
        ({"term": "spot", "region": "mars"}, 'no region "mars"'),
    ):
        with pytest.raises(DataError, match=message):
            usd("h100-sxm", **price)
    with pytest.raises(DataError, match="lists no prices of m2-ultra"):
        usd("m2-ultra", term="spot")


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({}, "needs one of hourly, grid and file"),
        ({"hourly": [1.0], "grid": "spain"}, "found hourly and grid"),
        ({"hourly": [1.0], "season": "winter"}, "season says nothing"),
        ({"hourly": [1.0, 2.0], "begin_hour": 2.0}, "begin_hour 2 lies behind the 2 hours"),
        ({"grid": "spain", "begin_hour": 24.0}, "begin_hour 24 is no hour of the day"),
        ({"file": "x", "begin_hour": 3.0}, "begin_hour says nothing"),
    ],
)
def test_blocks_that_say_too_little_or_too_much(block: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Series.model_validate(block)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"grid": "spain"}, "power grids have no prices"),
        ({"region": "eu-north1"}, "region needs a term"),
        ({}, "needs one of term, hourly and file"),
        ({"term": "spot", "hourly": [1.0]}, "hourly says nothing"),
    ],
)
def test_prices_that_say_too_little_or_too_much(block: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Price.model_validate(block)
