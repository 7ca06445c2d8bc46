"""What happens as the simulated time goes by: heat maps, scaling, cost, energy and carbon."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
from plotly.subplots import make_subplots

from fleetsim.plots.style import GREY, TEMPLATE, Mark, axis, clock_unit, faded, figure, marks_of

Floats = np.ndarray[Any, np.dtype[np.float64]]

MOST_COLUMNS = 240
"""Columns of a heat map, and points of a line over time, at most."""
HEAT = [[0.0, "rgba(43,123,214,0.10)"], [0.45, "#2b7bd6"], [0.75, "#b4208b"], [1.0, "#f8a30c"]]
"""Nothing is faint on white and on near-black."""
QUANTITIES = {
    "batch": ("batch", "tokens per step, mean", "tokens"),
    "kv": ("KV in use", "share of the blocks, mean", "%"),
    "queue": ("queue", "requests waiting, mean", "requests"),
    "power": ("power", "of the accelerators, mean", "W"),
}


def heat_maps(table: pa.Table, row: str = "pool") -> go.Figure:
    """Batch, KV, queue and power of each pool (or replica) over time.

    Parameters
    ----------
    table : pa.Table
        ``row, start_s, end_s, batch, kv, queue, power``, as `binned_replicas` makes it.
    row : str
        What a row is, for the axis.
    """
    names = list(dict.fromkeys(table["row"].to_pylist()))
    starts, ends = (np.asarray(table[name].to_numpy()) for name in ("start_s", "end_s"))
    width_s = float(ends[0] - starts[0]) if len(ends) else 1.0
    columns = round(float(ends.max()) / width_s) if len(ends) else 0
    unit, factor = clock_unit(columns * width_s)
    edges = np.arange(columns + 1) * width_s * factor
    panel = 46 + 22 * min(len(names), 32)
    fig = figure(
        f"Load by {row} over time",
        f"each line a {row}, means of each interval; blank while it is off",
        "replicas.parquet",
        110 + 4 * (panel + 34),
    )
    grid = make_subplots(
        rows=4,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=34 / (4 * (panel + 34)),
        subplot_titles=[f"{title}: {what}" for title, what, _ in QUANTITIES.values()],
    )
    fig = panels(grid, fig)
    places = {name: i for i, name in enumerate(names)}
    rows = table.to_pydict()
    for place, (key, (title, _, of)) in enumerate(QUANTITIES.items(), start=1):
        z = np.full((len(names), columns), np.nan, dtype=np.float32)
        for name, begin, value in zip(rows["row"], rows["start_s"], rows[key], strict=True):
            z[places[name], round(begin / width_s)] = np.nan if value is None else value
        most = float(np.nanmax(z, initial=0.0))
        shown = "%{z:.1%}" if of == "%" else f"%{{z:,.4g}} {of}"
        domain = fig.layout[f"yaxis{place if place > 1 else ''}"].domain
        fig.add_heatmap(
            x=edges,
            y=names,
            z=z,
            row=place,
            col=1,
            colorscale=HEAT,
            name=title,
            zmin=0.0,
            zmax=max(most, 1e-3) if of == "%" else max(most, 1.0),
            ygap=1 if len(names) <= 32 else 0,
            colorbar={
                "len": domain[1] - domain[0],
                "y": (domain[0] + domain[1]) / 2,
                "thickness": 10,
                "outlinewidth": 0,
                "tickformat": ".0%" if of == "%" else "~s",
                "tickfont": {"size": 11},
                "nticks": 4,
                "x": 1.01,
            },
            hovertemplate=f"<b>%{{y}}</b>, at %{{x:.4g}} {unit}<br>{title} {shown}<extra></extra>",
        )
    fig.update_yaxes(autorange="reversed", showgrid=False, ticks="", type="category", tickfont={"size": 11})
    fig.update_xaxes(showgrid=False)
    fig.update_xaxes(**axis("simulated time", unit), row=4, col=1)
    return fig


def panels(grid: go.Figure, named: go.Figure) -> go.Figure:
    """Subplots with the title and look of a figure; their own titles become left-aligned."""
    grid.update_layout(
        template=TEMPLATE,
        height=named.layout.height,
        meta=named.layout.meta,
        title=named.layout.title,
    )
    for note in grid.layout.annotations:
        note.update(x=0, xanchor="left", font={"size": 13}, yshift=2)
    grid.update_layout(legend={"y": 1 + 24 / max(int(named.layout.height) - 100, 100)})
    return grid


def scaling(fleet: pa.Table, marks: Mapping[str, Mark] | None = None, attained: pa.Table | None = None) -> go.Figure:
    """Arrivals, replicas wanted, ready and starting, requests waiting, and the price of what is paid for, pool by pool.

    Parameters
    ----------
    fleet : pa.Table
        The table ``fleet`` of a run.
    marks : mapping, optional
        How each pool looks.
    attained : pa.Table, optional
        ``start_s, end_s, arrived, met`` of the run's requests: adds the attainment over time.
    """
    pools = list(dict.fromkeys(fleet["pool"].to_pylist()))
    series = {pool: _series(fleet, pool) for pool in pools}
    end_s = float(np.asarray(fleet["end_s"].to_numpy()).max()) if len(fleet) else 0.0
    unit, factor = clock_unit(end_s)
    panels_of = [panel for panel in _SCALING if panel.always or any(map(panel.changes, series.values()))]
    titles = [panel.title for panel in panels_of]
    if attained is not None:
        titles.insert(1, "requests within the SLO, by arrival [%]")
    fig = figure(
        "Load, replicas and their price over time",
        "values at the end of each interval, arrivals its mean",
        "fleet.parquet",
        90 + 150 * len(titles),
    )
    fig = panels(
        make_subplots(
            rows=len(titles),
            cols=1,
            shared_xaxes=True,
            vertical_spacing=32 / (150 * len(titles)),
            subplot_titles=titles,
        ),
        fig,
    )
    for pool, mark in marks_of(pools, marks).items():
        for panel in panels_of:
            for line in panel.lines:
                _scaling_line(fig, pool, series[pool], line, mark, 1 + titles.index(panel.title), (unit, factor))
    if attained is not None:
        _attained(fig, attained, factor, unit)
    fig.update_yaxes(rangemode="tozero", nticks=5)
    fig.update_layout(showlegend=len(pools) > 1)
    fig.update_xaxes(**axis("simulated time", unit), row=len(titles), col=1)
    fig.update_xaxes(range=[0, end_s * factor])
    return fig


@dataclass(frozen=True, slots=True)
class _Line:
    """A column over time."""

    column: str
    what: str
    dash: str = "solid"
    stepped: bool = False
    filled: bool = False


@dataclass(frozen=True, slots=True)
class _Panel:
    """Lines over one another; left out where nothing changes, unless it always tells something."""

    title: str
    lines: tuple[_Line, ...]
    always: bool = False

    def changes(self, series: Mapping[str, Floats]) -> bool:
        """Whether there is anything to see."""
        values = series[self.lines[0].column]
        return len(values) > 0 and float(np.nanmax(values)) > float(np.nanmin(values))


_SCALING = (
    _Panel("arrivals [requests/s]", (_Line("arrivals", "arrivals, requests/s", stepped=True),), True),
    _Panel(
        "replicas: ready; dotted: wanted; filled: starting [count]",
        (
            _Line("replicas_starting", "replicas starting", stepped=True, filled=True),
            _Line("replicas_ready", "replicas ready", stepped=True),
            _Line("replicas_wanted", "replicas wanted", "dot", True),
        ),
        True,
    ),
    _Panel("requests waiting [count]", (_Line("waiting", "requests waiting"),)),
    _Panel("price of replicas paid for [USD/h]", (_Line("cost_usd_per_h", "USD/h", stepped=True),)),
)


def _scaling_line(
    fig: go.Figure,
    pool: str,
    series: Mapping[str, Floats],
    line: _Line,
    mark: Mark,
    row: int,
    clock: tuple[str, float],
) -> None:
    unit, factor = clock
    y = series[line.column]
    if line.filled and not np.nanmax(y, initial=0.0) > 0:
        return
    if line.column == "arrivals":
        x, y = _steps(series, y / np.maximum(series["end_s"] - series["start_s"], 1e-9))
    else:  # values at the ends of intervals
        x, y = np.append(series["start_s"][:1], series["end_s"]), np.append(y[:1], y)
    fig.add_scatter(
        x=x * factor,
        y=y,
        row=row,
        col=1,
        mode="lines",
        name=pool,
        legendgroup=pool,
        showlegend=row == 1,
        line={
            "color": mark.colour,
            "dash": line.dash,
            "width": 0 if line.filled else 1.75,
            "shape": "hv" if line.stepped else "linear",
        },
        fill="tozeroy" if line.filled else None,
        fillcolor=faded(mark.colour, 0.3),
        hovertemplate=f"<b>%{{fullData.name}}</b>, %{{x:.4g}} {unit}<br>%{{y:,.4g}} {line.what}<extra></extra>",
    )


def _attained(fig: go.Figure, table: pa.Table, factor: float, unit: str) -> None:
    arrived = np.asarray(table["arrived"].to_numpy(), dtype=np.float64)
    some = arrived > 0
    x = np.asarray(table["end_s"].to_numpy())[some] * factor
    y = np.asarray(table["met"].to_numpy())[some] / arrived[some]
    fig.add_scatter(
        x=x,
        y=y,
        row=2,
        col=1,
        mode="lines",
        name="all requests",
        showlegend=False,
        line={"color": GREY, "width": 1.5},
        fill="tozeroy",
        fillcolor="rgba(138,143,152,0.15)",
        hovertemplate=f"%{{x:.4g}} {unit}<br>%{{y:.1%}} of those that arrived within the SLO<extra></extra>",
    )
    fig.update_yaxes(tickformat=".0%", range=[0, 1.05], row=2, col=1)


def meters(fleet: pa.Table, marks: Mapping[str, Mark] | None = None) -> go.Figure:
    """Power, price and greenhouse gases of each pool over time, stacked.

    Parameters
    ----------
    fleet : pa.Table
        The table ``fleet`` of a run.
    marks : mapping, optional
        How each pool looks.
    """
    rates: list[tuple[str, str, Callable[[dict[str, Floats]], Floats]]] = [
        ("power of the site [kW]", "kW", lambda s: s["site_power_w"] / 1e3),
        ("price of replicas paid for [USD/h]", "USD/h", lambda s: s["cost_usd_per_h"]),
        ("greenhouse gases [kg CO2e/h]", "kg/h", lambda s: s["carbon_g"] / (s["end_s"] - s["start_s"]) * 3.6),
        (
            "price of electricity [USD/h]",
            "USD/h",
            lambda s: s["electricity_usd"] / (s["end_s"] - s["start_s"]) * 3600.0,
        ),
    ]
    pools = list(dict.fromkeys(fleet["pool"].to_pylist()))
    series = {pool: _series(fleet, pool) for pool in pools}
    rates = [
        rate
        for rate in rates
        if any(np.isfinite(rate[2](s)).any() and np.nansum(rate[2](s)) > 0 for s in series.values())
    ]
    fig = figure(
        "Cost, energy and carbon over time",
        "means of each interval, pools stacked",
        "fleet.parquet",
        90 + 165 * len(rates),
    )
    fig = panels(
        make_subplots(
            rows=len(rates),
            cols=1,
            shared_xaxes=True,
            vertical_spacing=32 / (165 * max(len(rates), 1)),
            subplot_titles=[rate[0] for rate in rates],
        ),
        fig,
    )
    end_s = max((float(s["end_s"].max()) for s in series.values() if len(s["end_s"])), default=0.0)
    unit, factor = clock_unit(end_s)
    for row, (_, of, value) in enumerate(rates, start=1):
        for pool, mark in marks_of(pools, marks).items():
            x, y = _steps(series[pool], np.nan_to_num(value(series[pool])))
            fig.add_scatter(
                x=x * factor,
                y=y,
                row=row,
                col=1,
                mode="lines",
                name=pool,
                legendgroup=pool,
                showlegend=row == 1,
                stackgroup=f"panel{row}",
                line={"color": mark.colour, "width": 1.25, "shape": "hv"},
                hovertemplate=f"<b>%{{fullData.name}}</b>, %{{x:.4g}} {unit}<br>%{{y:,.4g}} {of}<extra></extra>",
            )
    fig.update_yaxes(rangemode="tozero", nticks=5)
    fig.update_layout(showlegend=len(pools) > 1)
    fig.update_xaxes(**axis("simulated time", unit), row=len(rates), col=1)
    fig.update_xaxes(range=[0, end_s * factor])
    return fig


def _steps(series: Mapping[str, Floats], values: Floats) -> tuple[Floats, Floats]:
    """Means of intervals as a line of steps: from the begin of the first to the end of the last."""
    return np.append(series["start_s"], series["end_s"][-1:]), np.append(values, values[-1:])


def _series(fleet: pa.Table, pool: str) -> dict[str, Floats]:
    """Columns of one pool, its intervals merged until there are at most `MOST_COLUMNS`."""
    chosen = fleet.filter(pa.array([name == pool for name in fleet["pool"].to_pylist()]))
    columns = {
        field.name: np.asarray(chosen[field.name].cast(pa.float64()).to_numpy())
        for field in chosen.schema
        if pa.types.is_floating(field.type) or pa.types.is_integer(field.type)
    }
    length = len(chosen)
    if length <= MOST_COLUMNS:
        return columns
    cuts = np.unique(np.linspace(0, length, MOST_COLUMNS + 1).astype(int))[:-1]
    ends = np.append(cuts[1:], length)
    merged = {}
    for name, values in columns.items():
        if name == "start_s":
            merged[name] = values[cuts]
        elif name == "end_s":
            merged[name] = values[ends - 1]
        else:
            sums = np.add.reduceat(values, cuts)
            merged[name] = sums if name in _SUMMED else sums / (ends - cuts)
    return merged


_SUMMED = {"arrivals", "finished", "prompt_tokens", "output_tokens", "carbon_g", "electricity_usd"}
"""Counts of an interval, which add up; everything else is a mean."""


class ReplicaBins:
    """The table ``replicas``, batch by batch, as means by pool or replica and interval of time.

    Parameters
    ----------
    end_s : float
        End of the run [s].
    interval_s : float
        Length of the table's intervals [s]; so many are merged that few enough remain.
    by_replica : bool
        Rows of the heat map are replicas; else pools.
    """

    def __init__(self, end_s: float, interval_s: float, by_replica: bool) -> None:
        count = max(math.ceil(end_s / interval_s - 1e-9), 1)
        self.width_s = interval_s * math.ceil(count / MOST_COLUMNS)
        self.columns = math.ceil(end_s / self.width_s - 1e-9) or 1
        self.by_replica = by_replica
        self._rows: dict[str, Floats] = {}

    def add(self, batch: pa.RecordBatch) -> None:
        """Take some more rows."""
        off = [state in _OFF for state in batch.column("state").to_pylist()]
        watts = np.asarray(batch.column("power_w"))
        batch = batch.filter(pa.array(~(np.array(off, dtype=bool) & (watts <= 0.0))))
        pools = batch.column("pool").to_pylist()
        if self.by_replica:
            numbers = batch.column("replica").to_pylist()
            names = [f"{pool} {number}" for pool, number in zip(pools, numbers, strict=True)]
        else:
            names = pools
        start, end = (np.asarray(batch.column(name)) for name in ("start_s", "end_s"))
        bins = np.clip((0.5 * (start + end) / self.width_s).astype(np.int64), 0, self.columns - 1)
        values = np.stack(
            [
                np.ones(len(end)),
                np.asarray(batch.column("steps"), dtype=np.float64),
                sum(np.asarray(batch.column(name), dtype=np.float64) for name in ("prompt_tokens", "output_tokens")),
                np.asarray(batch.column("kv_used_ratio")),
                np.asarray(batch.column("waiting"), dtype=np.float64),
                np.asarray(batch.column("power_w")),
            ]
        )
        for name in dict.fromkeys(names):
            members = np.array([other == name for other in names])
            sums = self._rows.setdefault(name, np.zeros((6, self.columns)))
            for row, value in zip(sums, values, strict=True):
                row += np.bincount(bins[members], weights=value[members], minlength=self.columns)

    def table(self) -> pa.Table:
        """``row, start_s, end_s, batch, kv, queue, power``; power of a pool is the sum of its replicas'."""
        edges = np.arange(self.columns + 1) * self.width_s
        rows: list[tuple[str, float, float, float | None, float, float, float]] = []
        seen = np.flatnonzero(sum(sums[0] for sums in self._rows.values())) if self._rows else np.zeros(0, int)
        for name, sums in sorted(self._rows.items(), key=lambda item: _by_number(item[0])):
            for i in seen:
                count, steps, tokens, kv, waiting, watts = sums[:, i]
                if count:
                    batch = tokens / steps if steps else 0.0
                    rows.append((name, edges[i], edges[i + 1], batch, kv / count, waiting / count, watts / count))
        names = ("row", "start_s", "end_s", "batch", "kv", "queue", "power")
        return pa.table({name: [row[i] for row in rows] for i, name in enumerate(names)})


_OFF = {"off", "down"}


def _by_number(name: str) -> tuple[str, int]:
    """Pool and number of a replica's name."""
    pool, _, number = name.rpartition(" ")
    return (pool, int(number)) if number.isdigit() else (name, -1)
