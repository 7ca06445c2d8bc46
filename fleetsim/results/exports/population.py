"""What other tools tell of a run: the requests beyond its warm-up, and statistics of those that finished."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from fleetsim.metrics.columns import values_of
from fleetsim.metrics.statistics import Floats
from fleetsim.results.folder import Results, Run
from fleetsim.results.within import figure_of

Bools = np.ndarray[Any, np.dtype[np.bool_]]


class Population:
    """The requests of a run that its latencies are told of.

    Benchmarks leave their warm-up out of everything, and failed requests out of latencies and throughput; so does this. Columns are
    read one at a time, rows as a stream. With `warm_up`, the warm-up counts as well.
    """

    def __init__(self, results: Results, run: Run, warm_up: bool = False) -> None:
        self._results, self.run, self._warm_up = results, run, warm_up

    @cached_property
    def counted(self) -> Bools:
        """Requests beyond the warm-up, in the order of the table."""
        arrival = self._column("arrival_s")
        counted = np.ones(len(arrival), dtype=bool)
        scenario = self.run.manifest.get("scenario") or {}
        ratio = 0.0 if self._warm_up else float((scenario.get("run") or {}).get("warmup_ratio") or 0.0)
        cut = int(ratio * len(arrival))
        counted[np.argsort(arrival, kind="stable")[:cut]] = False
        return counted

    @cached_property
    def finished(self) -> Bools:
        """Those of them that finished."""
        parts = [
            np.array([state == "finished" for state in batch.column(0).to_pylist()], dtype=bool)
            for batch in self._results.scan("requests", ["status"], self.run)
        ]
        return np.asarray(self.counted & (np.concatenate(parts) if parts else np.zeros(0, dtype=bool)))

    @property
    def is_known(self) -> bool:
        """Whether there are requests; of some measurements there are figures only."""
        return len(self.counted) > 0

    def values(self, column: str) -> Floats:
        """A column of the requests that finished, without those that have none."""
        values = self._column(column)[self.finished]
        return values[~np.isnan(values)]

    def ordered(self, column: str) -> Floats:
        """A column of all requests beyond the warm-up by their numbers, that is as they were sent; NaN for null."""
        return np.asarray(self._column(column)[self.order])

    def texts(self, column: str) -> list[str | None]:
        """The same of a column of names."""
        parts = [batch.column(0).to_pylist() for batch in self._results.scan("requests", [column], self.run)]
        whole = np.array(list(chain.from_iterable(parts)), dtype=object)
        told: list[str | None] = whole[self.order].tolist()
        return told

    @cached_property
    def order(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Rows beyond the warm-up by the numbers of their requests."""
        order = np.argsort(self._column("request_id"), kind="stable")
        return order[self.counted[order]]

    def total(self, column: str) -> int:
        """Sum over the requests that finished."""
        return int(self.values(column).sum())

    @cached_property
    def start_s(self) -> float:
        """First arrival [s]; NaN where arrivals are not known."""
        arrival = self._column("arrival_s")[self.counted]
        return float(arrival.min()) if len(arrival) else float("nan")

    @cached_property
    def duration_s(self) -> float:
        """From the first arrival to the last end [s]."""
        ends = self._column("end_s")[self.counted]
        ends = ends[~np.isnan(ends)]
        known = float(ends.max()) - self.start_s if len(ends) else float("nan")
        return known if known == known else figure_of(self.run, "makespan_s") or float("nan")

    def per_s(self, amount: float) -> float:
        """A rate over the duration [1/s]."""
        return amount / self.duration_s if self.duration_s > 0 else float("nan")

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        """Values of these columns for each request beyond the warm-up, as a stream."""
        place = 0
        for batch in self._results.scan("requests", columns, self.run):
            counted = self.counted[place : place + len(batch)]
            place += len(batch)
            chosen = batch.filter(pa.array(counted)) if not counted.all() else batch
            yield from zip(*(column.to_pylist() for column in chosen.columns), strict=True)

    def gaps(self) -> tuple[Floats, Floats]:
        """Middles of the buckets of inter-token gaps [s], and how many fell into each."""
        table = self._results.table("gaps", self.run)
        low, high = (np.asarray(values_of(table[name]), dtype=np.float64) for name in ("low_s", "high_s"))
        counts = np.asarray(values_of(table["count"]), dtype=np.float64)
        order = np.argsort(low, kind="stable")
        with np.errstate(invalid="ignore"):
            middles = np.where(np.isfinite(high), np.sqrt(low * high), low)
        return middles[order], counts[order]

    def _column(self, name: str) -> Floats:
        parts = [values_of(batch.column(0)) for batch in self._results.scan("requests", [name], self.run)]
        return np.concatenate(parts).astype(np.float64) if parts else np.zeros(0)


def weighted_quantile(values: Floats, counts: Floats, ratio: float) -> float:
    """Quantile of a histogram; NaN of an empty one."""
    if not counts.sum():
        return float("nan")
    return float(values[np.searchsorted(np.cumsum(counts), ratio * counts.sum())])
