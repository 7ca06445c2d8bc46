"""Allowed but absurd numbers: every numeric field at its edges must end in a run or in a refusal, soon."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from .mutations import SCENARIO, TRACES
from .test_damaged_files import call, folder

__all__ = ["folder"]

COUNTS = ("1", "2147483647", "9007199254740993", "100000")
RATIOS = ("1e-300", "1", "0.999999", "1e300")
TIMES = ("1e-300 s", "1e-9 s", "1e300 s")
RATES = ("1e-300 req/s", "1e-9 req/s", "1e9 req/s", "1e300 req/s")

FIELDS = {
    "seed": COUNTS,
    "workload.requests": ("1", "100000"),
    "workload.arrivals.rate": RATES,
    "workload.arrivals.burstiness": RATIOS,
    "workload.prompt_tokens.mean": RATIOS,
    "workload.prompt_tokens.cv": RATIOS,
    "workload.prompt_tokens.max": COUNTS,
    "workload.output_tokens.value": COUNTS,
    "workload.prefixes.groups": COUNTS,
    "workload.prefixes.tokens": COUNTS,
    "workload.prefixes.zipf": RATIOS,
    "slo.ttft": TIMES,
    "slo.attainment": RATIOS,
    "pools[0].replicas": ("2147483647", "9007199254740993"),
    "pools[0].parallelism.tp": COUNTS,
    "pools[0].parallelism.pp": COUNTS,
    "pools[0].parallelism.dp": COUNTS,
    "pools[0].parallelism.ep": COUNTS,
    "pools[0].engine.scheduler.max_batched_tokens": COUNTS,
    "pools[0].engine.scheduler.max_seqs": COUNTS,
    "pools[0].engine.kv.block_tokens": COUNTS,
    "pools[0].engine.kv.memory_ratio": RATIOS,
    "pools[0].engine.kv.capacity_tokens": COUNTS,
    "pools[0].price": ("1e300 USD/h",),
    "run.warmup_ratio": RATIOS,
    "run.interval": TIMES,
    "run.horizon": TIMES,
    "gateway.router.choices": COUNTS,
}

ARRIVALS = [
    pattern.replace("RATE", rate)
    for rate in ("1e-9 req/s", "1 req/s", "1e9 req/s")
    for pattern in (
        "{process: gamma, rate: RATE, burstiness: 1e6}",
        "{process: weibull, rate: RATE, shape: 0.051}",
        "{process: weibull, rate: RATE, shape: 1000}",
        "{process: deterministic, rate: RATE}",
        "{process: mmpp, rates: [RATE, 0], holding: [1e-9 s, 1 d]}",
        "{process: mmpp, rates: [RATE, 0], holding: [1e9 d, 1e9 d]}",
        "{process: diurnal, rate: RATE, amplitude: 1, period: 1e-9 s}",
        "{process: diurnal, rate: RATE, amplitude: 1, period: 1e9 d, phase: 1e9 d}",
        "{process: piecewise, steps: [{duration: 1e-9 s, rate: RATE}, {duration: 1 s, rate: 0}]}",
        "{process: piecewise, steps: [{duration: 1e9 d, rate: 0}, {duration: 1 s, rate: RATE}]}",
    )
] + [
    "{process: closed-loop, concurrency: 2147483647}",
    "{process: closed-loop, concurrency: 3, think_time: 1e9 d}",
]

WORKLOADS = [
    "{kind: synthetic, duration: 1e-9 s, profile: azure2023-conv}",
    "{kind: synthetic, requests: 5, duration: 1e9 d, profile: azure2023-code}",
    "{kind: synthetic, requests: 5, profile: arxiv-summarisation}",
]

REPLAYS = [
    "loop: 1000",
    "loop: 2147483647, limit: 20",
    "limit: 2147483647",
    "slice: {start: 1e9 d}",
    "slice: {end: 1e300 s}",
    "rate_scale: 1e6",
    "rate_scale: 1e-300",
    "rate_scale: 1e-9, rate_scaling: thin",
    "sessions: released, loop: 3",
]

SESSIONS = [
    "{turns: {distribution: fixed, value: 2147483647}}",
    "{turns: {distribution: fixed, value: 3}, think_time: 1e9 d}",
    "{turns: {distribution: fixed, value: 3}, max_context_tokens: 1}",
    "{turns: {distribution: fixed, value: 3}, max_context_tokens: 2147483647}",
]

CASES = [f"{path}={value}" for path, values in FIELDS.items() for value in values]
CASES += [f"workload.arrivals={value}" for value in ARRIVALS] + [f"workload={value}" for value in WORKLOADS]
CASES += [f"workload.sessions={value}" for value in SESSIONS]
CASES += [
    f"workload={{kind: trace, format: {form}, path: {name}, {more}}}" for form, name in TRACES for more in REPLAYS
]


@pytest.mark.slow
@pytest.mark.parametrize("override", CASES)
def test_extreme_values(folder: Path, override: str) -> None:
    (folder / "s.yaml").write_text(SCENARIO)
    for (_, name), text in TRACES.items():
        (folder / name).write_text(text)
    valid = call(folder, "validate", "s.yaml", "--set", override)
    ran = call(folder, "run", "s.yaml", "--out", "out", "--json", "--check", "--set", override)
    assert ran == valid
    assert (folder / "out" / "manifest.json").exists() == (ran == 0)
    shutil.rmtree(folder / "out", ignore_errors=True)
