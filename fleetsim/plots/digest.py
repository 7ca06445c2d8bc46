"""From a table of requests, batch by batch, to the small tables that figures take; a million rows never stand in memory at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

Floats = np.ndarray[Any, np.dtype[np.float64]]

LOWEST_S, STEP, BUCKETS = 1e-6, 1.01, 2777
"""Buckets of a histogram: 1 % wide from a microsecond to 1e6 s. A percentile read from them is within 1 % of the exact one."""
METRICS = ("ttft_s", "tpot_s", "e2el_s")
PARTS = ("network", "gateway", "encoding", "queue", "prefill", "transfer", "decode", "stalls")
"""Where the time of a request goes, in order."""
BANDS = {"p50": (0.45, 0.55), "p90": (0.88, 0.92), "p95": (0.94, 0.96), "p99": (0.985, 0.995)}
"""Requests around a percentile, by rank: their mean is shown for it, since a single one says little."""
MOST_BINS = 300
"""Bins of time."""
FEW = 25
"""Requests that a bin of time should hold at least, on average: a share of fewer is noise."""

COLUMNS = (
    "arrival_s",
    "encode_s",
    "queued_s",
    "first_scheduled_s",
    "first_token_s",
    "end_s",
    "output_tokens",
    "load_s",
    "return_s",
    "prefill_s",
    "transfer_s",
    "decode_s",
    "stall_s",
    "slo_met",
    *METRICS,
)
"""What is read of each request, as far as its table has it."""


class Histogram:
    """Counts of times in buckets that are each 1 % wide; times below a microsecond are in the first."""

    def __init__(self) -> None:
        self.counts = np.zeros(BUCKETS, dtype=np.int64)

    def add(self, values: Floats) -> None:
        """Count values; NaN is nothing."""
        self.counts += np.bincount(bucket_of(values[~np.isnan(values)]), minlength=BUCKETS)


def bucket_of(values: Floats) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Bucket of each value."""
    with np.errstate(divide="ignore"):
        places = np.floor(np.log(np.maximum(values, LOWEST_S) / LOWEST_S) / np.log(STEP)).astype(np.int64)
    return np.asarray(np.clip(places, 0, BUCKETS - 1), dtype=np.int64)


def edges_s(places: np.ndarray[Any, Any]) -> Floats:
    """Lower edges of buckets [s]; the first begins at 0."""
    return np.where(places > 0, LOWEST_S * STEP**places, 0.0)


