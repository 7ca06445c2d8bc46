"""Which model answers over time, how far that is from the best answers, and how true a predictor's chances are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa

from fleetsim.metrics.answers import CALIBRATION_BINS
from fleetsim.metrics.statistics import mean_interval
from fleetsim.plots.digest import Floats, floats
from fleetsim.plots.rates import SERIES
from fleetsim.plots.style import GREY, Mark, axis, clock_unit, faded, figure, marks_of

COLUMNS = ("arrival_s", "model", "budget_tokens", "quality", "expected_quality", "best_quality")
"""What is read of each request."""
NOBODY = "no answer"
"""What stands for the model where there is no answer."""
_FINE = 4096
"""Intervals of the run that are counted in; they are merged for a figure."""
_MOST_SHARES, _ENOUGH = 80, 100
"""Intervals that shares are shown in, at most, and requests that each should hold on average: a share of fewer is noise."""
_MOST_REGRETS = 200
"""Points of a line of regrets, at most."""
_LEAST_ANSWERS = 10
"""Answers of a tenth of the predictions below which its mean is not shown."""
_Z = 1.96
"""Half width of a 95 % interval of a mean over many requests, in its standard errors."""


class AnswerDigest:
    """Answers of one run, batch by batch: who gave them, how far from the best they were, and what had been expected of them.

    Requests count at their arrival; those that nobody chose a model for are left out.

    Parameters
    ----------
    end_s : float
        End of the run [s].
    """

    def __init__(self, end_s: float) -> None:
        self.end_s = max(end_s, 1e-9)
        self.arrived = np.zeros(_FINE, dtype=np.int64)
        self.answered: dict[str, np.ndarray[Any, np.dtype[np.int64]]] = {}
        """Answers of each model (at each reasoning budget), by the interval in which their requests arrived."""
        self.regret = np.zeros(_FINE)
        """Quality of the best model's answer less that of the one given, 0 without one, summed."""
        self._binned = np.zeros((4, CALIBRATION_BINS))
        """By predicted chance: answers, and sums of the prediction, of the quality, and of its square."""

    def add(self, batch: pa.RecordBatch) -> None:
        """Take some more requests."""
        best = floats(batch, "best_quality")
        chosen = ~np.isnan(best)
        if not chosen.any():
            return
        arrival, quality, expected = (
            floats(batch, name)[chosen] for name in ("arrival_s", "quality", "expected_quality")
        )
        bins = np.clip((arrival / self.end_s * _FINE).astype(np.int64), 0, _FINE - 1)
        self.arrived += np.bincount(bins, minlength=_FINE)
        self.regret += np.bincount(bins, weights=best[chosen] - np.nan_to_num(quality), minlength=_FINE)
        answered = ~np.isnan(quality)
        self._count_models(batch, chosen, answered, bins)
        known = answered & ~np.isnan(expected)
        places = np.clip((expected[known] * CALIBRATION_BINS).astype(np.int64), 0, CALIBRATION_BINS - 1)
        for row, weights in zip(
            self._binned, (None, expected[known], quality[known], quality[known] ** 2), strict=True
        ):
            row += np.bincount(places, weights=weights, minlength=CALIBRATION_BINS)

    def _count_models(self, batch: pa.RecordBatch, chosen: Any, answered: Any, bins: Any) -> None:
        column = batch.column("model")
        if not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        codes = np.asarray(column.indices.fill_null(-1).to_numpy(zero_copy_only=False))[chosen]
        budgets = np.nan_to_num(floats(batch, "budget_tokens"))[chosen]
        names = column.dictionary.to_pylist()
        for code in np.unique(codes[answered]).tolist():
            of_model = answered & (codes == code)
            for budget in np.unique(budgets[of_model]).tolist():
                name = f"{names[code]}@{budget:.0f}" if budget > 0 else str(names[code])
                counts = self.answered.setdefault(name, np.zeros(_FINE, dtype=np.int64))
                counts += np.bincount(bins[of_model & (budgets == budget)], minlength=_FINE)

    def share_table(self, label: str) -> pa.Table:
        """Answers by model over time: ``label, model, start_s, end_s, answers, arrived``; who got none is one of the models."""
        cuts = self._cuts(_MOST_SHARES, _ENOUGH)
        edges_s = cuts / _FINE * self.end_s
        arrived = _sums(self.arrived, cuts)
        missing = self.arrived - sum(self.answered.values(), np.zeros(_FINE, dtype=np.int64))
        counts = {name: self.answered[name] for name in in_order(self.answered)} | (
            {NOBODY: missing} if missing.any() else {}
        )
        n = len(arrived)
        return pa.table(
            {
                "label": pa.array([label] * n * len(counts), pa.string()),
                "model": pa.array([name for name in counts for _ in range(n)], pa.string()),
                "start_s": np.tile(edges_s[:-1], len(counts)),
                "end_s": np.tile(edges_s[1:], len(counts)),
                "answers": np.concatenate([np.zeros(0), *(_sums(c, cuts) for c in counts.values())]).astype(np.int64),
                "arrived": np.tile(arrived, len(counts)).astype(np.int64),
            }
        )

    def regret_table(self, series: str) -> pa.Table:
        """Regret so far by requests so far, in order of arrival: ``series, requests, regret``."""
        cuts = self._cuts(_MOST_REGRETS, 1)
        requests, regret = (
            np.concatenate([np.zeros(1), np.cumsum(_sums(c, cuts))]) for c in (self.arrived, self.regret)
        )
        return pa.table({SERIES: [series] * len(cuts), "requests": requests, "regret": regret})

    def calibration_table(self, series: str) -> pa.Table:
        """Expected and real quality by tenths of the prediction: ``series, answers, expected, quality, half_width``.

        The half width is that of the 95 % interval of the real mean. Tenths of a few answers are left out.
        """
        count, expected, quality, squares = self._binned[:, self._binned[0] >= _LEAST_ANSWERS]
        mean = quality / count
        spread = np.sqrt(np.maximum(squares / count - mean**2, 0.0) / (count - 1))
        return pa.table(
            {
                SERIES: pa.array([series] * len(count), pa.string()),
                "answers": count.astype(np.int64),
                "expected": expected / count,
                "quality": mean,
                "half_width": _Z * spread,
            }
        )

    def _cuts(self, most: int, few: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Edges of intervals from the first arrival to the last, each with `few` requests at least on average."""
        seen = np.flatnonzero(self.arrived)
        if not len(seen):
            return np.array([0, _FINE])
        count = max(min(most, int(self.arrived.sum()) // few), 1)
        return np.unique(np.linspace(seen[0], seen[-1] + 1, count + 1).astype(np.int64))


def _sums(counts: np.ndarray[Any, Any], cuts: np.ndarray[Any, Any]) -> Floats:
    """Sums between edges; nothing lies before the first or after the last."""
    return np.asarray(np.add.reduceat(np.append(counts, 0), cuts)[:-1], dtype=np.float64)


def in_order(models: Iterable[str]) -> list[str]:
    """Names by their letters, and by their numbers where these are the same."""
    return sorted(
        models,
        key=lambda name: [
            (part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)
        ],
    )


RAMP = ("#efdfc4", "#c9a26a", "#96692f", "#54380f")
"""Colours of models, from the first to the last in order: none that a policy has."""


def shades(models: Iterable[str]) -> dict[str, str]:
    """A colour for each model, from light to dark in order."""
    names = in_order(models)
    ends = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in RAMP], dtype=np.float64)
    places = np.array([1.0]) if len(names) == 1 else np.linspace(0, len(RAMP) - 1, len(names))
    mixed = np.stack([np.interp(places, range(len(RAMP)), ends[:, i]) for i in range(3)], axis=1)
    return {name: "#" + "".join(f"{round(v):02x}" for v in row) for name, row in zip(names, mixed, strict=True)}


def shares_over_time(table: pa.Table, colours: Mapping[str, str] | None = None) -> go.Figure:
    """Share of the requests that each model answers, by their arrival, stacked.

    Parameters
    ----------
    table : pa.Table
        ``model, start_s, end_s, answers, arrived`` of one run, as `AnswerDigest.share_table` makes it.
    colours : mapping, optional
        Of each model; default: `shades` of those that answer.
    """
    fig = figure(
        "Share of models over time",
        "share of the requests that arrived in each interval, by the model whose answer was given",
        "requests.parquet",
        340,
    )
    names = [name for name in dict.fromkeys(table["model"].to_pylist()) if name != NOBODY]
    end_s = float(np.max(table["end_s"].to_numpy(), initial=0.0))
    unit, factor = clock_unit(end_s)
    drawn = dict(colours or shades(names)) | {NOBODY: GREY}
    for name in [*names, NOBODY]:
        rows = table.filter(pa.array([model == name for model in table["model"].to_pylist()], pa.bool_()))
        if not len(rows):
            continue
        start, end, answers, arrived = (
            np.asarray(rows[c].to_numpy(), dtype=np.float64) for c in ("start_s", "end_s", "answers", "arrived")
        )
        share = np.divide(answers, arrived, out=np.zeros(len(rows)), where=arrived > 0)
        colour = drawn[name]
        total = answers.sum() / max(arrived.sum(), 1.0)
        fig.add_scatter(
            x=np.append(start, end[-1:]) * factor,
            y=np.append(share, share[-1:]),
            mode="lines",
            name=name,
            stackgroup="models",
            text=[f"{total:.1%} over the run"] * (len(share) + 1),
            line={"color": colour, "width": 1, "shape": "hv"},
            fillcolor=faded(colour, 0.9),
            hovertemplate=f"<b>%{{fullData.name}}</b>, %{{x:.4g}} {unit}<br>%{{y:.1%}} of the requests, %{{text}}"
            "<extra></extra>",
        )
    fig.update_layout(showlegend=True, legend={"traceorder": "normal"})
    fig.update_xaxes(**axis("arrival, simulated time", unit), showgrid=False)
    fig.update_yaxes(**axis("share of requests", "%"), range=[0, 1])
    return fig


def regret(table: pa.Table, marks: Mapping[str, Mark] | None = None) -> go.Figure:
    """Regret to the per-query oracle, summed over requests in order of arrival; of several runs of a line their mean and its band.

    Votes among several answers can be better than every single one, so that a regret may be negative.

    Parameters
    ----------
    table : pa.Table
        ``series, requests, regret``, as `AnswerDigest.regret_table` makes it, one run after the other: each begins at 0 requests.
    marks : mapping, optional
        How each series looks.
    """
    runs = _runs(table)
    most = max((len(lines) for lines in runs.values()), default=1)
    note = "quality of the best model's answer less that of the one given, 0 without one, summed by arrival"
    if most > 1:
        note += f"; means of {most} replications, bands: 95 % intervals by Student's t"
    fig = figure("Regret to the per-query oracle", note, "requests.parquet")
    tops: list[float] = []
    for name, mark in marks_of(runs, marks).items():
        x, mean, low, high = _over_runs(runs[name])
        tops.append(float(x[-1]))
        if len(runs[name]) > 1:
            fig.add_scatter(
                x=np.concatenate([x, x[::-1]]),
                y=np.concatenate([high, low[::-1]]),
                fill="toself",
                mode="lines",
                fillcolor=faded(mark.colour, 0.12),
                line={"width": 0},
                hoverinfo="skip",
                legendgroup=name,
                showlegend=False,
                name=name,
            )
        fig.add_scatter(
            x=x,
            y=mean,
            mode="lines",
            name=name,
            legendgroup=name,
            text=[f"{each:.3f} a request" for each in np.divide(mean, x, out=np.zeros(len(x)), where=x > 0)],
            line={"color": mark.colour, "dash": mark.dash, "width": 2.25},
            hovertemplate="<b>%{fullData.name}</b><br>%{y:,.4g} after %{x:,.4g} requests, %{text}<extra></extra>",
        )
    fig.update_layout(showlegend=len(runs) > 1)
    fig.update_xaxes(**axis("requests so far", "count"), range=[0, max(tops, default=1.0)])
    fig.update_yaxes(**axis("regret so far", "right answers missed"), rangemode="tozero")
    return fig


def _runs(table: pa.Table) -> dict[str, list[tuple[Floats, Floats]]]:
    """Requests and regrets of each run, by line."""
    requests, regrets = (np.asarray(table[name].to_numpy(), dtype=np.float64) for name in ("requests", "regret"))
    names = table[SERIES].to_pylist()
    starts = np.append(np.flatnonzero(requests == 0.0), len(requests))
    found: dict[str, list[tuple[Floats, Floats]]] = {}
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        found.setdefault(names[start], []).append((requests[start:end], regrets[start:end]))
    return found


def _over_runs(lines: list[tuple[Floats, Floats]]) -> tuple[Floats, Floats, Floats, Floats]:
    """Requests, and mean regret with its interval, as far as all runs go."""
    if len(lines) == 1:
        x, y = lines[0]
        return x, y, y, y
    x = np.linspace(0.0, min(float(requests[-1]) for requests, _ in lines), _MOST_REGRETS)
    values = np.array([np.interp(x, requests, regrets) for requests, regrets in lines])
    mean, low, high = np.array([mean_interval(column.tolist()) for column in values.T]).T
    return x, mean, low, high


def calibration(table: pa.Table, marks: Mapping[str, Mark] | None = None) -> go.Figure:
    """Quality against what the predictor expected of the model that answered, by tenths of the prediction.

    Who asks whom the predictor promises most of meets its overestimates more often than its underestimates: points below the
    diagonal may be the router's choice and not the predictor's fault.

    Parameters
    ----------
    table : pa.Table
        ``series, answers, expected, quality, half_width``, as `AnswerDigest.calibration_table` makes it.
    marks : mapping, optional
        How each series looks.
    """
    fig = figure(
        "Expected and real quality",
        f"means of the answers given by tenths of the prediction, of {_LEAST_ANSWERS} answers at least; bars: 95 % intervals",
        "requests.parquet",
    )
    fig.add_scatter(
        x=[0, 1],
        y=[0, 1],
        mode="lines",
        name="as expected",
        hoverinfo="skip",
        line={"color": GREY, "dash": "dot", "width": 1.5},
    )
    names = list(dict.fromkeys(table[SERIES].to_pylist()))
    for name, mark in marks_of(names, marks).items():
        rows = [row for row in table.to_pylist() if row[SERIES] == name]
        fig.add_scatter(
            x=[row["expected"] for row in rows],
            y=[row["quality"] for row in rows],
            error_y={
                "type": "data",
                "array": [row["half_width"] for row in rows],
                "thickness": 1.25,
                "width": 3,
            },
            mode="lines+markers",
            name=name,
            text=[f"{row['answers']:,} answers" for row in rows],
            line={"color": mark.colour, "dash": mark.dash, "width": 1.75},
            marker={"color": mark.colour, "symbol": mark.symbol, "size": 8},
            hovertemplate="<b>%{fullData.name}</b><br>expected %{x:.1%}, was %{y:.1%}<br>%{text}<extra></extra>",
        )
    fig.update_xaxes(**axis("expected quality, mean", "%"), range=[0, 1])
    fig.update_yaxes(**axis("real quality, mean", "%"), range=[0, 1.02])
    return fig
