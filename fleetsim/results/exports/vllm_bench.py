"""The result file of ``vllm bench serve --save-result --save-detailed``.

Latencies are in milliseconds in the figures and in seconds in the lists, as there. Single gaps between tokens (``itls``) are not
kept by a simulation; their figures come from its histogram, in buckets of 1 %.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fleetsim.results.exports.files import complete, write_object
from fleetsim.results.exports.options import Options, Written
from fleetsim.results.exports.population import Population, weighted_quantile
from fleetsim.results.folder import Results, Run
from fleetsim.results.within import figure_of
from fleetsim.units import parse

LATENCIES = {"ttft": "ttft_s", "tpot": "tpot_s", "e2el": "e2el_s"}
"""Their name, and ours (`fleetsim.metrics.definitions`)."""
PERCENTILES = (50, 90, 95, 99)
_MS = 1e3


def write(results: Results, run: Run, out: Path, options: Options) -> Written:
    """Write one JSON object."""
    population = Population(results, run)
    lists = _lists(population) if population.is_known else {}
    with complete(out) as file:
        write_object(file, _fields(population, options), lists)
    return Written([out])


def _lists(population: Population) -> dict[str, Iterable[Any]]:
    """One value per request, in the order in which they were sent; 0 where one did not finish."""
    finished = population.finished[population.order]

    def of_finished(column: str) -> list[float]:
        told: list[float] = np.where(finished, population.ordered(column), 0.0).tolist()
        return told

    reasons = zip(population.texts("status"), population.texts("reason"), strict=True)
    return {
        "input_lens": map(int, population.ordered("prompt_tokens")),
        "output_lens": map(int, of_finished("output_tokens")),
        "ttfts": of_finished("ttft_s"),
        "latencies": of_finished("e2el_s"),
        "start_times": population.ordered("arrival_s").tolist(),
        "errors": ("" if status == "finished" else reason or status for status, reason in reasons),
    }


def _fields(population: Population, options: Options) -> dict[str, Any]:
    run = population.run
    completed = int(population.finished.sum())
    prompts, outputs = population.total("prompt_tokens"), population.total("output_tokens")
    scenario = run.manifest.get("scenario") or {}
    pools = scenario.get("pools") or []
    goodput = figure_of(run, "goodput_requests_per_s") if scenario.get("slo") else None
    return {
        "date": options.start.strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": "fleetsim",
        "backend": "fleetsim",
        "label": run.label,
        "model_id": ", ".join(dict.fromkeys(str(pool.get("llm")) for pool in pools)) or run.manifest.get("model"),
        "tokenizer_id": None,
        "num_prompts": len(population.counted[population.counted]),
        **_sent(population, scenario.get("workload") or {}),
        "duration": population.duration_s,
        "completed": completed,
        "failed": int(population.counted.sum()) - completed,
        "total_input_tokens": prompts,
        "total_output_tokens": outputs,
        "request_throughput": population.per_s(completed),
        "request_goodput": goodput,
        "output_throughput": population.per_s(outputs),
        "total_token_throughput": population.per_s(prompts + outputs),
        **_latencies(population),
        **_gaps(population),
    }


def _sent(population: Population, workload: Mapping[str, Any]) -> dict[str, Any]:
    """How the client sent: at a rate, or keeping a number in flight."""
    arrivals = workload.get("arrivals") or {}
    if arrivals.get("process") == "closed-loop" and parse(arrivals.get("think_time", 0), "time") == 0:
        return {"request_rate": "inf", "max_concurrency": arrivals["concurrency"]}
    rate = population.per_s(int(population.counted.sum())) if population.is_known else "inf"
    return {"request_rate": rate, "max_concurrency": None}


def _latencies(population: Population) -> dict[str, float]:
    fields: dict[str, float] = {}
    for theirs, ours in LATENCIES.items():
        values = population.values(ours) * _MS
        if len(values):
            fields |= {f"mean_{theirs}_ms": float(values.mean()), f"median_{theirs}_ms": float(np.median(values))}
            fields[f"std_{theirs}_ms"] = float(values.std())
            fields |= {f"p{p}_{theirs}_ms": float(np.percentile(values, p)) for p in PERCENTILES}
    return fields


def _gaps(population: Population) -> dict[str, float]:
    middles, counts = population.gaps()
    if not counts.sum():
        return {}
    middles = middles * _MS
    known = figure_of(population.run, "itl_mean_s")
    mean = float((middles * counts).sum() / counts.sum()) if known is None else known * _MS
    fields = {"mean_itl_ms": mean, "median_itl_ms": weighted_quantile(middles, counts, 0.5)}
    fields["std_itl_ms"] = float(((middles - mean) ** 2 * counts).sum() / counts.sum()) ** 0.5
    return fields | {f"p{p}_itl_ms": weighted_quantile(middles, counts, p / 100) for p in PERCENTILES}
