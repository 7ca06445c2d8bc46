"""Throughput against interactivity, and cost against quality: what is bought with what."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa

from fleetsim.plots.rates import NAMES, RATE, SERIES
from fleetsim.plots.style import GREY, Mark, axis, faded, figure, marks_of, number, seconds_unit

INTERACTIVITY, THROUGHPUT = "tpot_p50_s", "output_tokens_per_s_per_accelerator"


def frontier(x: Sequence[float], y: Sequence[float]) -> list[int]:
    """Places of the points that no other beats in both, by rising `x`; more is better."""
    order = sorted(range(len(x)), key=lambda i: (-x[i], -y[i]))
    best, kept = -np.inf, []
    for i in order:
        if y[i] > best:
            best = y[i]
            kept.append(i)
    return kept[::-1]


def throughput_interactivity(table: pa.Table, marks: Mapping[str, Mark] | None = None) -> go.Figure:
    """Output tokens per second and accelerator against those that a user sees, a line per series, with the frontier.

    Parameters
    ----------
    table : pa.Table
        One row per run: ``series``, ``label``, ``tpot_p50_s``, ``output_tokens_per_s_per_accelerator``, and
        ``rate_per_s`` if known.
    marks : mapping, optional
        How each series looks.
    """
    rows = _means(table)
    x = [1.0 / row[INTERACTIVITY] for row in rows]
    y = [row[THROUGHPUT] for row in rows]
    fig = figure(
        "Throughput against interactivity", "means over replications; up and to the right is better", "summary.parquet"
    )
    best = frontier(x, y)
    fig.add_scatter(
        x=[x[i] for i in best],
        y=[y[i] for i in best],
        mode="lines",
        name="frontier",
        hoverinfo="skip",
        line={"color": GREY, "width": 9, "shape": "linear"},
        opacity=0.28,
    )
    names = list(dict.fromkeys(row[SERIES] for row in rows))
    for name, mark in marks_of(names, marks).items():
        members = sorted(
            (i for i, row in enumerate(rows) if row[SERIES] == name), key=lambda i: rows[i].get("rate_per_s") or y[i]
        )
        several = len({rows[i].get("rate_per_s") for i in members}) > 1 and len(members) <= 40
        fig.add_scatter(
            x=[x[i] for i in members],
            y=[y[i] for i in members],
            name=name,
            mode="lines+markers" if several else "markers",
            line={"color": mark.colour, "dash": mark.dash, "width": 1.5},
            marker={"color": mark.colour, "symbol": mark.symbol, "size": 8},
            text=[rows[i]["label"] for i in members],
            hovertemplate="<b>%{fullData.name}</b><br>%{text}<br>%{x:.3g} tokens/s/user<br>"
            "%{y:.4g} tokens/s/accelerator<extra></extra>",
        )
    fig.update_xaxes(**axis("interactivity, 1 / TPOT p50", "output tokens/s/user", x, from_zero=False))
    fig.update_yaxes(**axis("throughput", "output tokens/s/accelerator", y, from_zero=False))
    return fig


def _means(table: pa.Table) -> list[dict[str, Any]]:
    """One row for runs of a line that differ in their seeds only; one each where the rate is not known."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for place, row in enumerate(table.to_pylist()):
        if row[INTERACTIVITY] and row[THROUGHPUT] is not None:
            rate = row.get("rate_per_s")
            groups.setdefault((row[SERIES], rate, None if rate is not None else place), []).append(row)
    rows = []
    for (name, rate, _), members in groups.items():
        means = {key: float(np.mean([row[key] for row in members])) for key in (INTERACTIVITY, THROUGHPUT)}
        label = members[0]["label"] if rate is None else f"{number(rate)} requests/s"
        rows.append({SERIES: name, "rate_per_s": rate, "label": label, **means})
    return rows


def cost_quality(
    table: pa.Table,
    cost: str = "cost_usd",
    quality: str = "quality",
    unit: str = "USD per 1,000 requests",
    marks: Mapping[str, Mark] | None = None,
    unreachable: Collection[str] = (),
    singles: Collection[str] = (),
) -> go.Figure:
    """Quality against cost with the upper hull of what mixing answers can reach.

    Parameters
    ----------
    table : pa.Table
        One row per policy or LLM: ``series``, a column of cost and one of quality (a ratio).
    cost, quality : str
        Names of these columns.
    unit : str
        Of the cost.
    marks : mapping, optional
        How each series looks.
    unreachable : collection of str
        Series that nobody can choose, such as an oracle; they are not mixed.
    singles : collection of str
        Series that are one LLM for all requests: grey, with their names beside them.
    """
    rows = [row for row in table.to_pylist() if row[cost] is not None and row[quality] is not None]
    fig = figure(
        "Quality against cost",
        "the line is what a random mix of two reaches; up and to the left is better",
        "summary.parquet" if not singles else "summary.parquet, groups.parquet",
    )
    hull = _hull([(row[cost], row[quality]) for row in rows if row[SERIES] not in unreachable])
    if len(hull) > 1:
        fig.add_scatter(
            x=[p[0] for p in hull],
            y=[p[1] for p in hull],
            mode="lines",
            name="mix of two",
            hoverinfo="skip",
            line={"color": GREY, "dash": "dot", "width": 1.5},
        )
    told = f"<br>%{{x:.4g}} {unit}<br>quality %{{y:.1%}}<extra></extra>"
    alone = [row for row in rows if row[SERIES] in singles]
    if alone:
        fig.add_scatter(
            x=[row[cost] for row in alone],
            y=[row[quality] for row in alone],
            name="one model",
            mode="markers+text",
            text=[row[SERIES] for row in alone],
            textposition=_sides([row[cost] for row in alone]),
            textfont={"size": 12, "color": GREY},
            cliponaxis=False,
            marker={"color": GREY, "symbol": "diamond-open", "size": 10, "line": {"width": 2}},
            hovertemplate=f"<b>%{{text}}</b> for all{told}",
        )
    drawn = dict.fromkeys(row[SERIES] for row in rows if row[SERIES] not in singles)
    for name, mark in marks_of(drawn, marks).items():
        members = [row for row in rows if row[SERIES] == name]
        fig.add_scatter(
            x=[row[cost] for row in members],
            y=[row[quality] for row in members],
            name=name,
            mode="markers",
            marker={"color": mark.colour, "symbol": mark.symbol, "size": 11},
            hovertemplate=f"<b>%{{fullData.name}}</b>{told}",
        )
    fig.update_xaxes(**axis("cost, mean", unit, [row[cost] for row in rows]))
    fig.update_yaxes(**axis("quality, mean over requests", "%", [row[quality] for row in rows]))
    return fig