class RequestDigest:
    """Latencies, parts of them, and attainment over time, of one run.

    Parameters
    ----------
    end_s : float
        End of the run: what bins of time are cut from [s].
    limits_s : mapping, optional
        Limits by class (None: of all requests) and metric (``ttft``, ``tpot``, ``e2el``) whose keeping is counted [s].
    """

    def __init__(self, end_s: float, limits_s: Mapping[str | None, Mapping[str, float]] | None = None) -> None:
        self.end_s = max(end_s, 1e-9)
        self._limits_s = {
            (klass, metric): limit_s for klass, limits in (limits_s or {}).items() for metric, limit_s in limits.items()
        }
        self._kept = dict.fromkeys(self._limits_s, 0)
        self._members = dict.fromkeys(self._limits_s, 0)
        self.latencies = {metric: Histogram() for metric in METRICS}
        self.counts = {by: np.zeros(BUCKETS, dtype=np.int64) for by in ("ttft", "e2el")}
        self.sums = {by: np.zeros((len(PARTS), BUCKETS)) for by in ("ttft", "e2el")}
        self.arrived = np.zeros(MOST_BINS, dtype=np.int64)
        self.met = np.zeros(MOST_BINS, dtype=np.int64)
        self.first_s, self.last_s = float("inf"), float("-inf")
        self.slowest = (-1.0, 0.0)
        """Longest time to a first token, and when that request arrived [s]."""
        self.requests = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Take some more requests."""
        values = {name: floats(batch, name) for name in COLUMNS if name in batch.schema.names}
        if not len(batch):
            return
        arrival = values["arrival_s"]
        self.requests += len(batch)
        self.first_s, self.last_s = min(self.first_s, float(arrival.min())), max(self.last_s, float(arrival.max()))
        for metric, histogram in self.latencies.items():
            histogram.add(values[metric])
        bins = np.clip((arrival / self.end_s * MOST_BINS).astype(np.int64), 0, MOST_BINS - 1)
        self.arrived += np.bincount(bins, minlength=MOST_BINS)
        met = values["slo_met"]
        self.met += np.bincount(bins[met == 1.0], minlength=MOST_BINS)
        self._count_kept(batch, values)
        ttft = values["ttft_s"]
        if not np.isnan(ttft).all():
            place = int(np.nanargmax(ttft))
            self.slowest = max(self.slowest, (float(ttft[place]), float(arrival[place])))
        for by, parts in (("ttft", parts_to_first(values)), ("e2el", parts_of(values))):
            total = values[f"{by}_s"]
            known = ~np.isnan(total) & ~np.isnan(np.sum(parts, axis=0))  # of measured runs only the ends are known
            places = bucket_of(total[known])
            self.counts[by] += np.bincount(places, minlength=BUCKETS)
            for row, part in zip(self.sums[by], parts, strict=True):
                row += np.bincount(places, weights=part[known], minlength=BUCKETS)

    def _count_kept(self, batch: pa.RecordBatch, values: dict[str, Floats]) -> None:
        """Count who keeps each limit; who has no time per token, with one token only, keeps that one, as in the SLO itself."""
        finished = ~np.isnan(values["e2el_s"])
        classes = batch.column("class").to_pylist() if any(klass is not None for klass, _ in self._limits_s) else []
        for (klass, metric), limit_s in self._limits_s.items():
            members = (
                np.ones(len(batch), dtype=bool) if klass is None else np.array([name == klass for name in classes])
            )
            with np.errstate(invalid="ignore"):
                late = values[f"{metric}_s"] > limit_s
            self._members[klass, metric] += int(members.sum())
            self._kept[klass, metric] += int((members & finished & ~late).sum())

    def share_within(self, metric: str, klass: str | None = None) -> float | None:
        """Requests that finish within one limit over all requests, exactly, or those of a class; None without that limit."""
        members = self._members.get((klass, metric), 0)
        return self._kept[klass, metric] / members if members else None

    @property
    def rate_per_s(self) -> float:
        """Requests per second between the first and the last arrival."""
        span_s = self.last_s - self.first_s
        return (self.requests - 1) / span_s if self.requests > 1 and span_s > 0 else 0.0

    def latency_table(self, label: str) -> pa.Table:
        """Counts by bucket: ``label, metric, low_s, high_s, count``."""
        rows = []
        for metric, histogram in self.latencies.items():
            places = np.flatnonzero(histogram.counts)
            rows.append((metric, edges_s(places), edges_s(places + 1), histogram.counts[places]))
        lengths = [len(row[1]) for row in rows]
        return pa.table(
            {
                "label": [label] * sum(lengths),
                "metric": [metric for (metric, *_), n in zip(rows, lengths, strict=True) for _ in range(n)],
                "low_s": np.concatenate([row[1] for row in rows]),
                "high_s": np.concatenate([row[2] for row in rows]),
                "count": np.concatenate([row[3] for row in rows]),
            }
        )

    def parts_table(self, label: str) -> pa.Table:
        """Mean seconds of each part around each percentile: ``label, by, band, part, seconds``."""
        rows: list[tuple[str, str, str, str, float]] = []
        for by, counts in self.counts.items():
            if not counts.sum():
                continue
            for band, (low, high) in {"mean": (0.0, 1.0), **BANDS}.items():
                weights = _overlap(counts, low, high)
                shares = np.divide(weights, counts, out=np.zeros(BUCKETS), where=counts > 0)
                means = self.sums[by] @ shares / weights.sum()
                rows += [(label, by, band, part, float(s)) for part, s in zip(PARTS, means, strict=True)]
        names = ("label", "by", "band", "part", "seconds")
        kinds = (*[pa.string()] * 4, pa.float64())
        return pa.table({n: pa.array([row[i] for row in rows], kinds[i]) for i, n in enumerate(names)})

    def time_table(self, label: str) -> pa.Table:
        """Arrivals and those within the objective over time: ``label, start_s, end_s, arrived, met``."""
        merged = min(-(-MOST_BINS * FEW // max(self.requests, 1)), MOST_BINS)
        cuts = np.arange(0, MOST_BINS, merged)
        edges = np.append(cuts, MOST_BINS) / MOST_BINS * self.end_s
        return pa.table(
            {
                "label": [label] * len(cuts),
                "start_s": edges[:-1],
                "end_s": edges[1:],
                "arrived": np.add.reduceat(self.arrived, cuts),
                "met": np.add.reduceat(self.met, cuts),
            }
        )


def _overlap(counts: np.ndarray[Any, Any], low: float, high: float) -> Floats:
    """How many of each bucket's values have a rank between the two shares, values of a bucket taken as alike."""
    total = counts.sum()
    ends = np.cumsum(counts)
    starts = ends - counts
    weights = np.minimum(ends, high * total) - np.maximum(starts, low * total)
    return np.asarray(np.maximum(weights, 0.0), dtype=np.float64)


