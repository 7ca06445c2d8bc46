"""The files of AIPerf: ``profile_export_aiperf.json`` with figures, ``profile_export.jsonl`` with one record per request.

AIPerf's inter-token latency is the mean gap of a request, our ``tpot_s`` (`fleetsim.metrics.definitions`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fleetsim.results.exports.files import complete, text_of, write_object
from fleetsim.results.exports.options import Options, Written
from fleetsim.results.exports.population import Population
from fleetsim.results.folder import Results, Run
from fleetsim.results.within import figure_of

JSON, JSONL = "profile_export_aiperf.json", "profile_export.jsonl"
_MS = 1e3
_PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
_DISTRIBUTIONS = {
    "time_to_first_token": ("ttft_s", _MS, "ms"),
    "inter_token_latency": ("tpot_s", _MS, "ms"),
    "request_latency": ("e2el_s", _MS, "ms"),
    "input_sequence_length": ("prompt_tokens", 1.0, "tokens"),
    "output_sequence_length": ("output_tokens", 1.0, "tokens"),
}
"""Metric -> our column, factor to their unit, their unit."""
_COLUMNS = ["request_id", "session_id", "turn", "status", "reason", "arrival_s", "end_s", "prompt_tokens"]
_COLUMNS += ["output_tokens", "ttft_s", "tpot_s", "e2el_s"]


def write(results: Results, run: Run, out: Path, options: Options) -> Written:
    """Write both files into a folder."""
    population = Population(results, run)
    files = [out / JSON]
    with complete(out / JSON) as file:
        write_object(file, _figures(population, options), {})
    if population.is_known:
        files.append(out / JSONL)
        with complete(out / JSONL) as file:
            for row in population.rows(_COLUMNS):
                file.write(text_of(_record(dict(zip(_COLUMNS, row, strict=True)), options)) + "\n")
    return Written(files)


def _record(row: dict[str, Any], options: Options) -> dict[str, Any]:
    finished = row["status"] == "finished"
    start_s, session = row["arrival_s"] or 0.0, row["session_id"]
    seconds = row["e2el_s"] if finished else (row["end_s"] or start_s) - start_s
    metadata = {
        "session_num": row["request_id"] if session is None else session,
        "x_request_id": str(row["request_id"]),
        "x_correlation_id": str(row["request_id"] if session is None else session),
        "conversation_id": None if session is None else str(session),
        "turn_index": row["turn"],
        "request_start_ns": options.epoch_ns(start_s),
        "request_ack_ns": None,
        "request_end_ns": options.epoch_ns(start_s) + round((seconds or 0.0) * 1e9),
        "worker_id": "fleetsim",
        "record_processor_id": "fleetsim",
        "benchmark_phase": "profiling",
        "was_cancelled": False,
        "cancellation_time_ns": None,
    }
    if not finished:
        told = {"code": None, "type": row["status"], "message": row["reason"] or row["status"]}
        return {
            "metadata": metadata,
            "metrics": {"error_isl": {"value": row["prompt_tokens"], "unit": "tokens"}},
            "error": told,
        }
    metrics = {
        name: {"value": row[column] * factor if factor != 1.0 else row[column], "unit": unit}
        for name, (column, factor, unit) in _DISTRIBUTIONS.items()
        if row[column] is not None
    }
    metrics["output_token_count"] = metrics["output_sequence_length"]
    if row["tpot_s"]:
        metrics["output_token_throughput_per_user"] = {"value": 1 / row["tpot_s"], "unit": "tokens/sec/user"}
    return {"metadata": metadata, "metrics": metrics, "error": None}


def _figures(population: Population, options: Options) -> dict[str, Any]:
    run = population.run
    finished = int(population.finished.sum())
    prompts, outputs = population.total("prompt_tokens"), population.total("output_tokens")
    figures: dict[str, Any] = {"schema_version": "1.0", "aiperf_version": None}
    for name, (column, factor, unit) in _DISTRIBUTIONS.items():
        values = population.values(column) * factor
        if len(values):
            figures[name] = _statistics(values, unit)
    tpot = population.values("tpot_s")
    if len(tpot) and tpot.min() > 0:
        figures["output_token_throughput_per_user"] = _statistics(1 / tpot, "tokens/sec/user")
    single = {
        "request_throughput": (population.per_s(finished), "requests/sec"),
        "output_token_throughput": (population.per_s(outputs), "tokens/sec"),
        "total_token_throughput": (population.per_s(prompts + outputs), "tokens/sec"),
        "request_count": (float(finished), "requests"),
        "error_request_count": (float(population.counted.sum()) - finished, "requests"),
        "total_isl": (float(prompts), "tokens"),
        "total_osl": (float(outputs), "tokens"),
        "benchmark_duration": (population.duration_s, "sec"),
    }
    scenario = run.manifest.get("scenario") or {}
    if scenario.get("slo"):
        single["goodput"] = (figure_of(run, "goodput_requests_per_s") or 0.0, "requests/sec")
    figures |= {name: {"unit": unit, "avg": value} for name, (value, unit) in single.items()}
    end_s = population.start_s + population.duration_s
    known = end_s == end_s
    return figures | {
        "input_config": {"fleetsim": {"scenario": scenario, "run": run.id, "label": run.label}},
        "was_cancelled": False,
        "error_summary": [],
        "start_time": options.iso(population.start_s) if known else None,
        "end_time": options.iso(end_s) if known else None,
    }


def _statistics(values: np.ndarray[Any, np.dtype[np.float64]], unit: str) -> dict[str, Any]:
    told = {"unit": unit, "avg": float(values.mean()), "min": float(values.min()), "max": float(values.max())}
    told |= {f"p{p}": float(np.percentile(values, p)) for p in _PERCENTILES}
    return told | {"std": float(values.std())}
