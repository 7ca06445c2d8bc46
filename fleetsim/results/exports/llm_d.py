"""The benchmark report of llm-d, version 0.2.1: one JSON object that its tools and dashboards read.

Pools are components of the stack; what is observed of them comes from the table of replicas. Percentages there are 0 to 100.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from fleetsim.metrics.columns import values_of
from fleetsim.metrics.statistics import Floats
from fleetsim.results.exports.files import complete, write_object
from fleetsim.results.exports.options import Options, Written
from fleetsim.results.exports.population import Population, weighted_quantile
from fleetsim.results.folder import Results, Run
from fleetsim.results.within import figure_of

VERSION = "0.2.1"
PERCENTILES = {
    "p0p1": 0.1, "p1": 1, "p5": 5, "p10": 10, "p25": 25, "p50": 50, "p75": 75, "p90": 90, "p95": 95, "p99": 99, "p99p9": 99.9,
}  # fmt: skip
LATENCIES = {
    "time_to_first_token": ("ttft_s", "s"),
    "normalized_time_per_output_token": ("ntpot_s", "s/token"),
    "time_per_output_token": ("tpot_s", "s/token"),
    "request_latency": ("e2el_s", "s"),
}
"""Their name -> our column and their unit; single gaps, ``inter_token_latency``, come from the histogram."""
_RATES = ("input_token_rate", "output_token_rate", "total_token_rate", "request_rate")
_ROLES = {"prefill": "prefill", "decode": "decode"}
_MOST_POINTS = 1000
"""Points of a time series; every n-th interval is told where there are more."""


def write(results: Results, run: Run, out: Path, options: Options) -> Written:
    """Write the report."""
    population = Population(results, run)
    scenario = run.manifest.get("scenario") or {}
    report = {
        "version": VERSION,
        "run": _run(population, options),
        "scenario": {
            "stack": [_component(pool, run) for pool in scenario.get("pools") or []] or None,
            "load": _load(population, scenario),
        },
        "results": {
            "request_performance": {"aggregate": _aggregate(population)},
            "observability": _observability(results, run, options),
        },
    }
    with complete(out) as file:
        write_object(file, report, {})
    return Written([out])


def _run(population: Population, options: Options) -> dict[str, Any]:
    run = population.run
    told: dict[str, Any] = {"uid": run.id, "eid": run.study or None, "description": run.label}
    told["keywords"] = ["simulated", "fleetsim"] if not run.is_measured else ["measured"]
    if population.duration_s == population.duration_s and population.start_s == population.start_s:
        start, end = options.iso(population.start_s), options.iso(population.start_s + population.duration_s)
        told["time"] = {"start": start, "end": end, "duration": f"PT{population.duration_s:.6f}S"}
    return told


def _component(pool: Mapping[str, Any], run: Run) -> dict[str, Any]:
    spread = pool.get("parallelism") or {}
    degrees = {name: int(spread.get(name, 1)) for name in ("tp", "dp", "ep", "pp")}
    replicas = max(int(pool.get("replicas") or 0), 1)
    engine = pool.get("engine") or {}
    return {
        "metadata": {"label": str(pool.get("name")), "cfg_id": str(run.manifest.get("scenario_digest") or run.id)},
        "standardized": {
            "kind": "inference_engine",
            "tool": str(engine.get("kind") or "vllm"),
            "tool_version": f"fleetsim {run.manifest.get('fleetsim_version')}",
            "role": _ROLES.get(str(pool.get("role")), "replica"),
            "replicas": replicas,
            "model": {"name": str(pool.get("llm"))},
            "accelerator": {
                "model": str(pool.get("accelerator")),
                "count": replicas * degrees["tp"] * degrees["pp"] * degrees["dp"],
                "parallelism": degrees,
            },
        },
        "native": {"config": dict(pool)},
    }


def _load(population: Population, scenario: Mapping[str, Any]) -> dict[str, Any] | None:
    if not population.is_known:
        return None
    rate = population.per_s(float(population.counted.sum()))
    standardized: dict[str, Any] = {
        "tool": "fleetsim",
        "tool_version": str(population.run.manifest.get("fleetsim_version")),
        "source": "sampled" if (scenario.get("workload") or {}).get("kind") == "trace" else "random",
        "input_seq_len": _length(population.values("prompt_tokens")),
        "output_seq_len": _length(population.values("output_tokens")),
        "rate_qps": rate if rate > 0 else None,
    }
    return {"metadata": {}, "standardized": standardized, "native": {"config": scenario.get("workload")}}


def _length(values: Floats) -> dict[str, Any]:
    if not len(values):
        return {"distribution": "other", "value": 0}
    low, high = int(values.min()), int(values.max())
    if low == high:
        return {"distribution": "fixed", "value": low}
    return {"distribution": "other", "value": float(values.mean()), "min": low, "max": max(high, 1)}


def _aggregate(population: Population) -> dict[str, Any]:
    total, finished = int(population.counted.sum()), int(population.finished.sum())
    if not population.is_known:
        total, finished = (int(figure_of(population.run, name) or 0) for name in ("requests", "finished"))
    unfinished = int(figure_of(population.run, "unfinished") or 0)
    requests = {
        "total": total,
        "failures": max(total - finished - unfinished, 0),
        "incomplete": min(unfinished, total - finished),
        "input_length": statistics(population.values("prompt_tokens"), "count"),
        "output_length": statistics(population.values("output_tokens"), "count"),
    }
    latency = {name: statistics(population.values(ours), unit) for name, (ours, unit) in LATENCIES.items()}
    latency["inter_token_latency"] = _gaps(population)
    prompts, outputs = population.total("prompt_tokens"), population.total("output_tokens")
    amounts = dict(zip(_RATES, (prompts, outputs, prompts + outputs, finished), strict=True))
    throughput = {
        name: {"units": "queries/s" if name == "request_rate" else "tokens/s", "mean": rate}
        for name, amount in amounts.items()
        if (rate := population.per_s(amount)) == rate
    }
    return {"requests": requests, "latency": latency, "throughput": throughput}


def statistics(values: Floats, unit: str, factor: float = 1.0) -> dict[str, Any] | None:
    """What they tell of a distribution; None of an empty one."""
    if not len(values):
        return None
    values = values * factor
    told = {"units": unit, "mean": float(values.mean()), "min": float(values.min()), "max": float(values.max())}
    if len(values) > 1:
        told["stddev"] = float(values.std(ddof=1))
    return told | {name: float(np.percentile(values, p)) for name, p in PERCENTILES.items()}


def _gaps(population: Population) -> dict[str, Any] | None:
    middles, counts = population.gaps()
    if not counts.sum():
        return None
    known = figure_of(population.run, "itl_mean_s")
    mean = float((middles * counts).sum() / counts.sum()) if known is None else known
    told: dict[str, Any] = {"units": "s/token", "mean": mean}
    return told | {name: weighted_quantile(middles, counts, p / 100) for name, p in PERCENTILES.items()}


def _observability(results: Results, run: Run, options: Options) -> dict[str, Any] | None:
    table = results.table("replicas", run)
    if not len(table):
        return None
    pools = np.array(table["pool"].to_pylist(), dtype=object)
    columns = {name: np.asarray(values_of(table[name]), dtype=np.float64) for name in _OBSERVED}
    ends = np.asarray(values_of(table["end_s"]), dtype=np.float64)
    components = []
    for pool in dict.fromkeys(pools):
        chosen = pools == pool
        aggregate = {
            theirs: statistics(columns[ours][chosen], unit, factor)
            for ours, told in _OBSERVED.items()
            for theirs, unit, factor in told
        }
        series = {
            theirs: {"units": unit, "series": _series(ends[chosen], columns[ours][chosen] * factor, options)}
            for ours, told in _OBSERVED.items()
            for theirs, unit, factor in told
            if theirs in _IN_TIME
        }
        components.append({"component_label": str(pool), "aggregate": aggregate, "time_series": series})
    return {"components": components, "replica_status": _replica_status(results, run, options)}


_OBSERVED = {
    "kv_used_ratio": (("kv_cache_usage", "percent", 100.0),),
    "busy_ratio": (("gpu_utilization", "percent", 100.0),),
    "power_w": (("power_consumption", "Watts", 1.0),),
    "running": (("running_requests", "count", 1.0),),
    "waiting": (("waiting_requests", "count", 1.0),),
}
_IN_TIME = ("kv_cache_usage", "gpu_utilization", "power_consumption")


def _series(ends: Floats, values: Floats, options: Options) -> list[dict[str, Any]]:
    """Mean over the replicas of each interval."""
    times, places = np.unique(ends, return_inverse=True)
    means = np.bincount(places, weights=values) / np.bincount(places)
    every = -(-len(times) // _MOST_POINTS)
    return [
        {"ts": options.iso(float(t)), "mean": float(m)} for t, m in zip(times[::every], means[::every], strict=True)
    ]


def _replica_status(results: Results, run: Run, options: Options) -> dict[str, Any] | None:
    rows = results.table("fleet", run).select(["end_s", "pool", "replicas_wanted", "replicas_ready"]).to_pylist()
    if not rows:
        return None
    last_s = max(row["end_s"] for row in rows)
    controllers = [
        {
            "kind": "Deployment",
            "name": row["pool"],
            "desired_replicas": row["replicas_wanted"],
            "available_replicas": row["replicas_ready"],
            "ready_replicas": row["replicas_ready"],
        }
        for row in rows
        if row["end_s"] == last_s
    ]
    ready: dict[float, int] = {}
    for row in rows:
        ready[row["end_s"]] = ready.get(row["end_s"], 0) + row["replicas_ready"]
    return {
        "timestamp": (options.start + timedelta(seconds=last_s)).isoformat().replace("+00:00", "Z"),
        "controllers": controllers,
        "aggregate_ready_replicas": statistics(np.array(list(ready.values()), dtype=np.float64), "count"),
    }
