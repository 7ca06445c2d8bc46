"""What swapping copies, how long that takes, and who waits for it: one request gives way to another and comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fleetsim
from fleetsim.kernel.clock import Clock
from fleetsim.network.flows import Network
from fleetsim.network.topology import build_graph
from fleetsim.scenario.schema import Scenario

LAYERS = 32
BLOCK_BYTES = 16 * LAYERS * 2 * 8 * 128 * 2


def part(klass: str, requests: int, rate: str, output: int) -> dict[str, Any]:
    return {
        "kind": "synthetic",
        "requests": requests,
        "arrivals": {"process": "deterministic", "rate": rate},
        "prompt_tokens": {"distribution": "fixed", "value": 1000},
        "output_tokens": {"distribution": "fixed", "value": output},
        "class": klass,
    }


def scenario(urgent: int = 1, scheduler: str = "vllm-v1", **preemption: Any) -> dict[str, Any]:
    """A long answer is under way; short ones come, which go first and have no room beside it."""
    return {
        "schema": 1,
        "name": "swap",
        "seed": 0,
        "gateway": {"predictor": "oracle"},
        "workload": {
            "kind": "mix",
            "parts": {
                "a": part("patient", 1, "10 req/s", 600),
                "b": part("urgent", urgent, "0.4 req/s", 40),
            },
        },
        "pools": [
            {
                "name": "main",
                "llm": "llama-3.1-8b",
                "accelerator": "rtx-4090",
                "engine": {
                    "order": {"policy": "ltr", "starvation_steps": 0},
                    "scheduler": scheduler,
                    "kv": {"capacity_tokens": 2000, "preemption": {"mode": "swap", **preemption}},
                    "prefix_cache": False,
                },
            }
        ],
    }


def run(given: dict[str, Any], out: Path) -> tuple[fleetsim.Result, dict[str, dict[str, Any]]]:
    result = fleetsim.run(given, out=out, check=True)
    return result, {row["class"]: row for row in result.requests().sort_by("request_id").to_pylist()}


@pytest.mark.parametrize("scheduler", ["vllm-v1", "vllm-v0", "sarathi", "orca"])
def test_the_urgent_request_waits_for_the_copy_out(tmp_path: Path, scheduler: str) -> None:
    """Its first token comes later than with recomputation, by the calls and the bytes that the copy takes."""
    _, recompute = run(scenario(scheduler=scheduler, mode="recompute"), tmp_path / "recompute")
    given = scenario(scheduler=scheduler, call_time="50 us")
    result, swap = run(given, tmp_path / "swap")
    assert swap["patient"]["preemptions"] == 1
    network = Network(Clock(), build_graph(Scenario.model_validate(given)))
    moved = result.summary["network_bytes"]
    blocks = moved / 2 / BLOCK_BYTES
    assert blocks == int(blocks)
    assert 1000 / 16 < blocks < 1600 / 16
    copy_s = 2 * LAYERS * blocks * 50e-6 + network.estimate_s("gpu:0", "host:0", blocks * BLOCK_BYTES)
    np.testing.assert_allclose(swap["urgent"]["ttft_s"] - recompute["urgent"]["ttft_s"], copy_s, rtol=1e-9)


def test_the_request_that_gave_way_computes_nothing_again(tmp_path: Path) -> None:
    """Its longest gap holds the copies and the urgent request, but no second prompt of 1,000 tokens."""
    result, swap = run(scenario(call_time="0 s"), tmp_path / "swap")
    _, recompute = run(scenario(mode="recompute"), tmp_path / "recompute")
    network = Network(Clock(), build_graph(Scenario.model_validate(scenario())))
    copies_s = 2 * network.estimate_s("gpu:0", "host:0", result.summary["network_bytes"] / 2)
    prompt_s = recompute["patient"]["ttft_s"]
    saved_s = recompute["patient"]["itl_max_s"] - swap["patient"]["itl_max_s"]
    np.testing.assert_allclose(saved_s, prompt_s - copies_s, rtol=0.3)
    assert saved_s > 0


def test_groups_of_blocks_take_fewer_calls(tmp_path: Path) -> None:
    waits = []
    for group in (1, 20):
        firsts = [
            run(scenario(group_blocks=group, call_time=time), tmp_path / f"{group}{time}")[1]["urgent"]["ttft_s"]
            for time in ("0 s", "100 us")
        ]
        waits.append((firsts[1] - firsts[0]) / (2 * LAYERS * 100e-6))
    blocks, groups = waits
    np.testing.assert_allclose(blocks, round(blocks), rtol=1e-9)
    np.testing.assert_allclose(groups, -(-round(blocks) // 20), rtol=1e-9)


def test_what_the_host_still_holds_is_not_copied_again(tmp_path: Path) -> None:
    plain = run(scenario(urgent=3), tmp_path / "plain")[0]
    reuse = run(scenario(urgent=3, reuse=True), tmp_path / "reuse")[0]
    assert plain.summary["preemptions"] == reuse.summary["preemptions"] == 3
    # the first copy out is of some 70 blocks, those after it of what came meanwhile and of the block that was not whole
    saved = (plain.summary["network_bytes"] - reuse.summary["network_bytes"]) / BLOCK_BYTES
    assert saved > 2 * 1000 / 16


def test_without_room_on_the_host_requests_are_computed_again(tmp_path: Path) -> None:
    full, _ = run(scenario(capacity="60 MB"), tmp_path / "full")
    recompute, _ = run(scenario(mode="recompute"), tmp_path / "recompute")
    assert full.summary["preemptions"] == 1
    assert full.summary["network_bytes"] == 0
    assert (
        full.requests()
        .drop_columns(["run_id"] if "run_id" in full.requests().column_names else [])
        .equals(recompute.requests())
    )


def test_steps_go_on_during_asynchronous_copies(tmp_path: Path) -> None:
    """Requests that share a replica with one that comes back do not wait for it."""
    given = scenario(urgent=2, call_time="1 ms")
    given["workload"]["parts"]["c"] = part("small", 1, "10 req/s", 500)
    given["workload"]["parts"]["c"]["prompt_tokens"]["value"] = 10
    given["pools"][0]["engine"]["kv"]["capacity_tokens"] = 2600
    gaps = {}
    for asynchronous in (False, True):
        given["pools"][0]["engine"]["kv"]["preemption"]["asynchronous"] = asynchronous
        result, rows = run(given, tmp_path / str(asynchronous))
        assert rows["patient"]["preemptions"] > 0
        assert result.summary["network_bytes"] > 0
        gaps[asynchronous] = rows["small"]["tpot_s"]
    assert gaps[True] < 0.9 * gaps[False]
