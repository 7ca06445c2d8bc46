"""The benchmark report of llm-d, version 0.2 and 0.2.1: figures only, in JSON or YAML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fleetsim.errors import Finding, InputError
from fleetsim.results.imports.measured import Measured

TOOL = "llm-d"
_SECONDS = {"s": 1.0, "ms": 1e-3, "s/token": 1.0, "ms/token": 1e-3}
_LATENCIES = {
    "ttft": "time_to_first_token",
    "tpot": "time_per_output_token",
    "itl": "inter_token_latency",
    "ntpot": "normalized_time_per_output_token",
    "e2el": "request_latency",
}
_RATES = {
    "requests_per_s": "request_rate",
    "prompt_tokens_per_s": "input_token_rate",
    "output_tokens_per_s": "output_token_rate",
    "total_tokens_per_s": "total_token_rate",
}
_STATISTICS = ("mean", "p50", "p90", "p95", "p99")


def is_one(content: Any) -> bool:
    """Whether JSON or YAML is such a report."""
    return isinstance(content, Mapping) and {"version", "run", "results"} <= content.keys()


def read(content: Mapping[str, Any], path: Path) -> Measured:
    """The run that the report tells of."""
    if not str(content["version"]).startswith("0.2"):
        message = f"is a report of version {content['version']}; 0.2 and 0.2.1 are read"
        raise InputError(Finding(message, file=str(path), path="version"))
    aggregate = ((content["results"] or {}).get("request_performance") or {}).get("aggregate") or {}
    if not aggregate:
        raise InputError(
            Finding("has no request performance", file=str(path), path="results.request_performance.aggregate")
        )
    figures: dict[str, float | int | None] = {}
    for ours, theirs in _LATENCIES.items():
        told = (aggregate.get("latency") or {}).get(theirs) or {}
        factor = _factor(told, path, theirs)
        for statistic in _STATISTICS:
            value = told.get(statistic)
            figures[f"{ours}_{statistic}_s"] = None if value is None else float(value) * factor
    for ours, theirs in _RATES.items():
        figures[ours] = ((aggregate.get("throughput") or {}).get(theirs) or {}).get("mean")
    figures |= _counts(aggregate.get("requests") or {})
    run = content["run"] or {}
    figures["makespan_s"] = _duration_s(str((run.get("time") or {}).get("duration") or ""))
    scenario = content.get("scenario") or {}
    load = ((scenario.get("load") or {}).get("standardized")) or {}
    stack = [(component.get("standardized") or {}) for component in scenario.get("stack") or []]
    details = {"uid": run.get("uid"), "load": load, "stack": stack}
    return Measured(TOOL, str(run.get("description") or run.get("eid") or path.stem), None, figures, None, details)


def _factor(told: Mapping[str, Any], path: Path, name: str) -> float:
    if not told:
        return 1.0
    unit = str(told.get("units"))
    if unit not in _SECONDS:
        place = f"results.request_performance.aggregate.latency.{name}.units"
        raise InputError(Finding(f'"{unit}" is no unit of time', file=str(path), path=place, hint=", ".join(_SECONDS)))
    return _SECONDS[unit]


def _counts(requests: Mapping[str, Any]) -> dict[str, float | int | None]:
    total = requests.get("total")
    failed, unfinished = int(requests.get("failures") or 0), int(requests.get("incomplete") or 0)
    figures: dict[str, float | int | None] = {"requests": total, "failed": failed, "unfinished": unfinished}
    finished = None if total is None else int(total) - failed - unfinished
    figures["finished"] = finished
    for ours, theirs in (("prompt_tokens", "input_length"), ("output_tokens", "output_length")):
        mean = (requests.get(theirs) or {}).get("mean")
        figures[f"{ours}_mean"] = mean
        figures[ours] = None if mean is None or finished is None else round(float(mean) * finished)
    return figures


def _duration_s(text: str) -> float | None:
    """Seconds of an ISO 8601 duration of days and less."""
    found = re.fullmatch(r"P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:([\d.]+)S)?)?", text)
    if found is None or not any(found.groups()):
        return None
    return sum(float(part or 0) * scale for part, scale in zip(found.groups(), (86400, 3600, 60, 1), strict=True))
