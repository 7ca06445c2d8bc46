"""Grids: carbon intensity and price of electricity of a mean day in each season, fitted to published series."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from fleetsim.catalog.data import locate, read_yaml
from fleetsim.catalog.sourced import Record
from fleetsim.errors import DataError, Finding

SEASONS = ("year", "winter", "spring", "summer", "autumn")
PARTS = {"carbon intensity": ("carbon_intensity", "g/kWh"), "price of energy": ("electricity_price", "USD/kWh")}
"""Key in the file and unit of its values, by dimension."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Mean days of a power grid."""

    name: str
    title: str
    days: Mapping[str, Mapping[str, tuple[float, ...]]]
    """24 values from midnight UTC on, by dimension and season."""
    residuals: Mapping[str, float]
    """Root mean square of what the series differ from the seasons' days, by dimension."""
    sources: Mapping[str, str]
    """Key in ``models/SOURCES.yaml``, by dimension."""

    def day(self, dimension: str, season: str) -> tuple[float, ...]:
        """Its 24 values.

        Raises
        ------
        DataError
            If nothing of that dimension is known of this grid.
        """
        found = self.days.get(dimension)
        if found is None:
            known = " and ".join(sorted(self.days))
            raise DataError(Finding(f'of the grid "{self.name}" only the {known} is known, not the {dimension}'))
        return found[season]


@cache
def load_grid(name: str) -> Grid:
    """Grid of the catalogue.

    Raises
    ------
    DataError
        If the name is unknown or its file is not valid.
    """
    path = locate("grid", name)
    record = Record(read_yaml(path), path)
    title = record.text("title")
    days: dict[str, dict[str, tuple[float, ...]]] = {}
    residuals: dict[str, float] = {}
    sources: dict[str, str] = {}
    for dimension, (key, unit) in PARTS.items():
        if key not in record.content:
            continue
        part = record.part(key)
        part.text("unit", unit)
        part.text("note")
        sources[dimension] = part.text("source")
        residuals[dimension] = part.bare("residual")
        days[dimension] = {season: _day(part, season) for season in SEASONS}
    if not days:
        record.find("title", f"a grid needs {' or '.join(key for key, _ in PARTS.values())}")
    record.finish()
    return Grid(name, title, days, residuals, sources)


def _day(part: Record, season: str) -> tuple[float, ...]:
    values = part.get(season)
    right = isinstance(values, list) and len(values) == 24
    if not right or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        part.find(season, "expected 24 numbers, one for each hour from midnight UTC on")
        return (0.0,) * 24
    return tuple(map(float, values))
