"""Which runs belong to one line of a figure, and at which rate each ran."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from fleetsim.results.folder import AXIS, Results, Run
from fleetsim.results.labels import short_names
from fleetsim.units import parse

RATE_NAMES = ("rate", "rate_per_s", "speed_ratio", "load")
"""Last parts of paths whose values say how much load there is."""
MOST_DETAILED = 4
"""Runs that are shown in detail, at most."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A run with its place in the figures."""

    run: Run
    series: str
    rate_per_s: float | None


def placed(results: Results) -> list[Placed]:
    """Runs in order, with the line that each is part of and its rate of arrivals.

    The line is told by the axes that vary, the rate left out; outside studies each run is its own.
    """
    varied = [path for path in _paths(results.runs) if len({str(run.axes.get(path)) for run in results.runs}) > 1]
    telling = [path for path in varied if not _is_rate(path)]
    short = short_names(telling)
    several = len({run.study for run in results.runs}) > 1
    rates = _rates(results, [path for path in varied if _is_rate(path)])
    return [Placed(run, _series(run, short, several), rate) for run, rate in zip(results.runs, rates, strict=True)]


def _paths(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(path for run in runs for path in run.axes))


def _is_rate(path: str) -> bool:
    return path.rpartition(".")[2] in RATE_NAMES


def _series(run: Run, short: dict[str, str], several: bool) -> str:
    if not run.axes:
        return run.label
    values = [run.axes.get(path) for path in short]
    parts = [
        _text(value) if isinstance(value, str) else f"{short[path]} {_text(value)}"
        for path, value in zip(short, values, strict=True)
        if value is not None
    ]
    if several and run.study:
        parts.insert(0, run.study)
    return ", ".join(parts) or run.study or run.name


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _rates(results: Results, paths: Sequence[str]) -> list[float | None]:
    """Of each run: what its workload says, else what was measured, alike where an axis of rates says the same."""
    named = [_nominal(run) for run in results.runs]
    if all(rate is not None for rate in named):
        return named
    measured = [
        _measured(results, run) if rate is None else rate for run, rate in zip(results.runs, named, strict=True)
    ]
    if not paths:
        return [None if rate is None else float(f"{rate:.3g}") for rate in measured]
    groups: dict[str, list[float]] = {}
    keys = [str([run.axes.get(path) for path in paths]) for run in results.runs]
    for key, rate in zip(keys, measured, strict=True):
        if rate is not None:
            groups.setdefault(key, []).append(rate)
    return [float(np.mean(groups[key])) if key in groups else None for key in keys]


def _nominal(run: Run) -> float | None:
    workload = (run.manifest.get("scenario") or {}).get("workload") or {}
    arrivals = workload.get("arrivals")
    if not isinstance(arrivals, dict) or workload.get("sessions") is not None:
        return None
    try:
        return parse(arrivals["rate"], "rate")
    except (KeyError, ValueError):
        return None


def _measured(results: Results, run: Run) -> float | None:
    low, high, count = float("inf"), float("-inf"), 0
    for batch in results.scan("requests", ["arrival_s"], run):
        values = batch.column(0).to_numpy(zero_copy_only=False)
        if len(values):
            low, high, count = min(low, float(values.min())), max(high, float(values.max())), count + len(values)
    return (count - 1) / (high - low) if count > 1 and high > low else None


def summary_of(results: Results, places: Sequence[Placed]) -> pa.Table:
    """The summary with the columns ``series`` and ``rate_per_s`` that figures take."""
    table = results.summary()
    return table.append_column("series", pa.array([place.series for place in places])).append_column(
        "rate_per_s", pa.array([place.rate_per_s for place in places], pa.float64())
    )


def detailed(places: Sequence[Placed], best: dict[str, float | None], most: int = MOST_DETAILED) -> list[Placed]:
    """The runs that are shown one by one: of each line, the first at the highest rate that any line keeps its objective at."""
    if len(places) <= most:
        return list(places)
    kept = [rate for rate in best.values() if rate is not None]
    rates = sorted({place.rate_per_s for place in places if place.rate_per_s is not None})
    wanted = max(kept) if kept else rates[len(rates) // 2] if rates else None
    chosen: dict[str, Placed] = {}
    for place in places:
        if wanted is None or place.rate_per_s == wanted:
            chosen.setdefault(place.series, place)
    order = sorted(chosen.values(), key=lambda place: -(best.get(place.series) or 0.0))
    return order[:most]


def axes_for_grid(table: pa.Table) -> tuple[str, str] | None:
    """Two axes of a study with several values each, if it has just two: the rate from left to right, if one is."""
    axes = [name for name in table.column_names if name.startswith(AXIS)]
    axes = [name for name in axes if len(set(map(str, table[name].to_pylist()))) > 1]
    if len(axes) != 2:
        return None
    first, second = sorted(axes, key=_is_rate)
    return second, first
