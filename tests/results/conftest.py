"""Results made by real runs and sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fleetsim

SCENARIO: dict[str, Any] = {
    "schema": 1,
    "name": "two pools",
    "seed": 3,
    "workload": {
        "kind": "synthetic",
        "requests": 120,
        "arrivals": {"process": "poisson", "rate": "20 req/s"},
        "prompt_tokens": {"distribution": "lognormal", "mean": 500, "cv": 1.0, "min": 16, "max": 4000},
        "output_tokens": {"distribution": "lognormal", "mean": 20, "cv": 1.0, "min": 1, "max": 100},
    },
    "slo": {"ttft": "500 ms", "tpot": "60 ms", "attainment": 0.9},
    "gateway": {"router": {"policy": "round-robin"}},
    "pools": [
        {"name": "fast", "llm": "llama-3.1-8b", "accelerator": "h100-sxm", "replicas": 1},
        {"name": "cheap", "llm": "llama-3.1-8b", "accelerator": "a10g", "replicas": 1},
    ],
    "run": {"interval": "1 s"},
}
ROUTER, RATE = "gateway.router", "workload.arrivals.rate"
ROUTERS, RATES = ("round-robin", "least-outstanding"), (10.0, 20.0)


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of routers x rates x two seeds; not to be changed."""
    out = tmp_path_factory.mktemp("results") / "routers"
    axes = {ROUTER: list(ROUTERS), RATE: [f"{rate:g} req/s" for rate in RATES]}
    fleetsim.sweep(SCENARIO, axes, out=out, name="routers", replications=2, jobs=1)
    return out


@pytest.fixture(scope="session")
def half_failed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two runs of which one failed; not to be changed."""
    out = tmp_path_factory.mktemp("results") / "half-failed"
    axes = {ROUTER: ["round-robin", "tests.sweep.routers:Stumbles"]}
    fleetsim.sweep(SCENARIO, axes, out=out, name="half failed", jobs=1, allow_import=True)
    return out


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result folder; not to be changed."""
    return fleetsim.run(SCENARIO, out=tmp_path_factory.mktemp("results") / "alone").out
