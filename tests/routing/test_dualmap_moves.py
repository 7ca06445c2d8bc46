"""DualMap's rebalancing: waiting requests move to their other candidate where both of a new one's are overloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fleetsim


def scenario(rebalance: bool, step_by_step: bool = False) -> dict[str, Any]:
    """Few groups of long shared prompts on four replicas, in bursts that none of them clears within the objective."""
    return {
        "schema": 1,
        "name": "dualmap",
        "seed": 4,
        "workload": {
            "kind": "synthetic",
            "requests": 400,
            "arrivals": {"process": "gamma", "rate": "36 req/s", "burstiness": 0.2},
            "prompt_tokens": {"distribution": "lognormal", "mean": 2500, "cv": 0.6, "min": 600, "max": 8000},
            "output_tokens": {"distribution": "fixed", "value": 20},
            "prefixes": {"groups": 6, "tokens": 1024, "zipf": 1.0},
        },
        "gateway": {"router": {"policy": "dualmap", "slo_s": 2.0, "rebalance": rebalance}},
        "pools": [
            {
                "name": "main",
                "llm": "llama-3.1-8b",
                "accelerator": "a100-80",
                "replicas": 4,
                "engine": {"step_by_step": step_by_step},
            }
        ],
    }


def test_waiting_requests_move(tmp_path: Path) -> None:
    moved = fleetsim.run(scenario(True), out=tmp_path / "moved", check=True)
    stayed = fleetsim.run(scenario(False), out=tmp_path / "stayed", check=True)
    assert moved.summary["finished"] == 400
    assert moved.summary["migrations"] > 5
    assert stayed.summary["migrations"] == 0


def test_leaps_equal_steps(tmp_path: Path) -> None:
    leaps = fleetsim.run(scenario(True), out=tmp_path / "leaps", check=True).requests().sort_by("request_id")
    steps = fleetsim.run(scenario(True, True), out=tmp_path / "steps", check=True).requests().sort_by("request_id")
    assert leaps["replica"].to_pylist() == steps["replica"].to_pylist()
    for a, b in zip(leaps["first_token_s"].to_pylist(), steps["first_token_s"].to_pylist(), strict=True):
        assert abs(a - b) < 1e-9 * b
