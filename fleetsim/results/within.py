"""How sure a difference of two single runs is, from their requests and from their intervals of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from fleetsim.metrics.columns import values_of
from fleetsim.metrics.statistics import BATCHES, Floats
from fleetsim.results.folder import Results, Run
from fleetsim.results.paired import Spread, of_batches, within_runs

HIGHER, LOWER, NEITHER = 1, -1, 0


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of the summary that systems are compared by."""

    name: str
    title: str
    better: int = NEITHER
    """Which way is better, if either."""
    column: str = ""
    """Column of requests, or of fleet, that tells its spread within a run."""
    quantile: float | None = None
    """Which percentile of the requests; None for means and totals."""
    in_fleet: bool = False

    @property
    def is_ratio(self) -> bool:
        """Whether differences are told in points."""
        return self.name.endswith("_ratio")


FIGURES = (
    Figure("slo_attainment_ratio", "SLO attainment", HIGHER, "met"),
    Figure("goodput_requests_per_s", "goodput", HIGHER, "met"),
    Figure("ttft_p50_s", "median TTFT", LOWER, "ttft_s", 0.5),
    Figure("ttft_p99_s", "p99 TTFT", LOWER, "ttft_s", 0.99),
    Figure("tpot_p50_s", "median TPOT", LOWER, "tpot_s", 0.5),
    Figure("tpot_p99_s", "p99 TPOT", LOWER, "tpot_s", 0.99),
    Figure("e2el_p50_s", "median latency", LOWER, "e2el_s", 0.5),
    Figure("e2el_p99_s", "p99 latency", LOWER, "e2el_s", 0.99),
    Figure("output_tokens_per_s", "output", HIGHER, "output_tokens", in_fleet=True),
    Figure("cost_usd", "cost", LOWER, "cost_usd_per_h", in_fleet=True),
    Figure("energy_j", "energy", LOWER, "power_w", in_fleet=True),
    Figure("carbon_g", "carbon", LOWER, "carbon_g", in_fleet=True),
)
"""What is compared unless others are named."""
_PER_TIME = {"cost_usd_per_h": 3600.0, "power_w": 1.0}
"""Columns of fleet that are rates, and the seconds of their unit of time."""


def figure_of(run: Run, name: str) -> float | None:
    """A number of a run's summary; None if it has none."""
    value = (run.manifest.get("summary") or {}).get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


class WithinRuns:
    """Two runs whose requests, or intervals of time, tell how sure a difference is."""

    def __init__(self, results: Results, base: Run, other: Run, level: float) -> None:
        self._runs, self._results, self._level = (base, other), results, level
        told = [_columns(results, run, "requests", ["request_id", "arrival_s", "prompt_tokens"]) for run in self._runs]
        self._orders = [np.argsort(columns["request_id"], kind="stable") for columns in told]
        prompts = [columns["prompt_tokens"][order] for columns, order in zip(told, self._orders, strict=True)]
        self._paired = len(prompts[0]) == len(prompts[1]) and bool(np.all(prompts[0] == prompts[1]))
        counted = [
            _counted(run, columns["arrival_s"])[order]
            for run, columns, order in zip(self._runs, told, self._orders, strict=True)
        ]
        if self._paired:
            counted = [counted[0] & counted[1]] * 2
        self._counted = counted
        what = "the same requests" if self._paired else "independent requests"
        self.method = f"one run of each, {what}, {BATCHES} batches"

    def spread(self, figure: Figure) -> Spread | None:
        """Of the figure's difference; None where the tables do not tell."""
        base, other = (figure_of(run, figure.name) for run in self._runs)
        if base is None or other is None or not figure.column:
            return None
        if figure.in_fleet:
            return self._of_time(figure, other - base)
        first, second = self._values(0, figure.column), self._values(1, figure.column)
        statistic = _mean
        if figure.name == "goodput_requests_per_s":  # the length of the run is taken as known
            first, second = first * _per_request(self._runs[0]), second * _per_request(self._runs[1])
        elif figure.quantile is not None:
            if min(len(first), len(second)) * (1 - figure.quantile) < BATCHES:
                return None
            statistic = partial(_quantile, ratio=figure.quantile)
        return within_runs(other - base, (first, second), statistic, self._paired, self._level)

    def _values(self, place: int, column: str) -> Floats:
        run = self._runs[place]
        if column == "met":
            names = ["slo_met", "status"]
            table = pa.Table.from_batches(self._results.scan("requests", names, run))
            met = values_of(table["slo_met"])
            if table["slo_met"].null_count == len(table):
                met = np.array([state == "finished" for state in table["status"].to_pylist()])
            values = np.asarray(met == 1, dtype=np.float64)
        else:
            values = np.asarray(_columns(self._results, run, "requests", [column])[column], dtype=np.float64)
        return values[self._orders[place]][self._counted[place]]

    def _of_time(self, figure: Figure, difference: float) -> Spread | None:
        first, second = (_amounts(self._results, run, figure.column) for run in self._runs)
        if not len(first[0]) or not len(second[0]):
            return None
        edges = np.linspace(0, min(first[0][-1], second[0][-1]), min(BATCHES, len(first[0]), len(second[0])) + 1)
        totals = [figure_of(run, figure.name) or 0.0 for run in self._runs]
        parts = _parts(first, edges, totals[0]), _parts(second, edges, totals[1])
        return of_batches(difference, parts, self._level)


def _parts(reached: tuple[Floats, Floats], edges: Floats, total: float) -> Floats:
    """A run's total by stretch of time; what lies beyond the last edge belongs to the last one."""
    ends, sums = reached
    at_edges = np.interp(edges, np.concatenate(([0.0], ends)), np.concatenate(([0.0], sums)))
    at_edges[-1] = sums[-1]
    return np.diff(at_edges) * (total / sums[-1] if sums[-1] else 0.0)


def _mean(values: Floats) -> float:
    return float(values.mean())


def _quantile(values: Floats, ratio: float) -> float:
    return float(np.quantile(values, ratio))


def _per_request(run: Run) -> float:
    """Rate of requests that goodput is the attained share of [1/s]."""
    share = figure_of(run, "slo_attainment_ratio")
    return (figure_of(run, "goodput_requests_per_s") or 0.0) / share if share else 0.0


def _counted(run: Run, arrival_s: Floats) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Requests beyond the warm-up."""
    scenario = run.manifest.get("scenario") or {}
    cut = int(float(scenario.get("run", {}).get("warmup_ratio") or 0.0) * len(arrival_s))
    counted = np.ones(len(arrival_s), dtype=bool)
    counted[np.argsort(arrival_s, kind="stable")[:cut]] = False
    return counted


def _columns(results: Results, run: Run, table: str, names: Sequence[str]) -> dict[str, Floats]:
    whole = pa.Table.from_batches(results.scan(table, names, run))
    return {name: values_of(whole[name]) for name in names}


def _amounts(results: Results, run: Run, column: str) -> tuple[Floats, Floats]:
    """Ends of the intervals of a run, and the amount until each, over all pools."""
    told = _columns(results, run, "fleet", ["start_s", "end_s", column])
    amounts = np.asarray(told[column], dtype=np.float64)
    if not len(amounts) or np.isnan(amounts).any():
        return np.zeros(0), np.zeros(0)
    if column in _PER_TIME:
        amounts = amounts * (told["end_s"] - told["start_s"]) / _PER_TIME[column]
    ends, places = np.unique(told["end_s"], return_inverse=True)
    return ends, np.cumsum(np.bincount(places, weights=amounts))
