"""A few requests as bars over time."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa

from fleetsim.plots.latencies import PART_COLOURS
from fleetsim.plots.style import axis, clock_unit, figure

MOST = 200
"""Bars at most; for more there is the Perfetto export."""
_PHASES = (
    ("before the queue", "gateway", "arrival_s", "queued_s"),
    ("queue", "queue", "queued_s", "first_scheduled_s"),
    ("prefill", "prefill", "first_scheduled_s", "first_token_s"),
    ("decode", "decode", "first_token_s", "end_s"),
)


def gantt(table: pa.Table) -> go.Figure:
    """At most 200 requests in order of arrival, from left to right: on the way, in the queue, prefill, decode.

    Parameters
    ----------
    table : pa.Table
        Rows of the table ``requests``.
    """
    table = table.sort_by("arrival_s").slice(0, MOST)
    rows = table.to_pylist()
    origin = rows[0]["arrival_s"] if rows else 0.0
    last = max((row["end_s"] or row["arrival_s"] for row in rows), default=0.0)
    unit, factor = clock_unit(last - origin)
    fig = figure(
        f"{len(rows)} requests around the slowest first token",
        "in order of arrival; decode spans all of its stalls and transfers",
        "requests.parquet",
        180 + 12 * max(len(rows), 80) // 5,
    )
    texts = [
        f"request {row['request_id']}, {row['status']}"
        + (f", {row['pool']} replica {row['replica']}" if row["pool"] is not None else "")
        + f"<br>{row['prompt_tokens']:,} prompt tokens, {row['output_tokens']:,} output tokens"
        for row in rows
    ]
    for title, part, begin, end in _PHASES:
        starts = np.array([_time(row, begin) for row in rows], dtype=np.float64)
        lengths = np.array([_time(row, end) for row in rows], dtype=np.float64) - starts
        shown = np.flatnonzero(np.nan_to_num(lengths) > 0)
        if not len(shown):
            continue
        fig.add_bar(
            x=lengths[shown] * factor,
            base=(starts[shown] - origin) * factor,
            y=shown,
            orientation="h",
            name=title,
            width=0.86,
            marker={"color": PART_COLOURS[part], "line": {"width": 0}},
            text=[texts[i] for i in shown],
            textposition="none",
            hovertemplate=f"%{{text}}<br><b>%{{fullData.name}}</b> %{{x:.4g}} {unit}<extra></extra>",
        )
    fig.update_layout(barmode="overlay", bargap=0)
    fig.update_xaxes(**axis(f"simulated time since {origin:,.1f} s", unit), range=[0, (last - origin) * factor * 1.01])
    fig.update_yaxes(
        autorange="reversed", showgrid=False, title={"text": "request, by arrival"}, ticks="", showticklabels=False
    )
    return fig


def _time(row: dict[str, float | None], name: str) -> float:
    value = row[name]
    return float("nan") if value is None else value