def parts_of(values: dict[str, Floats]) -> Sequence[Floats]:
    """Seconds of each of `PARTS`; they add up to ``e2el_s``."""
    scheduled, first, end = (values[name] for name in ("first_scheduled_s", "first_token_s", "end_s"))
    there, gateway, encoding = _before_queue(values)
    queue = scheduled - values["queued_s"]
    if "prefill_s" in values and not np.isnan(values["prefill_s"]).all():  # files of before have it not
        prefill, transfer, decode, stalls = (values[n] for n in ("prefill_s", "transfer_s", "decode_s", "stall_s"))
    else:
        transfer = np.minimum(values["load_s"], first - scheduled)
        prefill, decode, stalls = first - scheduled - transfer, end - first, np.zeros(len(end))
    return there + values["return_s"], gateway, encoding, queue, prefill, transfer, decode, stalls


def parts_to_first(values: dict[str, Floats]) -> Sequence[Floats]:
    """The same until the first token; they add up to ``ttft_s``."""
    scheduled, first = values["first_scheduled_s"], values["first_token_s"]
    there, gateway, encoding = _before_queue(values)
    queue = scheduled - values["queued_s"]
    back = values["ttft_s"] - (first - values["arrival_s"])
    zero = np.zeros(len(first))
    if "prefill_s" in values and not np.isnan(values["prefill_s"]).all():
        prefill = np.where(np.isnan(values["prefill_s"]), first - scheduled, values["prefill_s"])
        rest = first - scheduled - prefill
        transfer = np.minimum(np.nan_to_num(values["transfer_s"]), rest)
        return there + back, gateway, encoding, queue, prefill, transfer, zero, rest - transfer
    transfer = np.minimum(values["load_s"], first - scheduled)
    return there + back, gateway, encoding, queue, first - scheduled - transfer, transfer, zero, zero


def _before_queue(values: dict[str, Floats]) -> tuple[Floats, Floats, Floats]:
    """Time on the way there (as long as that back, unless a request was sent elsewhere first), at the gateway, and for images."""
    encoding = np.nan_to_num(values["encode_s"])
    rest = values["queued_s"] - values["arrival_s"] - encoding
    there = np.minimum(values["return_s"], rest)
    return there, rest - there, encoding


def floats(batch: pa.RecordBatch, name: str) -> Floats:
    """A column as floats; nulls are NaN, and booleans 0 or 1."""
    column = batch.column(name)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False))


def around(batches: Iterable[pa.RecordBatch], arrival_s: float, most: int = 200) -> pa.Table:
    """The requests that arrived nearest to an instant, in order of arrival."""
    nearest: pa.Table | None = None
    for batch in batches:
        found = pa.Table.from_batches([batch])
        table = found if nearest is None else pa.concat_tables([nearest, found]).unify_dictionaries()
        away_s = np.abs(np.asarray(table["arrival_s"].to_numpy()) - arrival_s)
        nearest = table.take(np.sort(np.argsort(away_s, kind="stable")[:most]))
    return pa.table({"arrival_s": pa.array([], pa.float64())}) if nearest is None else nearest.sort_by("arrival_s")


def quantile(low_s: Floats, high_s: Floats, counts: Floats, share: float) -> float:
    """A percentile from a histogram, by linear interpolation within a bucket [s]."""
    total = counts.sum()
    ends = np.cumsum(counts)
    place = int(np.searchsorted(ends, share * total))
    place = min(place, len(counts) - 1)
    before = ends[place] - counts[place]
    within = (share * total - before) / counts[place] if counts[place] else 0.0
    high = high_s[place] if np.isfinite(high_s[place]) else low_s[place]
    return float(low_s[place] + within * (high - low_s[place]))