def _sides(x: Sequence[float]) -> list[str]:
    """Where a text stands at a point: to its left in the right half, so that it stays within the figure."""
    middle = (min(x) + max(x)) / 2
    return ["bottom left" if value > middle else "bottom right" for value in x]


LARGEST = 26.0
"""Diameter of the largest point [px]."""


def quality_latency(
    table: pa.Table,
    latency: str = "e2el_p99_s",
    cost: str = "cost_usd",
    quality: str = "quality",
    unit: str = "USD per 1,000 requests",
    marks: Mapping[str, Mark] | None = None,
) -> go.Figure:
    """Quality against a percentile of latency, the area of a point its cost: what is bought with what, under which load.

    A plane and not a surface in space: a reader sees which point is higher and which is further left at one look, and of the cost,
    which matters third, what is about twice as dear. Points of a series are joined by rising rate.

    Parameters
    ----------
    table : pa.Table
        One row per run: ``series``, ``rate_per_s`` if known, and the three columns that follow.
    latency, cost, quality : str
        Names of these columns: seconds named ``<metric>_<statistic>_s``, a cost, and a ratio.
    unit : str
        Of the cost.
    marks : mapping, optional
        How each series looks.
    """
    rows = means_by_rate(table, (latency, cost, quality))
    metric, statistic, _ = latency.rsplit("_", 2)
    title = NAMES.get(metric, metric)
    scale, factor = seconds_unit([row[latency] for row in rows])
    top = max((row[cost] for row in rows), default=0.0) or 1.0
    low = min((row[cost] for row in rows), default=0.0)
    joined = "lines join rising rates; " if len({row[RATE] for row in rows}) > 1 else ""
    fig = figure(
        "Quality, latency and cost",
        f"area of a point: cost, {number(low)} to {number(top)} {unit}; {joined}means over replications; "
        "up, to the left and small is better",
        "summary.parquet",
        430,
    )
    for name, mark in marks_of(dict.fromkeys(row[SERIES] for row in rows), marks).items():
        members = [row for row in rows if row[SERIES] == name]
        fig.add_scatter(
            x=[row[latency] * factor for row in members],
            y=[row[quality] for row in members],
            name=name,
            mode="lines+markers" if len(members) > 1 else "markers",
            line={"color": mark.colour, "dash": mark.dash, "width": 1.25},
            marker={
                "color": faded(mark.colour, 0.55),
                "size": [max(LARGEST * (row[cost] / top) ** 0.5, 5.0) for row in members],
                "line": {"color": mark.colour, "width": 1.5},
            },
            text=[f"{number(row[cost])} {unit}{_at(row)}" for row in members],
            hovertemplate=f"<b>%{{fullData.name}}</b><br>quality %{{y:.1%}}<br>{title} {statistic} %{{x:.4g}} {scale}<br>"
            "%{text}<extra></extra>",
        )
    fig.update_layout(legend={"itemsizing": "constant"})
    fig.update_xaxes(**axis(f"{title}, {statistic}", scale, [row[latency] * factor for row in rows], from_zero=False))
    fig.update_yaxes(**axis("quality, mean over requests", "%"))
    return fig


def _at(row: Mapping[str, Any]) -> str:
    return "" if row.get(RATE) is None else f"<br>at {number(row[RATE])} requests/s"


def means_by_rate(table: pa.Table, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Of each series and rate the means of columns over runs that have them all, by rising rate."""
    groups: dict[tuple[str, float | None], list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        if all(row[name] is not None for name in columns):
            groups.setdefault((row[SERIES], row.get(RATE)), []).append(row)
    order = sorted(groups, key=lambda key: key[1] or 0.0)
    return [
        {SERIES: name, RATE: rate, **{c: float(np.mean([row[c] for row in groups[name, rate]])) for c in columns}}
        for name, rate in order
    ]


def _hull(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Upper concave hull by rising cost, from the cheapest to the best."""
    hull: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda p: (p[0], -p[1])):
        if hull and y <= max(p[1] for p in hull):
            continue
        while len(hull) > 1 and _turns_left(hull[-2], hull[-1], (x, y)):
            hull.pop()
        hull.append((x, y))
    return hull


def _turns_left(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    return (b[1] - a[1]) * (c[0] - a[0]) <= (c[1] - a[1]) * (b[0] - a[0])
