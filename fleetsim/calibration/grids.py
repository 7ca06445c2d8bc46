"""Mean days of power grids from published series of carbon intensity and prices: writes ``models/grid``.

``python -m fleetsim.calibration.grids`` reads the folder of measurements (`FLEETSIM_DATA`) and writes the files again.
"""

from __future__ import annotations

import csv
import gzip
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import sqrt
from pathlib import Path

from fleetsim.catalog.data import models_folder

USD_PER_EUR = {2022: 1.0530, 2023: 1.0813}
"""Mean reference rates of the European Central Bank."""
_SEASONS = {12: "winter", 1: "winter", 2: "winter", 3: "spring", 4: "spring", 5: "spring"} | {
    6: "summer", 7: "summer", 8: "summer", 9: "autumn", 10: "autumn", 11: "autumn",
}  # fmt: skip
_OPPOSITE = {"winter": "summer", "spring": "autumn", "summer": "winter", "autumn": "spring", "year": "year"}
_LIFE_CYCLE = "Carbon Intensity gCO₂eq/kWh (LCA)"
_UTC = "Datetime (UTC)"


@dataclass(frozen=True, slots=True)
class Fit:
    """One grid's series and what is said of it."""

    grid: str
    title: str
    key: str
    """``carbon_intensity`` or ``electricity_price``."""
    unit: str
    files: tuple[str, ...]
    time: str
    value: str
    source: str
    note: str
    years: tuple[int, ...] = ()
    """Kept; all if none are named."""
    south: bool = False
    """Whether seasons are those of the south."""
    brussels: bool = False
    """Whether times are those of Brussels: an hour before UTC's, two in summer."""


def _electricity_maps(grid: str, title: str, zone: str, years: tuple[int, ...], south: bool = False) -> Fit:
    when = " and ".join(map(str, years))
    return Fit(
        grid,
        title,
        "carbon_intensity",
        "g/kWh",
        tuple(f"carbon_{zone}_{year}_hourly.csv.gz" for year in years),
        _UTC,
        _LIFE_CYCLE,
        "electricity-maps",
        f"life-cycle emissions, hourly data of {when}; residual: root mean square of the data around the seasons' days",
        south=south,
    )


def _wait_awhile(grid: str, title: str, zone: str, minutes: str) -> Fit:
    note = f"data of 2020 every {minutes} minutes, read as UTC (not stated); residual: root mean square around the seasons' days"
    return Fit(
        grid,
        title,
        "carbon_intensity",
        "g/kWh",
        (f"carbon_2020_{zone}_15-30min.csv.gz",),
        "Time",
        "Carbon Intensity",
        "lets-wait-awhile",
        note,
        (2020,),
    )


FITS = (
    _electricity_maps("spain", "Spain", "ES", (2021, 2022)),
    _electricity_maps("norway", "Norway", "NO", (2022,)),
    _electricity_maps("brazil", "Brazil", "BR", (2022,), True),
    _electricity_maps("california", "California (CAISO)", "US-CAL-CISO", (2022,)),
    _wait_awhile("germany", "Germany", "ger", "15"),
    _wait_awhile("great-britain", "Great Britain", "gb", "30"),
    _wait_awhile("france", "France", "fr", "30"),
    Fit(
        "belgium",
        "Belgium",
        "electricity_price",
        "USD/kWh",
        ("electricity_price_belgium_dam_2022_2023_eur_per_kwh.csv.gz",),
        "time",
        "DAM_price",
        "entsoe-belgium",
        "day-ahead market, hourly data of 2022 and 2023 (years of crisis) at 1.0530 and 1.0813 USD/EUR, mean rates of the "
        "European Central Bank; residual: root mean square of the data around the seasons' days",
        brussels=True,
    ),
)


def fit(spec: Fit, folder: Path) -> tuple[dict[str, list[float]], float]:
    """Mean of each hour in each season, and the root mean square of what the data differ from it.

    Parameters
    ----------
    spec : Fit
        What to read.
    folder : Path
        Where its files lie.
    """
    rows = [row for name in spec.files for row in _rows(folder / name, spec)]
    sums: dict[tuple[str, int], list[float]] = {}
    for season, hour, value in rows:
        for key in ((season, hour), ("year", hour)):
            found = sums.setdefault(key, [0.0, 0.0])
            found[0] += value
            found[1] += 1.0
    means = {key: total / count for key, (total, count) in sums.items()}
    square = sum((value - means[season, hour]) ** 2 for season, hour, value in rows) / len(rows)
    days = {
        season: [means[season, hour] for hour in range(24)]
        for season in ("year", "winter", "spring", "summer", "autumn")
    }
    return days, sqrt(square)


def _rows(path: Path, spec: Fit) -> list[tuple[str, int, float]]:
    """Season, hour and value of each row; of an hour that local time counts twice, both."""
    found = []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            if not row[spec.value]:
                continue
            when, value = _date(row[spec.time]), float(row[spec.value])
            if spec.brussels:
                when -= timedelta(hours=2 if _summer_time(when) else 1)
            if spec.years and when.year not in spec.years:
                continue
            if spec.key == "electricity_price":
                value *= USD_PER_EUR[max(when.year, 2022)]  # the first hour is still the last one of 2021 in UTC
            season = _SEASONS[when.month]
            found.append((_OPPOSITE[season] if spec.south else season, when.hour, value))
    return found


def _date(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text).replace(tzinfo=None)
    except ValueError:
        return datetime.strptime(text, "%d%b%Y %H:%M:%S")


def _summer_time(when: datetime) -> bool:
    """Whether clocks of the European Union are an hour ahead: from the last Sunday of March to that of October."""

    def last_sunday(month: int) -> datetime:
        day = datetime(when.year, month, 31, 2)
        return day - timedelta(days=(day.weekday() + 1) % 7)

    return last_sunday(3) <= when < last_sunday(10)


def text_of(parts: Mapping[str, tuple[Fit, dict[str, list[float]], float]]) -> str:
    """A file of ``models/grid``."""
    lines = [f"title: {next(iter(parts.values()))[0].title}"]
    for key, (spec, days, residual) in parts.items():
        digits = 1 if spec.unit == "g/kWh" else 4
        lines += [f"{key}:", f"  unit: {spec.unit}", f"  source: {spec.source}", f'  note: "{spec.note}"']
        lines.append(f"  residual: {residual:.{digits}f}")
        lines += [f"  {season}: [{', '.join(f'{v:.{digits}f}' for v in day)}]" for season, day in days.items()]
    return "\n".join(lines) + "\n"


def write(data: Path, out: Path) -> list[Path]:
    """Fit all grids and write their files.

    Parameters
    ----------
    data : Path
        The folder of measurements.
    out : Path
        Folder for the files.
    """
    folder = data / "traces" / "open" / "cluster"
    grids: dict[str, dict[str, tuple[Fit, dict[str, list[float]], float]]] = {}
    for spec in FITS:
        grids.setdefault(spec.grid, {})[spec.key] = (spec, *fit(spec, folder))
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, parts in grids.items():
        path = out / f"{name}.yaml"
        path.write_text(text_of(parts), encoding="utf-8")
        written.append(path)
    return written


if __name__ == "__main__":
    if not os.environ.get("FLEETSIM_DATA"):
        sys.exit("set FLEETSIM_DATA to the folder of measurements")
    for file in write(Path(os.environ["FLEETSIM_DATA"]), models_folder() / "grid"):
        print(file.name)
