"""Pictures of a contest of model routers."""

from __future__ import annotations

from textwrap import wrap

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa

from fleetsim import plugins
from fleetsim.arena.contest import Contest
from fleetsim.arena.page import mean, ranking
from fleetsim.arena.suite import Entry
from fleetsim.plots import answers, pareto
from fleetsim.plots.rates import SERIES
from fleetsim.plots.style import marks_of

UNIT = "list USD per 1,000 requests"
CHARACTERS, PER_ROW = 120, 4
"""Of a line of the note, and names in a row of the legend."""
FEW = 6
"""Routers whose regret is drawn, besides those that all are compared with."""


def pictures(contest: Contest, kind: str) -> dict[str, go.Figure]:
    """What a page of model routers shows: quality against price, against latency under the last load, and regret so far.

    The number at a point is the router's place in the page's table. A contest in which nobody chose among models has none.
    """
    ranked = [row.entry for row in ranking(contest, kind)]
    ran = {name: [e for e in ranked if (e, name) in contest.figures] for name in contest.scenarios}
    if not ranked or "arms" not in contest.figures[ranked[0], contest.scenarios[0]][0]:
        return {}
    marks = marks_of(entry.name for entry in ranked)
    numbers = {entry.name: str(place) for place, entry in enumerate(ranked, 1)}
    first, last = contest.scenarios[0], contest.scenarios[-1]
    arms = _arms(contest, ran[first][0], first)
    table = pa.concat_tables([_points(contest, ran[first], first).select(arms.column_names), arms])
    knowing = {entry.name for entry in ran[first] if _knows_answers(entry)}
    plane = pareto.cost_quality(
        table, unit=UNIT, marks=marks, unreachable=knowing, singles=set(arms[SERIES].to_pylist())
    )
    late = pareto.quality_latency(_points(contest, ran[last], last), unit=UNIT, marks=marks)
    lines = _regrets(contest, ran[first], first)
    drawn = {
        "cost": _titled(plane, f"Quality against price, {first}", numbers),
        "latency": _titled(late, f"Quality, latency and price, {last}", numbers),
        "regret": _titled(answers.regret(lines, marks), f"Regret to the per-query oracle, {first}", {}),
    }
    return {f"arena-models-{name}": fig for name, fig in drawn.items()}


def _points(contest: Contest, entries: list[Entry], name: str) -> pa.Table:
    """Means over seeds in one scenario; whoever has no answers has no point."""
    found = []
    for entry in entries:
        runs = contest.figures[entry, name]
        usd, quality, e2el_s = (mean(runs, measure) for measure in ("list_usd", "quality", "e2el_p99_s"))
        if usd is not None:
            found.append({SERIES: entry.name, "cost_usd": 1e3 * usd, "quality": quality, "e2el_p99_s": e2el_s})
    return pa.Table.from_pylist(found)


def _arms(contest: Contest, entry: Entry, name: str) -> pa.Table:
    """Each model alone: the same whoever routes."""
    arms = [figures["arms"] for figures in contest.figures[entry, name]]
    rows = [(arm, *np.mean([each[arm] for each in arms], axis=0).tolist()) for arm in arms[0]]
    return pa.Table.from_pylist(
        [{SERIES: arm, "cost_usd": 1e3 * usd, "quality": quality} for arm, usd, quality in rows]
    )


def _regrets(contest: Contest, entries: list[Entry], name: str) -> pa.Table:
    """Regret so far, seed by seed, of the baseline, of `random`, of who knows the answers, and of the few with the least."""

    def regret(entry: Entry) -> float:
        return mean(contest.figures[entry, name], "regret") or 0.0

    fixed = {entry for entry in entries if entry.baseline or entry.name == "random" or _knows_answers(entry)}
    least = sorted((entry for entry in entries if entry not in fixed), key=regret)[:FEW]
    tables = []
    for entry in (entry for entry in entries if entry in {*fixed, *least}):
        for figures in contest.figures[entry, name]:
            line = figures["regret_so_far"]
            tables.append(pa.table({SERIES: [entry.name] * len(line["requests"]), **line}))
    return pa.concat_tables(tables)


def _knows_answers(entry: Entry) -> bool:
    return bool(getattr(plugins.load(entry.kind, entry.name), "knows_answers", False))


def _titled(fig: go.Figure, title: str, numbers: dict[str, str]) -> go.Figure:
    """With its own title, its note in lines that fit, and the numbers of its routers beside their points."""
    note = "<br>".join(wrap(fig.layout.meta["note"], CHARACTERS))
    head = {"text": title, "subtitle": {"text": note}, "y": 0.985, "yanchor": "top", "yref": "container"}
    rows = -(-sum(trace.showlegend is not False for trace in fig.data) // PER_ROW)
    fig.update_layout(title=head, height=560 + 19 * rows, margin={"t": 96 + 19 * rows})
    for trace in fig.data:
        if trace.name in numbers:
            trace.update(mode="markers+text", text=[numbers[trace.name]], textposition="top right", cliponaxis=False)
            trace.update(textfont={"size": 11}, name=f"{numbers[trace.name]} {trace.name}")
    return fig
