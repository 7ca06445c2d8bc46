"""What each column of each table means: the fixed tables by their schemas, the others by the catalogue of metrics."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

import pyarrow as pa

from fleetsim.metrics.definitions import METRICS, Metric
from fleetsim.output.tables import TABLES, Column

TABLE_TEXTS = {
    "runs": "One row per run: what it is called, where it lies, and the value of each axis of its study",
    "summary": "One row per run: its figures",
    "groups": "The main figures of each run by pool, class, tenant, model, site and origin",
    "requests": "One row per request",
    "replicas": "One row per replica and interval",
    "fleet": "One row per pool and interval",
    "events": "Changes of state, failures, migrations; totals at the end",
    "gaps": "Histogram of the times between two tokens, by pool",
    "decisions": "What the router saw of each candidate, of requests that were explained",
}
"""Views in the order in which they are listed."""

_OF_RUNS = {
    "run": "Begin of the digest of the scenario, seed included",
    "label": "What tells the run from the others, in a few words",
    "name": "Name of the scenario",
    "study": "Study that it belongs to; null if none",
    "seed": "Seed of its random numbers; null if it was measured",
    "replication": "Which of the runs that differ only in their seeds, from 0",
    "measured": "Whether it was imported from another tool",
    "folder": "Where it lies",
    "verdict": "STABLE, BACKLOGGED or OVERLOADED",
}
_COUNTED = {
    "requests": "Requests that arrived",
    "finished": "Of them, those that finished",
    "rejected": "Of them, those that the gateway refused",
    "timed_out": "Of them, those whose client did not wait",
    "failed": "Of them, those that a failure ended",
    "unfinished": "Of them, those still in flight at the end",
    "skipped_rows": "Bad rows of a trace that were left out",
    "measured_requests": "Requests that count for latencies: the warm-up is left out",
    "prompt_tokens": "Tokens of all prompts",
    "prompt_tokens_mean": "Mean prompt length",
    "output_tokens": "Tokens produced",
    "output_tokens_mean": "Mean number of tokens produced per request",
    "cached_tokens": "Prompt tokens found in the prefix cache",
    "steps": "Steps of all replicas",
    "simulated_s": "Time simulated",
    "accelerators": "Accelerators of the fleet as it was declared",
    "kv_used_max_ratio": "Largest KV use of a replica at the end of an interval",
    "by": "What is grouped by: pool, class, tenant, model, site or origin",
    "value": "Which of these",
    "cost_requests_per_million_slo_tokens_usd": "cost_requests_usd / slo_output_tokens x 1e6",
    "carbon_requests_per_million_slo_tokens_g": "carbon_requests_g / slo_output_tokens x 1e6",
}
_UNITS = {
    "s": "s",
    "j": "J",
    "g": "g",
    "w": "W",
    "c": "C",
    "usd": "USD",
    "bytes": "B",
    "tokens": "tokens",
    "hours": "h",
    "ratio": "",
}
"""Unit by the last word of a name."""
_STATISTICS = {
    "mean": "mean",
    "mean_ci_low": "low end of the 95 % confidence interval of the mean",
    "mean_ci_high": "high end of the 95 % confidence interval of the mean",
    "p50": "median",
    "p90": "90th percentile",
    "p95": "95th percentile",
    "p99": "99th percentile",
}
_STATISTIC = re.compile(rf"(.+)_({'|'.join(sorted(_STATISTICS, key=len, reverse=True))})_([a-z]+)")
_INTERVAL = re.compile(r"(.+)_ci_(low|high)_([a-z]+)")


@cache
def _metrics() -> dict[str, Metric]:
    return {metric.name: metric for metric in METRICS}


def column_of(table: str, name: str, kind: str = "") -> Column:
    """Unit, description and formula of a column of a table, as far as they are known."""
    if name in ("run", "label"):
        return Column(name, "string", "", _OF_RUNS[name])
    if table in TABLES:
        return next(column for column in TABLES[table] if column.name == name)
    if name in _OF_RUNS and table != "groups":
        return Column(name, kind, "", _OF_RUNS[name])
    if name.startswith("axis."):
        return Column(name, kind, "", f"Axis of the study: {name.removeprefix('axis.')}")
    if name in _metrics():
        metric = _metrics()[name]
        return Column(name, kind, metric.unit, metric.formula)
    if name in _COUNTED:
        unit = "count" if kind == "int64" and not name.endswith("tokens") else unit_of(name)
        return Column(name, kind, unit, _COUNTED[name])
    return _statistic(name, kind) or Column(name, kind, unit_of(name), "")


def _statistic(name: str, kind: str) -> Column | None:
    """A percentile, a mean or an end of a confidence interval, by the metric that it is of."""
    if found := _STATISTIC.fullmatch(name):
        metric = _metrics().get(f"{found[1]}_{found[3]}")
        if metric is not None:
            return Column(name, kind, metric.unit, f"{_STATISTICS[found[2]]} of {metric.formula}")
    if found := _INTERVAL.fullmatch(name):
        end = f"{found[2]} end of the 95 % confidence interval of {found[1]}_{found[3]}"
        return Column(name, kind, unit_of(name), end)
    return None


def unit_of(name: str) -> str:
    """Unit that a name ends with."""
    if found := re.search(r"_per_(s|h)(_per_\w+)?$", name):
        return f"1/{found[1]}"
    return _UNITS.get(name.removesuffix("_mean").rpartition("_")[2], "")


def columns_of(table: str, schema: pa.Schema) -> list[Column]:
    """All columns of a table, with units and meanings."""
    return [column_of(table, field.name, _kind(field.type)) for field in schema]


def _kind(arrow: pa.DataType) -> str:
    return (
        "string"
        if pa.types.is_dictionary(arrow) or pa.types.is_string(arrow)
        else str(arrow).replace("double", "float64")
    )


def in_order(tables: Iterable[str]) -> list[str]:
    """Tables as they are listed."""
    known = list(TABLE_TEXTS)
    return sorted(tables, key=lambda table: known.index(table) if table in known else len(known))
