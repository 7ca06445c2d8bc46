"""Distributions of latencies, and where the time goes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa

from fleetsim.plots.digest import PARTS, quantile
from fleetsim.plots.rates import NAMES
from fleetsim.plots.style import GREY, Mark, axis, duration, figure, marks_of, seconds_unit, thinned

PART_COLOURS = {
    "network": "#8a8f98",
    "gateway": "#b98a5a",
    "encoding": "#ff59a1",
    "queue": "#cd1600",
    "prefill": "#f8a30c",
    "transfer": "#b4208b",
    "decode": "#2b7bd6",
    "stalls": "#4c5a6b",
}
PART_HINTS = {
    "network": "between where the request comes from, the gateway and the replica, both ways",
    "gateway": "decisions, admission, and all that holds or sends a request again before it joins a queue",
    "encoding": "the pass that encodes its images",
    "queue": "in the replica's queue until its first step",
    "prefill": "from its first step to its first token, without transfers and stalls",
    "transfer": "admitted, but its keys and values are on their way from another replica, the host, drives or the store",
    "decode": "from its first token to its last, without transfers and stalls",
    "stalls": "after its first step, running nowhere: preempted, between replicas, in the queue of the one that decodes",
}
PART_TITLES = {"transfer": "KV transfer"}


def cdf(
    table: pa.Table,
    metric: str,
    limits: Mapping[str, float] | None = None,
    marks: Mapping[str, Mark] | None = None,
    source: str = "requests.parquet",
) -> go.Figure:
    """Share of requests (of gaps, for ``itl_s``) at or below each latency, with the limits of the objective.

    Parameters
    ----------
    table : pa.Table
        Histograms: ``label, metric, low_s, high_s, count``, as `fleetsim.plots.digest` makes them, or the table ``gaps``.
    metric : str
        ``ttft_s``, ``tpot_s``, ``e2el_s`` or ``itl_s``.
    limits : mapping, optional
        Limits of the objective by what they are for [s].
    marks : mapping, optional
        How each label looks.
    source : str
        File that the histogram is of.
    """
    name = NAMES[metric.removesuffix("_s")]
    fig = figure(
        f"{name}: distribution", "percentiles on the vertical axis; from a histogram of buckets 1 % wide", source
    )
    labels = list(dict.fromkeys(table["label"].to_pylist()))
    curves = {}
    for label in labels:
        rows = table.filter(
            pa.array(
                [
                    a == label and b == metric
                    for a, b in zip(table["label"].to_pylist(), table["metric"].to_pylist(), strict=True)
                ]
            )
        )
        low, high, counts = (np.asarray(rows[c].to_numpy(), dtype=np.float64) for c in ("low_s", "high_s", "count"))
        curves[label] = (low, high, counts)
    tops = [quantile(low, high, counts, 0.999) for low, high, counts in curves.values() if len(counts)]
    unit, factor = seconds_unit([*tops, *(limits or {}).values()])
    if unit == "h":  # of which most may be milliseconds
        unit, factor = "s", 1.0
    seen: list[float] = []
    for label, mark in marks_of(labels, marks).items():
        low, high, counts = curves[label]
        if not len(counts):
            continue
        places = np.array(thinned(len(counts)))
        x = np.where(np.isfinite(high), high, low)[places] * factor
        y = (np.cumsum(counts) / counts.sum())[places]
        x, y = np.concatenate([[max(low[0], x[0] / factor / 1.01) * factor], x]), np.concatenate([[0.0], y])
        shares = [0.5, 0.9, 0.99]
        at = [quantile(low, high, counts, share) * factor for share in shares]
        told = [f" p{100 * share:g} {duration(value / factor)}" for share, value in zip(shares, at, strict=True)]
        fig.add_scatter(
            x=x,
            y=y,
            mode="lines",
            name=label,
            legendgroup=label,
            line={"color": mark.colour, "dash": mark.dash, "width": 2.25},
            hovertemplate=f"<b>%{{fullData.name}}</b><br>%{{y:.2%}} within %{{x:.4g}} {unit}<extra></extra>",
        )
        fig.add_scatter(
            x=at,
            y=shares,
            mode="markers+text" if len(labels) == 1 else "markers",
            name=label,
            legendgroup=label,
            showlegend=False,
            text=told,
            textposition="bottom right",
            textfont={"size": 12},
            marker={"color": mark.colour, "symbol": mark.symbol, "size": 7},
            hovertemplate="<b>%{fullData.name}</b><br>%{text}<extra></extra>",
        )
        first = float(x[y > 0.001][0])
        seen += [first, quantile(low, high, counts, 0.9995) * factor]
        if len(labels) == 1:  # room for the last text
            seen.append(max(at[-1] * 1.35, at[-1] * (at[-1] / first) ** 0.2))
    for what, limit_s in (limits or {}).items():
        seen.append(limit_s * factor)
        fig.add_vline(x=limit_s * factor, line={"color": GREY, "dash": "dot", "width": 1.5})
        text = f"{what} {duration(limit_s)}"
        fig.add_annotation(
            x=limit_s * factor,
            y=1.0,
            yref="paper",
            text=text,
            showarrow=False,
            xanchor="right",
            yanchor="top",
            textangle=-90,
            xshift=-2,
            font={"size": 12, "color": GREY},
        )
    layout = axis(name, unit, seen)
    if layout.get("type") == "log":
        for shape in fig.layout.annotations:
            shape.x = float(np.log10(shape.x))
    fig.update_xaxes(**layout)
    fig.update_yaxes(**axis("gaps" if metric == "itl_s" else "requests", "%"), range=[0, 1.01])
    return fig


def where_time_goes(table: pa.Table, by: str = "e2el") -> go.Figure:
    """Stacked parts of the latency of the requests around each percentile.

    Parameters
    ----------
    table : pa.Table
        ``label, by, band, part, seconds``, as `fleetsim.plots.digest` makes it.
    by : str
        ``e2el`` (to the last token) or ``ttft`` (to the first).
    """
    end = "last" if by == "e2el" else "first"
    rows = [row for row in table.to_pylist() if row["by"] == by]
    labels = list(dict.fromkeys(row["label"] for row in rows))
    bands = list(dict.fromkeys(row["band"] for row in rows))[::-1]
    seconds = {(row["label"], row["band"], row["part"]): row["seconds"] for row in rows}
    totals = [sum(seconds[label, band, part] for part in PARTS) for label in labels for band in bands]
    unit, factor = seconds_unit(totals)
    note = f"means of the requests ranked around each percentile of {NAMES[by]}"
    height = 150 + (34 if len(labels) == 1 else 25) * len(labels) * len(bands)
    fig = figure(f"Where the time goes, to the {end} token", note, "requests.parquet", height)
    several = len(labels) > 1
    y = (
        [[label for label in labels[::-1] for _ in bands], [band for _ in labels for band in bands]]
        if several
        else bands
    )
    for part in PARTS:
        x = [seconds[label, band, part] * factor for label in labels[::-1] for band in bands]
        share = [
            v / (t * factor) if t else 0.0 for v, t in zip(x, _reordered(totals, len(labels), len(bands)), strict=True)
        ]
        if max(share, default=0.0) < 5e-4:
            continue
        fig.add_bar(
            x=x,
            y=y,
            orientation="h",
            name=PART_TITLES.get(part, part),
            customdata=share,
            marker={"color": PART_COLOURS[part], "line": {"width": 0}},
            hovertemplate=f"<b>%{{fullData.name}}</b>, %{{y}}<br>%{{x:.4g}} {unit}, %{{customdata:.1%}} of it<extra></extra>",
        )
    fig.update_layout(barmode="stack", bargap=0.28, legend={"traceorder": "normal"})
    fig.update_xaxes(**axis(f"{NAMES[by]}, mean of its parts", unit), rangemode="tozero")
    fig.update_yaxes(showgrid=False, ticks="", title={"text": "percentile"} if not several else None)
    return fig


def _reordered(totals: list[float], labels: int, bands: int) -> list[float]:
    """Totals with the labels in the opposite order, as bars are drawn from below."""
    return [totals[i * bands + j] for i in reversed(range(labels)) for j in range(bands)]
