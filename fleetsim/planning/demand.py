"""What a workload asks of a fleet: rates of requests by the lengths of prompts and answers."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from fleetsim.errors import Finding, InputError
from fleetsim.experiment.check import open_workload
from fleetsim.kernel.streams import Streams
from fleetsim.scenario.load import LoadedScenario
from fleetsim.scenario.schema import ClosedLoopArrivals, MixWorkload, SyntheticWorkload, TreeSearchWorkload
from fleetsim.workload.request import Request, Workload, each_released

Floats = np.ndarray[Any, np.dtype[np.float64]]

MAX_REQUESTS = 500_000
"""Requests of a workload that are read; longer ones are planned by their beginning."""
_WINDOWS, _UNEVEN = 20, 1.5
"""Arrivals are called uneven where the busiest of so many windows has so many times the mean rate."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """Requests of similar lengths."""

    rate_per_s: float
    """Arrivals [1/s]."""
    prompt_tokens: float
    """Their mean prompt [tokens]."""
    output_tokens: float
    """Their mean answer [tokens]."""
    row: int = 0
    """Place in the grid by prompt length …"""
    column: int = 0
    """… and by answer length."""

    @property
    def label(self) -> str:
        """Name for people."""
        return f"prompts of {self.prompt_tokens:.0f} and answers of {self.output_tokens:.0f} tokens"


@dataclass(frozen=True, slots=True)
class Grid:
    """Edges that divide lengths: a length belongs to the first place whose edge it does not exceed; the last has no edge."""

    prompt_edges: tuple[int, ...]
    output_edges: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Demand:
    """What a workload asks for."""

    buckets: tuple[Bucket, ...]
    grid: Grid
    requests: int
    """Requests that were read."""
    mean_rate_per_s: float
    """Over the whole workload [1/s]."""
    planned_rate_per_s: float
    """That the buckets add up to: the mean, or that of a busy window [1/s]."""
    notes: tuple[str, ...] = ()


def demand_of(
    loaded: LoadedScenario,
    rows: int = 10,
    columns: int = 6,
    window_s: float | None = None,
    quantile: float = 0.95,
) -> Demand:
    """Demand of a scenario's workload.

    Parameters
    ----------
    loaded : LoadedScenario
        From `load_scenario`.
    rows, columns : int
        Places by prompt and by answer length, at most; edges are quantiles, so that places hold about as many requests each.
    window_s : float, optional
        Plan for this quantile of the arrival rates in windows of such a length instead of the mean rate [s].
    quantile : float
        0 to 1.

    Raises
    ------
    InputError
        If the rate of arrivals depends on how fast the fleet answers, or there is only one request.
    """
    require_open(loaded)
    notes = []
    scenario = loaded.scenario
    workload = open_workload(loaded, Streams(scenario.seed))
    taken = [(r.arrival_s, r.prompt_tokens, r.output_tokens) for r in offered(workload)]
    if len(taken) == MAX_REQUESTS:
        notes.append(f"planned by the first {MAX_REQUESTS:,} requests of the workload")
    arrivals, prompts, outputs = (np.array(column, dtype=np.float64) for column in zip(*taken, strict=True))
    span_s = float(arrivals[-1] - arrivals[0])
    if span_s <= 0:
        raise InputError(
            Finding("the workload has no rate: all its requests arrive at once", hint="give more requests")
        )
    mean = (len(taken) - 1) / span_s
    planned = mean if window_s is None else _busy(arrivals, window_s, quantile, mean)
    if window_s is not None:
        notes.append(f"planned for the {quantile:.0%} quantile of rates in windows of {window_s:g} s")
    elif (peak := _busy(arrivals, span_s / _WINDOWS, 1.0, mean)) > _UNEVEN * mean:
        notes.append(
            f"planned for the mean rate, but the busiest {span_s / _WINDOWS:.3g} s have {peak / mean:.1f} times that: "
            "--window plans for busy times"
        )
    grid = Grid(_edges(prompts, rows), _edges(outputs, columns))
    row, column = (
        np.searchsorted(np.array(edges), values, side="left")
        for edges, values in ((grid.prompt_edges, prompts), (grid.output_edges, outputs))
    )
    place = row * (len(grid.output_edges) + 1) + column
    buckets = []
    for number in np.unique(place).tolist():
        here = place == number
        rate = planned * float(here.mean())
        where = divmod(number, len(grid.output_edges) + 1)
        buckets.append(Bucket(rate, float(prompts[here].mean()), float(outputs[here].mean()), *where))
    return Demand(tuple(buckets), grid, len(taken), mean, planned, tuple(notes))


def require_open(loaded: LoadedScenario) -> None:
    """Refuse workloads whose arrivals depend on the fleet.

    Raises
    ------
    InputError
    """
    workload = loaded.scenario.workload
    parts = workload.parts.values() if isinstance(workload, MixWorkload) else [workload]
    for part in parts:
        closed = isinstance(part, SyntheticWorkload) and isinstance(part.arrivals, ClosedLoopArrivals)
        if closed or isinstance(part, TreeSearchWorkload):
            kind = "closed-loop arrivals" if closed else "tree search"
            message = f"{kind}: how fast requests come depends on how fast the fleet answers, so there is no demand to plan for"
            raise InputError(loaded.finding(("workload",), message, "give arrivals with a rate, or a trace"))


def offered(workload: Workload) -> Iterator[Request]:
    """Requests in order of arrival, as if each were answered at once: later turns of sessions come no earlier in any fleet."""
    order = count()
    arriving = workload.requests()
    waiting: list[tuple[float, int, Request]] = []
    following = next(arriving, None)
    for _ in range(MAX_REQUESTS):
        if waiting and (following is None or waiting[0][0] < following.arrival_s):
            request = heapq.heappop(waiting)[2]
        elif following is not None:
            request, following = following, next(arriving, None)
        else:
            return
        yield request
        for later in each_released(workload.released_by(request, request.arrival_s)):
            heapq.heappush(waiting, (later.arrival_s, next(order), later))


def _busy(arrivals: Floats, window_s: float, quantile: float, mean: float) -> float:
    """Quantile of the rates in whole windows; the mean where there is none."""
    windows = int((arrivals[-1] - arrivals[0]) // window_s)
    if windows < 1:
        return mean
    counts = np.bincount(((arrivals - arrivals[0]) // window_s).astype(int), minlength=windows)[:windows]
    return float(np.quantile(counts, quantile)) / window_s


def _edges(lengths: Floats, places: int) -> tuple[int, ...]:
    """Upper edges of all places but the last: quantiles of the lengths, equal ones once."""
    ratios: Sequence[float] = [k / places for k in range(1, places)]
    edges = np.unique(np.quantile(lengths, ratios, method="inverted_cdf")) if ratios else np.empty(0)
    return tuple(int(edge) for edge in edges if edge < lengths.max())
