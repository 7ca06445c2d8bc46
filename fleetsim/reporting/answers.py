"""Figures of runs in which somebody chooses among models: what quality costs, what it takes, and who answers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa

from fleetsim import plugins
from fleetsim.plots import answers, grid, pareto
from fleetsim.plots.rates import RATE, SERIES
from fleetsim.plots.style import GREY, Mark, marks_of
from fleetsim.reporting.detail import read_answers
from fleetsim.reporting.series import Placed, axes_for_grid
from fleetsim.results.folder import Results

UNIT = "list USD per 1,000 requests"
ORACLE = "best answers"
_STAR = Mark(GREY, "dot", "star-open")


def rated(summary: pa.Table) -> pa.Table:
    """Runs whose answers have a quality, with ``cost_usd`` (list price of 1,000 requests), ``quality`` and ``latency_s``."""
    rows = []
    for row in summary.to_pylist():
        count = row.get("requests")
        if count and row.get("list_usd") is not None and row.get("quality_per_request") is not None:
            prices = {"cost_usd": 1e3 * row["list_usd"] / count, "best_usd": 1e3 * row["list_usd_best"] / count}
            rows.append({**row, **prices, "quality": row["quality_per_request"], "latency_s": row["e2el_p99_s"]})
    return pa.Table.from_pylist(rows) if rows else pa.table({})


def plane(results: Results, table: pa.Table, places: Sequence[Placed], marks: Mapping[str, Mark]) -> go.Figure:
    """Quality against list price, beside each model alone and the best answers; means over replications."""
    names = (SERIES, "cost_usd", "quality")
    rows = [tuple(row[name] for name in names) for row in pareto.means_by_rate(table, names[1:])]
    singles = _alone(results, table["run"].to_pylist())
    rows += singles
    best = [(row["best_usd"], row["quality_best_mean"]) for row in table.to_pylist()]
    rows.append((ORACLE, *np.mean(best, axis=0).tolist()))
    points = pa.table({name: [row[i] for row in rows] for i, name in enumerate(names)})
    alone = {name for name, *_ in singles}
    looks = {**marks_of(table[SERIES].to_pylist(), marks), ORACLE: _STAR}
    knowing = {place.series for place in places if _knows_answers(place)}
    return pareto.cost_quality(points, unit=UNIT, marks=looks, unreachable={ORACLE, *knowing}, singles=alone)


def _knows_answers(place: Placed) -> bool:
    """Whether the router was told the answers, so that nobody can have it."""
    gateway = (place.run.manifest.get("scenario") or {}).get("gateway") or {}
    name = (gateway.get("model_router") or {}).get("policy", "")
    try:
        return bool(getattr(plugins.load("model_routers", name), "knows_answers", False))
    except LookupError:  # a policy of somebody else's that is not installed here
        return False


def _alone(results: Results, runs: Sequence[str]) -> list[tuple[str, float, float]]:
    """Of each model, list price of 1,000 requests [USD] and mean quality if it answered all of them; means over runs."""
    found: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        for row in results.table("groups", run).to_pylist():
            if row["by"] == "arm":
                usd = 1e3 * row["list_usd_alone"] / row["requests"]
                found.setdefault(row["value"], []).append((usd, row["quality_alone_mean"]))
    return [(name, *np.mean(values, axis=0).tolist()) for name, values in found.items()]


def against_latency(table: pa.Table, marks: Mapping[str, Mark]) -> list[go.Figure]:
    """Quality, latency and cost of several runs: as points, and where two axes vary as maps."""
    figures: list[go.Figure] = []
    if table["e2el_p99_s"].null_count == len(table):  # nobody got an answer
        return figures
    if len(set(zip(table[SERIES].to_pylist(), table[RATE].to_pylist(), strict=True))) > 1:
        figures.append(pareto.quality_latency(table, "e2el_p99_s", unit=UNIT, marks=marks))
    axes = axes_for_grid(table)
    if axes is not None:
        figures.append(grid.quality_maps(table, *axes, unit=UNIT))
    return figures


def digests(results: Results, chosen: Mapping[str, Placed]) -> dict[str, answers.AnswerDigest]:
    """Answers of the chosen runs, by label; those without any are left out."""
    found = {label: read_answers(results, place.run) for label, place in chosen.items()}
    return {label: digest for label, digest in found.items() if digest is not None and digest.arrived.any()}


def regrets(
    results: Results,
    places: Sequence[Placed],
    chosen: Mapping[str, Placed],
    found: Mapping[str, answers.AnswerDigest],
    lines: Collection[str],
) -> pa.Table:
    """Regret of the chosen runs, by their labels; where they are of one rate, that of every line with all its replications."""
    known = {chosen[label].run.id: digest for label, digest in found.items()}
    rates = {place.rate_per_s for place in chosen.values()}
    named = [(label, chosen[label]) for label in found]
    if len(rates) == 1:
        named = [(place.series, place) for place in places if place.rate_per_s in rates and place.series in lines]
    tables = []
    for name, place in named:
        digest = known.get(place.run.id) or read_answers(results, place.run)
        if digest is not None and digest.arrived.any():
            tables.append(digest.regret_table(name))
    return pa.concat_tables(tables)


def shares(found: Mapping[str, answers.AnswerDigest]) -> dict[str, go.Figure]:
    """Which model answers over time, by label; a model has one colour in all of them."""
    colours = answers.shades({model for digest in found.values() for model in digest.answered})
    return {label: answers.shares_over_time(digest.share_table(label), colours) for label, digest in found.items()}
