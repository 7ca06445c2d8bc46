"""Runs simulated with known constants, written in the formats of benchmark tools."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleetsim.calibration.engine_fit import Server
from fleetsim.calibration.runs import Load, Run
from fleetsim.scenario.load import LoadedScenario, load_mapping

SERVER = {
    "schema": 1,
    "name": "own server",
    "workload": {
        "kind": "synthetic",
        "requests": 10,
        "arrivals": {"process": "poisson", "rate": "1 req/s"},
        "prompt_tokens": {"distribution": "fixed", "value": 100},
        "output_tokens": {"distribution": "fixed", "value": 10},
    },
    "pools": [{"name": "main", "llm": "llama-3.1-8b", "accelerator": "h100-sxm"}],
}
TRUTH = {"host": 3e-3, "frontend": 0.04, "scale": 1.2}


@pytest.fixture(scope="session")
def server_scenario() -> LoadedScenario:
    return load_mapping(SERVER)


def sent(load: Load, requests: int = 150, prompt: int = 512, output: int = 64, spread: float = 0.5) -> Run:
    """What a client would send: lognormal lengths around `prompt` and `output`."""
    rng = np.random.default_rng(requests + prompt)
    prompts = np.maximum(rng.lognormal(np.log(prompt), spread, requests), 1).astype(np.int64)
    outputs = np.maximum(rng.lognormal(np.log(output), spread, requests), 2).astype(np.int64)
    arrivals = None if load.concurrency else load.arrivals_s(requests)
    return Run("sent", Path("sent"), load, prompts, outputs, arrivals, np.zeros(1), np.zeros(1))


def measured(server: Server, run: Run, constants: Mapping[str, float], detailed: bool = True) -> Run:
    """The run with the times of a server that has these constants."""
    times = server.simulate(run, constants)
    if detailed:
        return replace(run, ttft_s=times.ttft_s, tpot_s=times.tpot_s)
    return replace(run, ttft_s=np.array([times.ttft_s.mean()]), tpot_s=np.array([np.nanmean(times.tpot_s)]))


def vllm_json(run: Run, detailed: bool) -> dict[str, Any]:
    """``vllm bench serve --save-result``, keys as of vLLM 0.19."""
    ttft, tpot, count = run.ttft_s, run.tpot_s, len(run.prompt_tokens)
    content: dict[str, Any] = {
        "date": "20261120-101500",
        "endpoint_type": "vllm",
        "backend": "vllm",
        "label": "vllm",
        "model_id": "meta-llama/Llama-3.1-8B-Instruct",
        "tokenizer_id": "meta-llama/Llama-3.1-8B-Instruct",
        "num_prompts": count,
        "request_rate": run.load.rate_per_s or "inf",
        "burstiness": 1.0,
        "max_concurrency": run.load.concurrency,
        "duration": 10.0,
        "completed": count,
        "failed": 0,
        "total_input_tokens": int(run.prompt_tokens.sum()),
        "total_output_tokens": int(run.output_tokens.sum()),
        "request_throughput": count / 10.0,
        "request_goodput": None,
        "mean_ttft_ms": float(ttft.mean() * 1e3),
        "median_ttft_ms": float(np.median(ttft) * 1e3),
        "std_ttft_ms": float(ttft.std() * 1e3),
        "p99_ttft_ms": float(np.quantile(ttft, 0.99) * 1e3),
        "mean_tpot_ms": float(np.nanmean(tpot) * 1e3),
        "mean_itl_ms": float(np.nanmean(tpot) * 1e3),
    }
    if detailed:
        starts = run.arrival_s if run.arrival_s is not None else np.arange(count) * 0.01
        content |= {
            "input_lens": run.prompt_tokens.tolist(),
            "output_lens": run.output_tokens.tolist(),
            "ttfts": ttft.tolist(),
            "itls": [[t] * (n - 1) for t, n in zip(tpot.tolist(), run.output_tokens.tolist(), strict=True)],
            "start_times": (starts + 181_234.5).tolist(),
            "generated_texts": ["…"] * count,
            "errors": [""] * count,
        }
    return content


def _summary(
    values: Sequence[float] | np.ndarray, weights: Sequence[float] | np.ndarray | None = None
) -> dict[str, Any]:
    v = np.asarray(values, float)
    levels = {
        "p001": 0.1,
        "p01": 1,
        "p05": 5,
        "p10": 10,
        "p25": 25,
        "p50": 50,
        "p75": 75,
        "p90": 90,
        "p95": 95,
        "p99": 99,
        "p999": 99.9,
    }
    return {
        "mean": float(np.average(v, weights=weights)),
        "median": float(np.median(v)),
        "min": float(v.min()),
        "max": float(v.max()),
        "std_dev": float(v.std()),
        "count": len(v),
        "total_sum": float(v.sum()),
        "percentiles": {key: float(np.percentile(v, level)) for key, level in levels.items()},
    }


def guidellm_json(runs: Sequence[Run], detailed: bool) -> dict[str, Any]:
    """GuideLLM's benchmarks.json."""
    benchmarks = []
    for run in runs:
        load = run.load
        strategy = (
            {"type_": "concurrent", "streams": load.concurrency}
            if load.concurrency
            else {"type_": "poisson", "rate": load.rate_per_s}
        )
        starts = run.arrival_s if run.arrival_s is not None else np.arange(len(run.ttft_s)) * 0.01
        columns = zip(
            run.prompt_tokens.tolist(),
            run.output_tokens.tolist(),
            run.ttft_s.tolist(),
            run.tpot_s.tolist(),
            starts.tolist(),
            strict=True,
        )
        listed = [
            {
                "prompt_tokens": p,
                "output_tokens": o,
                "time_to_first_token_ms": t * 1e3,
                "inter_token_latency_ms": g * 1e3,
                "request_start_time": 1.7e9 + s,
            }
            for p, o, t, g, s in columns
        ]
        metrics = {
            "time_to_first_token_ms": {"successful": _summary(run.ttft_s * 1e3)},
            "inter_token_latency_ms": {"successful": _summary(run.tpot_s * 1e3, run.output_tokens - 1)},
            "prompt_token_count": {"successful": _summary(run.prompt_tokens)},
            "output_token_count": {"successful": _summary(run.output_tokens)},
        }
        requests = {"successful": listed if detailed else listed[:5], "incomplete": [], "errored": []}
        benchmarks.append(
            {
                "type_": "generative_benchmark",
                "config": {"strategy": strategy},
                "metrics": metrics,
                "requests": requests,
            }
        )
    return {"metadata": {"version": 1}, "benchmarks": benchmarks}


