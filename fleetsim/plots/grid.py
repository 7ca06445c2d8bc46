"""Two axes of a study against each other, and runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
from plotly.subplots import make_subplots

from fleetsim.plots.over_time import panels
from fleetsim.plots.rates import SERIES
from fleetsim.plots.style import LOG_RATIO, Mark, figure, marks_of, number, seconds_unit


def _shares(target: float) -> list[list[Any]]:
    """Orange below a target, blue above; told apart with any sight."""
    return [
        [0.0, "#b45309"],
        [0.5 * target, "#f8a30c"],
        [target - 1e-6, "#fbe7c6"],
        [target, "#a9cdf3"],
        [1.0, "#2b7bd6"],
    ]


FIGURES = (
    ("goodput_requests_per_s", "goodput [requests/s]", 1.0, 1),
    ("slo_attainment_ratio", "SLO attainment [%]", 100.0, 1),
    ("ttft_p99_s", "TTFT p99 [ms]", 1e3, -1),
    ("tpot_p99_s", "TPOT p99 [ms]", 1e3, -1),
    ("cost_per_million_output_tokens_usd", "cost [USD/M output tokens]", 1.0, -1),
    ("energy_per_output_token_j", "energy [J/output token]", 1.0, -1),
)
"""Columns of the summary, titles, factors, and whether more (1) or less (-1) is better."""


def attainment_grid(table: pa.Table, x: str, y: str, target: float | None = None) -> go.Figure:
    """SLO attainment over two axes of a study, mean over everything else.

    Parameters
    ----------
    table : pa.Table
        One row per run, with the columns `x`, `y` and ``slo_attainment_ratio``.
    x, y : str
        Columns of the axes.
    target : float, optional
        Attainment asked for, 0 to 1; cells below it are told apart by their text.
    """
    rows = [row for row in table.to_pylist() if row["slo_attainment_ratio"] is not None]
    xs, ys = (_sorted(row[name] for row in rows) for name in (x, y))
    cells: dict[tuple[Any, Any], list[float]] = {}
    for row in rows:
        cells.setdefault((row[y], row[x]), []).append(row["slo_attainment_ratio"])
    z = [[float(np.mean(cells[b, a])) if (b, a) in cells else None for a in xs] for b in ys]
    text = [
        ["" if v is None else f"{v:.0%}" + ("" if target is None or v >= target else " ✗") for v in line] for line in z
    ]
    names = [title.removeprefix("axis.").rpartition(".")[2] or title for title in (x, y)]
    fig = figure(
        f"SLO attainment: {names[1]} × {names[0]}",
        "mean over replications and other axes" + ("" if target is None else f"; ✗ below {100 * target:.4g}%"),
        "summary.parquet",
        150 + 44 * max(len(ys), 3),
    )
    fig.add_heatmap(
        x=[_short(v) for v in xs],
        y=[_short(v) for v in ys],
        z=z,
        text=text,
        texttemplate="%{text}",
        zmin=0,
        zmax=1,
        colorscale=_shares(min(max(target or 0.99, 0.01), 0.9999)),
        xgap=2,
        ygap=2,
        colorbar={"tickformat": ".0%", "thickness": 10, "outlinewidth": 0},
        hovertemplate=f"{names[1]} %{{y}}<br>{names[0]} %{{x}}<br><b>%{{z:.2%}}</b> within the SLO<extra></extra>",
    )
    fig.update_xaxes(title={"text": x.removeprefix("axis.")}, type="category", showgrid=False)
    fig.update_yaxes(title={"text": names[1]}, type="category", showgrid=False)
    return fig


MAPS = (
    ("quality", "quality, mean over requests [%]", "%", 1),
    ("latency_s", "{} [{}]", "s", -1),
    ("cost_usd", "cost [{}]", "", -1),
)
"""Columns of the maps, their titles, units, and whether more (1) or less (-1) is better."""
DEPTHS = [[0.0, "#dbe9fa"], [0.5, "#6ba5e6"], [1.0, "#123f7a"]]
"""The darker, the more."""


def quality_maps(
    table: pa.Table, x: str, y: str, latency: str = "E2E latency p99", unit: str = "USD per 1,000 requests"
) -> go.Figure:
    """Quality, latency and cost over two axes of a study, one map below the other.

    The surface that the three make in space hides its own back, and no value can be read off it. Three maps with a number in every
    cell show the same: where quality is high, whether that place is slow, and what it costs.

    Parameters
    ----------
    table : pa.Table
        One row per run, with the columns `x`, `y`, ``quality`` (a ratio), ``latency_s`` and ``cost_usd``.
    x, y : str
        Columns of the axes.
    latency : str
        Which latency and percentile that is.
    unit : str
        Of the cost.
    """
    rows = [row for row in table.to_pylist() if all(row[name] is not None for name, *_ in MAPS)]
    xs, ys = (_sorted(row[name] for row in rows) for name in (x, y))
    names = [title.removeprefix("axis.").rpartition(".")[2] or title for title in (x, y)]
    scale, factor = seconds_unit([row["latency_s"] for row in rows])
    titles = [title.format(*told) for (_, title, *_), told in zip(MAPS, ((), (latency, scale), (unit,)), strict=True)]
    panel = 60 + 34 * max(len(ys), 2)
    fig = figure(
        f"Quality, latency and cost: {names[1]} × {names[0]}",
        "means over replications and other axes; darker is more; arrows tell what is better",
        "summary.parquet",
        110 + 3 * panel,
    )
    fig = panels(
        make_subplots(
            rows=3,
            cols=1,
            shared_xaxes=True,
            vertical_spacing=38 / (3 * panel),
            subplot_titles=[
                f"{title} {'↑' if better > 0 else '↓'}" for title, (*_, better) in zip(titles, MAPS, strict=True)
            ],
        ),
        fig,
    )
    for place, (column, _, of, _) in enumerate(MAPS, start=1):
        by = {"%": 1.0, "s": factor}.get(of, 1.0)
        z = [[_mean([row[column] * by for row in rows if (row[y], row[x]) == (b, a)]) for a in xs] for b in ys]
        shown = [["" if v is None else f"{v:.0%}" if of == "%" else number(v) for v in line] for line in z]
        fig.add_heatmap(
            x=[_short(v) for v in xs],
            y=[_short(v) for v in ys],
            z=_depth(z),
            text=shown,
            texttemplate="%{text}",
            row=place,
            col=1,
            colorscale=DEPTHS,
            showscale=False,
            xgap=2,
            ygap=2,
            hovertemplate=f"{names[1]} %{{y}}<br>{names[0]} %{{x}}<br>{titles[place - 1]}: <b>%{{text}}</b><extra></extra>",
        )
    fig.update_xaxes(type="category", showgrid=False)
    fig.update_yaxes(type="category", showgrid=False, ticks="")
    fig.update_xaxes(title={"text": x.removeprefix("axis.")}, row=3, col=1)
    fig.update_yaxes(title={"text": names[1]}, row=2, col=1)
    return fig


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _depth(z: list[list[float | None]]) -> list[list[float | None]]:
    """What colours go by: the logarithm where values range far."""
    known = [v for line in z for v in line if v is not None]
    if not known or min(known) <= 0.0 or max(known) <= LOG_RATIO * min(known):
        return z
    return [[None if v is None else float(np.log10(v)) for v in line] for line in z]


def _sorted(values: Any) -> list[Any]:
    found = list(dict.fromkeys(values))
    return sorted(found) if all(isinstance(v, int | float) for v in found) else found


def _short(value: Any) -> str:
    return number(value) if isinstance(value, int | float) else str(value)


def compared(table: pa.Table, marks: Mapping[str, Mark] | None = None) -> go.Figure:
    """Headline figures of a few runs side by side, each with its own axis.

    Parameters
    ----------
    table : pa.Table
        One row per run: ``series`` and columns of the summary.
    marks : mapping, optional
        How each series looks.
    """
    rows = table.to_pylist()
    names = list(dict.fromkeys(row[SERIES] for row in rows))
    shown = [item for item in FIGURES if any(row.get(item[0]) is not None for row in rows)]
    panel = 62 + 24 * len(names)
    fig = figure(
        "Runs side by side",
        "bars: means over runs of a name; arrows tell what is better",
        "summary.parquet",
        80 + len(shown) * panel,
    )
    titles = [f"{title} {'↑' if better > 0 else '↓'}" for _, title, _, better in shown]
    fig = panels(
        make_subplots(rows=len(shown), cols=1, vertical_spacing=62 / (panel * len(shown) + 1), subplot_titles=titles),
        fig,
    )
    for name, mark in marks_of(names, marks).items():
        for place, (column, title, factor, _) in enumerate(shown, start=1):
            values = [row[column] * factor for row in rows if row[SERIES] == name and row.get(column) is not None]
            if values:
                _bar(fig, name, float(np.mean(values)), mark, place, title)
    fig.update_layout(barmode="group", bargap=0.25)
    fig.update_yaxes(showticklabels=False, ticks="", showgrid=False, autorange="reversed", title=None)
    fig.update_xaxes(rangemode="tozero", nticks=6)
    return fig


def _bar(fig: go.Figure, name: str, value: float, mark: Mark, place: int, title: str) -> None:
    fig.add_bar(
        x=[value],
        y=[name],
        orientation="h",
        row=place,
        col=1,
        name=name,
        legendgroup=name,
        showlegend=place == 1,
        marker={"color": mark.colour},
        text=[number(value)],
        textposition="auto",
        insidetextanchor="end",
        cliponaxis=False,
        hovertemplate=f"<b>%{{fullData.name}}</b><br>{title} %{{x:.5g}}<extra></extra>",
    )


def columns_of(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """The columns of a summary that a figure takes; those that it lacks are null."""
    have = set(table.column_names)
    return pa.table({name: table[name] if name in have else pa.nulls(len(table), pa.float64()) for name in names})
