"""The files of AIPerf: ``profile_export_aiperf.json`` with figures, ``profile_export.jsonl`` with one record per request.

AIPerf's inter-token latency is the mean gap of a request: our ``tpot_s``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fleetsim.errors import Finding, InputError
from fleetsim.results.imports.measured import Measured, Requests

TOOL = "AIPerf"
JSON, JSONL = "profile_export_aiperf.json", "profile_export.jsonl"
_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0}
_LATENCIES = {"ttft": "time_to_first_token", "tpot": "inter_token_latency", "e2el": "request_latency"}
_STATISTICS = {"mean": "avg", "p50": "p50", "p90": "p90", "p95": "p95", "p99": "p99"}
_SINGLE = {
    "finished": "request_count",
    "failed": "error_request_count",
    "prompt_tokens": "total_isl",
    "output_tokens": "total_osl",
    "requests_per_s": "request_throughput",
    "output_tokens_per_s": "output_token_throughput",
    "total_tokens_per_s": "total_token_throughput",
    "goodput_requests_per_s": "goodput",
    "makespan_s": "benchmark_duration",
    "prompt_tokens_mean": "input_sequence_length",
    "output_tokens_mean": "output_sequence_length",
}
_COUNTS = ("finished", "failed", "prompt_tokens", "output_tokens")


def is_one(content: Any) -> bool:
    """Whether JSON is the file with figures."""
    return isinstance(content, Mapping) and any(
        isinstance(content.get(name), Mapping) and "avg" in content[name]
        for name in ("request_latency", "time_to_first_token")
    )


def is_record(content: Any) -> bool:
    """Whether JSON is a line of the file with records."""
    return isinstance(content, Mapping) and {"metadata", "metrics"} <= content.keys()


def read(content: Mapping[str, Any] | None, path: Path) -> Measured:
    """The run that the files tell of; records are looked for beside the figures and the other way round.

    Parameters
    ----------
    content : mapping or None
        The file with figures, if `path` is that one; None if it is the one with records.
    path : path
        Either file.
    """
    records = path if content is None else path.with_name(JSONL)
    if content is None and path.with_name(JSON).is_file():
        content = json.loads(path.with_name(JSON).read_text(encoding="utf-8"))
    figures = {} if content is None else _figures(content)
    details = {} if content is None else {"input_config": content.get("input_config")}
    requests = _requests(records) if records.is_file() else None
    name = _name(content, path)
    return Measured(TOOL, name, requests, figures, None, details)


def _name(content: Mapping[str, Any] | None, path: Path) -> str:
    config = (content or {}).get("input_config") or {}
    ours = config.get("fleetsim") or {}
    models = (config.get("endpoint") or {}).get("model_names") or []
    return str(ours.get("label") or ", ".join(map(str, models)) or path.parent.name)


def _figures(content: Mapping[str, Any]) -> dict[str, float | int | None]:
    figures: dict[str, float | int | None] = {}
    for ours, theirs in _LATENCIES.items():
        told = content.get(theirs) or {}
        factor = _SECONDS.get(str(told.get("unit")), 1e-3)
        for ours_too, statistic in _STATISTICS.items():
            value = told.get(statistic)
            figures[f"{ours}_{ours_too}_s"] = None if value is None else float(value) * factor
    for ours, theirs in _SINGLE.items():
        value = (content.get(theirs) or {}).get("avg")
        figures[ours] = int(value) if value is not None and ours in _COUNTS else value
    if figures["finished"] is not None:
        figures["requests"] = int(figures["finished"]) + int(figures["failed"] or 0)
    return figures


def _requests(path: Path) -> Requests | None:
    columns: dict[str, list[Any]] = {name: [] for name in Requests.__dataclass_fields__}
    first_ns: int | None = None
    sessions: dict[str, int] = {}
    for record in _records(path):
        metadata, metrics = record["metadata"], record["metrics"] or {}
        error = record.get("error")
        start_ns = int(metadata["request_start_ns"])
        first_ns = start_ns if first_ns is None else first_ns
        failed = metrics.get("error_isl") or {}
        prompt = (metrics.get("input_sequence_length") or failed).get("value")
        tokens = metrics.get("output_sequence_length") or metrics.get("output_token_count") or {}
        session = metadata.get("conversation_id") if metadata.get("turn_index") is not None else None
        columns["arrival_s"].append((start_ns - first_ns) / 1e9)
        columns["prompt_tokens"].append(_or_nan(prompt))
        columns["output_tokens"].append(_or_nan(tokens.get("value")))
        columns["ttft_s"].append(_seconds(metrics.get("time_to_first_token")))
        columns["tpot_s"].append(_seconds(metrics.get("inter_token_latency")))
        columns["e2el_s"].append(_seconds(metrics.get("request_latency")))
        columns["finished"].append(error is None)
        columns["reasons"].append(None if error is None else str(error.get("message") or error.get("type"))[:200])
        columns["sessions"].append(None if session is None else sessions.setdefault(str(session), len(sessions)))
        columns["turns"].append(int(metadata.get("turn_index") or 0))
    if not columns["finished"]:
        return None
    numbers = ("prompt_tokens", "output_tokens", "ttft_s", "e2el_s", "tpot_s", "arrival_s")
    arrays = {name: np.array(columns[name], dtype=np.float64) for name in numbers}
    finished = np.array(columns["finished"], dtype=bool)
    return Requests(
        **arrays, finished=finished, reasons=columns["reasons"], sessions=columns["sessions"], turns=columns["turns"]
    )


def _records(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                record = json.loads(text)
            except ValueError as error:
                raise InputError(Finding(f"is not JSON: {error}", file=str(path), line=line)) from error
            if not is_record(record) or "request_start_ns" not in record["metadata"]:
                raise InputError(Finding("is no record of AIPerf", file=str(path), line=line))
            if record["metadata"].get("benchmark_phase", "profiling") == "profiling":
                yield record


def _seconds(metric: Mapping[str, Any] | None) -> float:
    if metric is None or metric.get("value") is None:
        return float("nan")
    return float(metric["value"]) * _SECONDS.get(str(metric.get("unit")), 1e-3)


def _or_nan(value: Any) -> float:
    return float("nan") if value is None else float(value)