def aiperf_json(run: Run) -> dict[str, Any]:
    """AIPerf's profile_export_aiperf.json, schema 1.1."""

    def block(values: np.ndarray, unit: str) -> dict[str, Any]:
        levels = {f"p{p}": float(np.percentile(values, p)) for p in (1, 5, 10, 25, 50, 75, 90, 95, 99)}
        return {
            "unit": unit,
            "avg": float(values.mean()),
            "min": float(values.min()),
            "max": float(values.max()),
            **levels,
        }

    phase = {
        "name": "profiling",
        "type": "concurrency",
        "requests": len(run.ttft_s),
        "concurrency": run.load.concurrency,
    }
    return {
        "schema_version": "1.1",
        "request_count": {"unit": "requests", "avg": float(len(run.ttft_s))},
        "time_to_first_token": block(run.ttft_s * 1e3, "ms"),
        "inter_token_latency": block(run.tpot_s * 1e3, "ms"),
        "input_sequence_length": block(run.prompt_tokens.astype(float), "tokens"),
        "output_sequence_length": block(run.output_tokens.astype(float), "tokens"),
        "input_config": {"endpoint": {"streaming": True}, "phases": [{"name": "warmup", "concurrency": 1}, phase]},
    }


def aiperf_lines(run: Run) -> str:
    """AIPerf's profile_export.jsonl."""
    assert run.arrival_s is not None
    lines = []
    for i in range(len(run.ttft_s)):
        start_ns = 1_759_813_207_532_900_363 + round(float(run.arrival_s[i]) * 1e9)
        metrics = {
            "input_sequence_length": {"value": int(run.prompt_tokens[i]), "unit": "tokens"},
            "output_sequence_length": {"value": int(run.output_tokens[i]), "unit": "tokens"},
            "time_to_first_token": {"value": float(run.ttft_s[i] * 1e3), "unit": "ms"},
            "inter_token_latency": {"value": float(run.tpot_s[i] * 1e3), "unit": "ms"},
        }
        metadata = {
            "session_num": i,
            "request_start_ns": start_ns,
            "benchmark_phase": "profiling",
            "was_cancelled": False,
        }
        lines.append(json.dumps({"metadata": metadata, "metrics": metrics, "error": None}))
    failed = {
        "metadata": {"request_start_ns": 1},
        "metrics": {"error_isl": {"value": 5, "unit": "tokens"}},
        "error": {"code": 499},
    }
    return "\n".join([*lines, json.dumps(failed)]) + "\n"


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[str, Any], Path]:
    """Write JSON (or text) to a file of that name."""

    def write(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write
