"""What is read of a run for its figures: requests and replicas as streams, the small tables whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from fleetsim.errors import InputError
from fleetsim.output.tables import REQUESTS
from fleetsim.plots.answers import COLUMNS as ANSWERS
from fleetsim.plots.answers import AnswerDigest
from fleetsim.plots.digest import COLUMNS, RequestDigest, around
from fleetsim.plots.over_time import ReplicaBins
from fleetsim.results.folder import Results, Run
from fleetsim.units import parse

MOST_ROWS = 24
"""Replicas that a heat map shows one by one; of more, their pools."""
_GANTT = (
    "request_id",
    "status",
    "pool",
    "replica",
    "arrival_s",
    "queued_s",
    "first_scheduled_s",
    "first_token_s",
    "end_s",
    "prompt_tokens",
    "output_tokens",
)


@dataclass(frozen=True, slots=True)
class Limits:
    """The objective of a scenario."""

    attainment: float
    limits_s: Mapping[str, float]
    """Of all requests, by metric."""
    classes: Mapping[str, Mapping[str, float]]
    """Of single classes."""


@dataclass(frozen=True, slots=True)
class Detail:
    """One run, read."""

    run: Run
    label: str
    digest: RequestDigest
    fleet: pa.Table
    gaps: pa.Table
    """Histogram of inter-token gaps over all pools, in the layout of latencies."""
    bins: pa.Table
    bins_of: str
    """What a row of `bins` is."""
    some: pa.Table
    """Requests around the slowest one."""


def limits_of(run: Run) -> Limits | None:
    """The objective, from the scenario in the manifest."""
    slo = (run.manifest.get("scenario") or {}).get("slo")
    if not slo:
        return None
    classes = {str(name): _limits(block) for name, block in (slo.get("classes") or {}).items()}
    return Limits(float(slo.get("attainment", 0.99)), _limits(slo), classes)


def _limits(block: Mapping[str, Any]) -> dict[str, float]:
    return {name: parse(block[name], "time") for name in ("ttft", "tpot", "e2el") if block.get(name) is not None}


def read(results: Results, run: Run, label: str) -> Detail:
    """Read a run once through, a second time for the requests of the Gantt chart."""
    known = {column.name for column in REQUESTS}
    limits = limits_of(run)
    by_class: dict[str | None, Mapping[str, float]] = (
        {} if limits is None else {None: limits.limits_s} | dict(limits.classes)
    )
    digest = RequestDigest(_end_s(run), by_class)
    for batch in results.scan("requests", [*(name for name in COLUMNS if name in known), "class"], run):
        digest.add(batch)
    some = around(results.scan("requests", list(_GANTT), run), digest.slowest[1])
    bins, bins_of = _replicas(results, run, digest.end_s)
    return Detail(run, label, digest, _small(results, "fleet", run), _gaps(results, run, label), bins, bins_of, some)


def read_answers(results: Results, run: Run) -> AnswerDigest | None:
    """Who answered the requests of a run and how well; None where nobody chooses among models."""
    if run.figures.get("quality_mean") is None:
        return None
    digest = AnswerDigest(_end_s(run))
    for batch in results.scan("requests", ANSWERS, run):
        digest.add(batch)
    return digest


def _end_s(run: Run) -> float:
    summary = run.manifest.get("summary") or {}
    return float(summary.get("simulated_s") or summary.get("makespan_s") or 1.0)


def _small(results: Results, name: str, run: Run) -> pa.Table:
    """A table that measured runs may lack."""
    try:
        return results.table(name, run)
    except InputError:
        if not run.is_measured:
            raise
        return pa.table({})


def _replicas(results: Results, run: Run, end_s: float) -> tuple[pa.Table, str]:
    pools = (run.manifest.get("scenario") or {}).get("pools") or []
    count = sum(int(max(pool.get("replicas") or 0, pool.get("max_replicas") or 0)) for pool in pools)
    by_replica = 0 < count <= MOST_ROWS
    interval_s = parse(((run.manifest.get("scenario") or {}).get("run") or {}).get("interval", "10 s"), "time")
    bins = ReplicaBins(end_s, interval_s, by_replica)
    names = [
        "start_s",
        "end_s",
        "pool",
        "replica",
        "state",
        "steps",
        "prompt_tokens",
        "output_tokens",
        "kv_used_ratio",
        "waiting",
        "power_w",
    ]
    if not run.is_measured:
        for batch in results.scan("replicas", names, run):
            bins.add(batch)
    return bins.table(), "replica" if by_replica else "pool"


def _gaps(results: Results, run: Run, label: str) -> pa.Table:
    table = _small(results, "gaps", run)
    counts: dict[tuple[float, float], int] = {}
    for low, high, count in zip(
        *(table[name].to_pylist() if len(table) else [] for name in ("low_s", "high_s", "count")), strict=True
    ):
        counts[low, high] = counts.get((low, high), 0) + count
    edges = sorted(counts)
    return pa.table(
        {
            "label": pa.array([label] * len(edges), pa.string()),
            "metric": pa.array(["itl_s"] * len(edges), pa.string()),
            "low_s": np.array([low for low, _ in edges], dtype=np.float64),
            "high_s": np.array([high for _, high in edges], dtype=np.float64),
            "count": np.array([counts[edge] for edge in edges], dtype=np.int64),
        }
    )
