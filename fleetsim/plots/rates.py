"""Figures over the rate of arrivals: what many runs of a study tell together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa

from fleetsim.metrics.statistics import mean_interval
from fleetsim.plots.style import GREY, Mark, axis, duration, faded, figure, marks_of, number, seconds_unit

RATE = "rate_per_s"
SERIES = "series"

Point = tuple[float, float, float, float, int]
"""Rate, mean, low and high end of the 95 % interval, replications."""


def points(table: pa.Table, column: str) -> dict[str, list[Point]]:
    """Of each series, the mean of a column at each rate and its interval over replications, by rate."""
    groups: dict[tuple[str, float], list[float]] = {}
    names = table[SERIES].to_pylist()
    for name, rate, value in zip(names, table[RATE].to_pylist(), table[column].to_pylist(), strict=True):
        if rate is not None and value is not None:
            groups.setdefault((name, float(rate)), []).append(float(value))
    found: dict[str, list[Point]] = {name: [] for name in dict.fromkeys(names)}
    for (name, rate), values in sorted(groups.items(), key=lambda item: item[0][1]):
        mean, low, high = mean_interval(values)
        if column.endswith("_ratio"):  # of a share, the interval of means knows no bounds
            low, high = max(low, 0.0), min(high, 1.0)
        found[name].append((rate, mean, low, high, len(values)))
    return {name: rows for name, rows in found.items() if rows}


def max_rates(table: pa.Table, attainment: float) -> dict[str, float | None]:
    """Of each series, the highest rate run up to which the mean attainment was kept at every rate run; None if at none."""
    best: dict[str, float | None] = {}
    for name, rows in points(table, "slo_attainment_ratio").items():
        best[name] = None
        for rate, mean, *_ in rows:
            if mean < attainment:
                break
            best[name] = rate
    return best


def attainment(table: pa.Table, target: float | None = None, marks: Mapping[str, Mark] | None = None) -> go.Figure:
    """Share of requests within the objective against the rate, the target, and the highest rate that keeps it.

    Parameters
    ----------
    table : pa.Table
        One row per run: ``series``, ``rate_per_s``, ``slo_attainment_ratio``.
    target : float, optional
        Attainment asked for, 0 to 1.
    marks : mapping, optional
        How each series looks; default: in order of appearance.
    """
    fig = _lines(
        table,
        "slo_attainment_ratio",
        "SLO attainment against rate",
        ("requests within all limits", "%", "%{y:.1%}"),
        marks,
    )
    if target is not None:
        fig.add_hline(
            y=target,
            line={"color": GREY, "dash": "dot", "width": 1.5},
            annotation={"text": f"target {100 * target:.4g}%", "font": {"size": 12, "color": GREY}},
            annotation_position="bottom left",
        )
        drawn = marks_of(points(table, "slo_attainment_ratio"), marks)
        for name, rate in max_rates(table, target).items():
            if rate is not None:
                height = next(row[1] for row in points(table, "slo_attainment_ratio")[name] if row[0] == rate)
                fig.add_scatter(
                    x=[rate],
                    y=[height],
                    mode="markers",
                    showlegend=False,
                    legendgroup=name,
                    name=name,
                    marker={
                        "symbol": "star",
                        "size": 15,
                        "color": drawn[name].colour,
                        "line": {"color": "#ffffff", "width": 1},
                    },
                    hovertemplate="<b>%{fullData.name}</b><br>highest rate run that keeps the SLO: %{x:.4g}/s<extra></extra>",
                )
    low = min((row[1] for series in points(table, "slo_attainment_ratio").values() for row in series), default=0.0)
    low = max(math.floor(min(low, 0.97 if target is None else target) * 20 - 0.4) / 20, 0.0)
    fig.update_yaxes(range=[low, 1.0 + 0.03 * (1.0 - low)])
    return fig


def goodput(table: pa.Table, marks: Mapping[str, Mark] | None = None) -> go.Figure:
    """Requests per second that keep the objective, against the rate; the diagonal is all of them."""
    fig = _lines(
        table,
        "goodput_requests_per_s",
        "Goodput against rate",
        ("goodput", "requests/s", "%{y:.4g} requests/s"),
        marks,
    )
    rates = [rate for rate in table[RATE].to_pylist() if rate is not None]
    if rates:
        low, high = min(rates), max(rates)
        fig.add_scatter(
            x=[low, high],
            y=[low, high],
            mode="lines",
            name="every request",
            hoverinfo="skip",
            line={"color": GREY, "dash": "dot", "width": 1.5},
        )
    fig.update_yaxes(rangemode="tozero", type="linear", tickvals=None, ticktext=None, range=None)
    return fig


def latency(
    table: pa.Table,
    metric: str = "ttft",
    percentile: str = "p99",
    limit_s: float | None = None,
    marks: Mapping[str, Mark] | None = None,
) -> go.Figure:
    """A percentile of a latency against the rate, with the limit of the objective.

    Parameters
    ----------
    table : pa.Table
        One row per run: ``series``, ``rate_per_s`` and the column ``<metric>_<percentile>_s``.
    metric : str
        ``ttft``, ``tpot``, ``e2el``, ``itl``.
    percentile : str
        ``mean``, ``p50``, ``p90``, ``p95``, ``p99``.
    limit_s : float, optional
        Limit of the objective [s].
    marks : mapping, optional
        How each series looks.
    """
    column = f"{metric}_{percentile}_s"
    values = [v for v in table[column].to_pylist() if v is not None]
    unit, factor = seconds_unit([*values, limit_s or 0.0])
    scaled = table.set_column(
        table.schema.get_field_index(column),
        column,
        pa.array([None if v is None else v * factor for v in table[column].to_pylist()], pa.float64()),
    )
    title = f"{NAMES[metric]} {percentile} against rate"
    fig = _lines(scaled, column, title, (f"{NAMES[metric]} {percentile}", unit, f"%{{y:.4g}} {unit}"), marks)
    if limit_s is not None:
        fig.add_hline(
            y=limit_s * factor,
            line={"color": GREY, "dash": "dot", "width": 1.5},
            annotation={"text": f"SLO {duration(limit_s)}", "font": {"size": 12, "color": GREY}},
            annotation_position="top left",
        )
    return fig


NAMES = {"ttft": "TTFT", "tpot": "TPOT", "e2el": "E2E latency", "itl": "Inter-token gap", "queue_wait": "Queue wait"}


def _lines(
    table: pa.Table, column: str, title: str, y: tuple[str, str, str], marks: Mapping[str, Mark] | None
) -> go.Figure:
    rows = points(table, column)
    drawn = marks_of(rows, marks)
    replications = max((row[4] for series in rows.values() for row in series), default=1)
    note = "means"
    if replications > 1:
        note = f"means of {replications} replications, bands: 95 % intervals by Student's t"
    fig = figure(title, note if replications > 1 else "one run at each point", "summary.parquet")
    for name, series in rows.items():
        _band(fig, name, series, drawn[name])
        _line(fig, name, series, drawn[name], y)
    name, unit, _ = y
    fig.update_xaxes(
        **axis(
            "rate of arrivals", "requests/s", [row[0] for series in rows.values() for row in series], from_zero=False
        )
    )
    fig.update_yaxes(**axis(name, unit, [row[1] for series in rows.values() for row in series]))
    return fig


def _line(fig: go.Figure, name: str, rows: Sequence[Point], mark: Mark, y: tuple[str, str, str]) -> None:
    rate, mean, low, high, count = (list(column) for column in zip(*rows, strict=True))
    text = [
        "" if np.isnan(a) else f"<br>95 % interval {_shown(a, y[1])} to {_shown(b, y[1])}, {n} replications"
        for a, b, n in zip(low, high, count, strict=True)
    ]
    fig.add_scatter(
        x=rate,
        y=mean,
        mode="lines+markers",
        name=name,
        legendgroup=name,
        text=text,
        line={"color": mark.colour, "dash": mark.dash, "width": 2.25},
        marker={"symbol": mark.symbol, "size": 8},
        hovertemplate=f"<b>%{{fullData.name}}</b><br>%{{x:.4g}} requests/s: {y[2]}%{{text}}<extra></extra>",
    )


def _shown(value: float, unit: str) -> str:
    return f"{value:.1%}" if unit == "%" else f"{number(value)} {unit}"


def _band(fig: go.Figure, name: str, rows: Sequence[Point], mark: Mark) -> None:
    known = [row for row in rows if not np.isnan(row[2])]
    if not known:
        return
    rates = [row[0] for row in known]
    outline: dict[str, Any] = {"width": 0}
    fig.add_scatter(
        x=rates + rates[::-1],
        y=[row[3] for row in known] + [row[2] for row in known][::-1],
        fill="toself",
        mode="lines",
        fillcolor=faded(mark.colour, 0.18),
        line=outline,
        hoverinfo="skip",
        legendgroup=name,
        showlegend=False,
        name=name,
    )
