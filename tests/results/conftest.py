"""Result folders made by real runs, and a study of them laid out as `fleetsim sweep` does."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fleetsim
from fleetsim.scenario.export import digest
from fleetsim.scenario.load import load_mapping

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
ROUTER, RATE = "gateway.router.policy", "workload.arrivals.rate"
ROUTERS, RATES, SEEDS = ("round-robin", "least-outstanding"), (10.0, 20.0), (3, 4)


def lay_out_study(folder: Path) -> Path:
    """Routers x rates x seeds, and one planned run that failed."""
    folder.mkdir(parents=True)
    rows = []
    for router, rate, (replication, seed) in product(ROUTERS, RATES, enumerate(SEEDS)):
        loaded = load_mapping(SCENARIO, {ROUTER: router, RATE: f"{rate:g} req/s", "seed": seed})
        run = digest(loaded.scenario)[:12]
        result = fleetsim.run(loaded, out=folder / f"run={run}")
        row = {"run": run, "status": "finished", "error": None, "seed": seed, "replication": replication}
        row |= {f"axis.{ROUTER}": router, f"axis.{RATE}": rate, "verdict": result.verdict, "wall_s": result.wall_s}
        rows.append(row | dict(result.summary))
    failed = {**dict.fromkeys(rows[0]), "run": "0" * 12, "status": "failed", "error": "pools[0]: does not fit"}
    rows.append(failed | {f"axis.{ROUTER}": "round-robin", f"axis.{RATE}": 40.0, "seed": 3, "replication": 0})
    pq.write_table(pa.Table.from_pylist(rows), folder / "summary.parquet")
    study = {"schema_version": "1", "name": "routers", "scenario": SCENARIO, "runs": len(rows), "seeds": SEEDS}
    axes = {"axes": {ROUTER: ROUTERS, RATE: RATES}}
    (folder / "study.json").write_text(json.dumps(study | axes))
    manifest = {"schema_version": "1", "fleetsim_version": fleetsim.__version__, "kind": "study", "status": "complete"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study folder; not to be changed."""
    return lay_out_study(tmp_path_factory.mktemp("results") / "routers")


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result folder; not to be changed."""
    return fleetsim.run(SCENARIO, out=tmp_path_factory.mktemp("results") / "alone").out
