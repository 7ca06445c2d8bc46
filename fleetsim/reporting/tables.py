"""The tables of a report: headers with formulas, cells with the value that they are sorted by."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fleetsim.metrics.definitions import METRICS
from fleetsim.plots.style import duration, number

FORMULAS = {metric.name: metric.formula for metric in METRICS}
PERCENTILES = ("mean", "p50", "p90", "p95", "p99")


@dataclass(frozen=True, slots=True)
class Head:
    """A column of a table."""

    text: str
    hint: str = ""
    """Formula, shown on hover."""
    numeric: bool = True


@dataclass(frozen=True, slots=True)
class Cell:
    """A value as it is shown, and as it is sorted by."""

    text: str
    value: float | str | None = None
    tone: str = ""
    """``good``, ``bad``, ``grey``, or a colour for a dot in front of it."""


@dataclass(frozen=True, slots=True)
class HtmlTable:
    """What the template draws."""

    title: str
    heads: Sequence[Head]
    rows: Sequence[Sequence[Cell]]
    source: str
    note: str = ""
    id: str = field(default="")


def formula(name: str) -> str:
    """Formula of a figure of the summary, whatever percentile of it is meant."""
    if name in FORMULAS:
        return FORMULAS[name]
    for percentile in PERCENTILES:
        base = name.replace(f"_{percentile}", "")
        if base != name and base in FORMULAS:
            return f"{percentile} of {FORMULAS[base]}" if percentile != "mean" else f"mean of {FORMULAS[base]}"
    return ""


def seconds(value: float | None) -> Cell:
    """A time for people."""
    if value is None or value != value:
        return Cell("–", None, "grey")
    return Cell(duration(value), value)


def ratio(value: float | None, target: float | None = None) -> Cell:
    """A share as per cent; good or bad where there is a target."""
    if value is None or value != value:
        return Cell("–", None, "grey")
    tone = "" if target is None else "good" if value >= target else "bad"
    text = f"{value:.2%}" if value < 0.9995 or value == 1.0 else f"{value:.3%}"
    return Cell(re.sub(r"\.?0+%$", "%", text) if "." in text else text, value, tone)


def plain(value: float | None, digits: int = 3) -> Cell:
    """A number, or a dash."""
    if value is None or value != value:
        return Cell("–", None, "grey")
    return Cell(f"{value:,}" if isinstance(value, int) else number(value, digits), value)


def kwh(value: float | None) -> Cell:
    """Energy in joules, as kWh."""
    return plain(None if value is None else value / 3.6e6)


def kilograms(value: float | None) -> Cell:
    """Grams, as kg."""
    return plain(None if value is None else value / 1e3)


def name(text: str, colour: str = "") -> Cell:
    """A name, with a dot of its colour in front."""
    return Cell(text, text, colour)


def group_table(
    title: str, by: str, groups: Iterable[Mapping[str, Any]], source: str, target: float | None
) -> HtmlTable | None:
    """Figures of the groups of one kind, or None where there are none."""
    rows = [group for group in groups if group["by"] == by]
    if not rows:
        return None
    known = {key for row in rows for key, value in row.items() if value is not None}
    if "cost_usd" in known:  # all that they cost, idle time included
        known -= {"cost_requests_usd", "energy_requests_j", "carbon_requests_g"}
    known -= {key for key in _IF_ANY if not any(row.get(key) for row in rows)}
    columns = [(head, key, show) for head, key, show in _GROUP_COLUMNS if key in known]
    heads = [Head(by, "", False), *(Head(head, formula(key)) for head, key, _ in columns)]
    cells = [
        [
            name(str(row["value"])),
            *(
                ratio(row.get(key), target) if key == "slo_attainment_ratio" else show(row.get(key))
                for _, key, show in columns
            ),
        ]
        for row in rows
    ]
    return HtmlTable(title, heads, cells, source)


_GROUP_COLUMNS = (
    ("requests", "requests", plain),
    ("rejected", "rejected", plain),
    ("timed out", "timed_out", plain),
    ("failed", "failed", plain),
    ("unfinished", "unfinished", plain),
    ("within SLO", "slo_attainment_ratio", ratio),
    ("goodput /s", "goodput_requests_per_s", plain),
    ("output tokens/s", "output_tokens_per_s", plain),
    ("TTFT p50", "ttft_p50_s", seconds),
    ("TTFT p99", "ttft_p99_s", seconds),
    ("TPOT p50", "tpot_p50_s", seconds),
    ("TPOT p99", "tpot_p99_s", seconds),
    ("E2EL p99", "e2el_p99_s", seconds),
    ("cost USD", "cost_usd", plain),
    ("charged USD", "cost_requests_usd", plain),
    ("site energy kWh", "site_energy_j", kwh),
    ("charged kWh", "energy_requests_j", kwh),
    ("carbon kg CO2e", "carbon_g", kilograms),
    ("charged kg CO2e", "carbon_requests_g", kilograms),
)
_IF_ANY = {"rejected", "timed_out", "failed", "unfinished"}
