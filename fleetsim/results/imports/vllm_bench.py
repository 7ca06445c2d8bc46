"""The result file of ``vllm bench serve``, with per-request lists (``--save-detailed``) or without."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fleetsim.errors import Finding, InputError
from fleetsim.metrics.statistics import Floats
from fleetsim.results.imports.measured import Measured, Requests, gap_counts_of

TOOL = "vllm bench serve"
_MS = 1e-3
_LATENCIES = ("ttft", "tpot", "itl", "e2el")
_COUNTS = {"requests": "num_prompts", "finished": "completed", "failed": "failed"}
_COUNTS |= {"prompt_tokens": "total_input_tokens", "output_tokens": "total_output_tokens", "makespan_s": "duration"}
_RATES = {"requests_per_s": "request_throughput", "output_tokens_per_s": "output_throughput"}
_RATES |= {"total_tokens_per_s": "total_token_throughput", "goodput_requests_per_s": "request_goodput"}
_DETAILS = (
    "model_id",
    "backend",
    "endpoint_type",
    "date",
    "request_rate",
    "burstiness",
    "max_concurrency",
    "tokenizer_id",
)


def is_one(content: Any) -> bool:
    """Whether JSON is such a file."""
    return isinstance(content, Mapping) and ("mean_ttft_ms" in content or "ttfts" in content) and "duration" in content


def read(content: Mapping[str, Any], path: Path) -> Measured:
    """The run that the file tells of.

    Lists beat figures: percentiles that the file was not asked for come from them. Throughput is told over the file's own duration,
    which begins before the first request.
    """
    requests, counts = None, None
    if content.get("ttfts"):
        requests, counts = _requests(content, path)
    figures: dict[str, float | int | None] = {ours: content.get(theirs) for ours, theirs in (_COUNTS | _RATES).items()}
    for name in _LATENCIES:
        for theirs, ours in (("mean", "mean"), ("median", "p50"), ("p90", "p90"), ("p95", "p95"), ("p99", "p99")):
            value = content.get(f"{theirs}_{name}_ms")
            figures[f"{name}_{ours}_s"] = None if value is None else float(value) * _MS
    if figures["requests"] is None and figures["finished"] is not None:
        figures["requests"] = int(figures["finished"]) + int(figures["failed"] or 0)
    name = str(content.get("label") or content.get("model_id") or path.stem)
    details = {key: content[key] for key in _DETAILS if content.get(key) is not None}
    return Measured(TOOL, name, requests, figures, counts, details)


def _requests(content: Mapping[str, Any], path: Path) -> tuple[Requests, list[int] | None]:
    count = len(content["ttfts"])

    def listed(name: str) -> list[Any] | None:
        values = content.get(name)
        if values is None:
            return None
        if not isinstance(values, list) or len(values) != count:
            raise InputError(Finding(f"has {count} ttfts and another number of {name}", file=str(path), path=name))
        return values

    errors = listed("errors") or [""] * count
    finished = np.array([not error for error in errors])
    ttft = _floats(listed("ttfts"), count)
    itls = listed("itls")
    latencies = listed("latencies")
    e2el = _floats(latencies, count)
    if latencies is None and itls is not None:
        e2el = ttft + np.array([sum(gaps) for gaps in itls])
    outputs = _floats(listed("output_lens"), count)
    with np.errstate(invalid="ignore", divide="ignore"):
        tpot = np.where(outputs > 1, (e2el - ttft) / (outputs - 1), np.nan)
    requests = Requests(
        prompt_tokens=_floats(listed("input_lens"), count),
        output_tokens=outputs,
        ttft_s=ttft,
        e2el_s=e2el,
        tpot_s=tpot,
        finished=finished,
        arrival_s=_floats(listed("start_times"), count),
        reasons=[str(error)[:200] or None for error in errors],
        itl_max_s=None if itls is None else np.array([max(gaps, default=np.nan) for gaps in itls]),
    )
    if itls is None:
        return requests, None
    gaps = np.array([gap for own, done in zip(itls, finished, strict=True) if done for gap in own])
    return requests, gap_counts_of(gaps) if len(gaps) else None


def _floats(values: list[Any] | None, count: int) -> Floats:
    if values is None:
        return np.full(count, np.nan)
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
