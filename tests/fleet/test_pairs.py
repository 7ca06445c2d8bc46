"""Pairs of a replica for the prompt and one for the answer; prefixes fetched from other replicas' caches.

Leaps must give what single steps give, with the laws on, under every router that knows of pairs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fleetsim
from fleetsim.kernel.clock import Clock
from fleetsim.network.flows import Network
from fleetsim.network.topology import build_graph
from fleetsim.scenario.schema import Scenario
from tests.fleet.test_moves import MANY, column, pool, run, same_in_single_steps, scenario

POOLS: dict[str, list[tuple[str, int, str]]] = {
    "apart": [("prefill", 2, "prefill"), ("decode", 2, "decode")],
    "helped": [("prefill", 1, "prefill"), ("main", 2, "mixed"), ("decode", 1, "decode")],
    "lending": [("prompt", 2, "mixed"), ("token", 2, "mixed")],
}
ROUTERS: list[tuple[dict[str, Any], str]] = [
    ({"policy": "distserve"}, "apart"),
    ({"policy": "distserve"}, "helped"),
    ({"policy": "selective", "longer_than_tokens": 200}, "helped"),
    ({"policy": "splitwise", "queue_tokens": 600}, "helped"),
    ({"policy": "splitwise", "queue_tokens": 600, "prompt_pools": ["prompt"], "token_pools": ["token"]}, "lending"),
    ({"policy": "xllm", "ttft_slo_s": 0.2, "tpot_slo_s": 0.022}, "lending"),
    ({"policy": "xllm", "rule": "car"}, "lending"),
    ({"policy": "conductor"}, "apart"),
    ({"policy": "conductor", "balancing_threshold": 1.0}, "lending"),
]


@settings(MANY, max_examples=15)
@given(
    seed=st.integers(0, 1000),
    tokens=st.sampled_from([1000, 1600, 6400]),
    chosen=st.sampled_from(ROUTERS),
    scheduler=st.sampled_from(["vllm-v1", "sarathi", "vllm-v0", "sglang", "orca"]),
    transfer=st.sampled_from(["serial", "layerwise"]),
    groups=st.sampled_from([1, 3]),
)
def test_pairs_in_leaps_and_steps(
    seed: int,
    tokens: int,
    chosen: tuple[dict[str, Any], str],
    scheduler: str,
    transfer: str,
    groups: int,
    tmp_path: Path,
) -> None:
    config, fleet = chosen
    if fleet == "lending" or config["policy"] in ("selective", "conductor"):
        # Small caches would let replicas wait for each other's room for ever, each full of prompts that are computed.
        # And what caches hold is seen at the ends of leaps only, where blocks are evicted within them.
        tokens = 12_800
    engine = {"scheduler": {"policy": scheduler}, "kv": {"capacity_tokens": tokens, "block_tokens": 16}}
    pools = [{**pool(*one, **engine), "kv_transfer": transfer} for one in POOLS[fleet]]
    given = scenario(seed=seed, pools=pools, gateway={"router": config})
    given["workload"]["prefixes"]["groups"] = groups
    result = same_in_single_steps(given, tmp_path)
    assert result.summary["unfinished"] == 0


def lonely(pools: list[dict[str, Any]], router: dict[str, Any] | str, prompt_tokens: int = 1000) -> dict[str, Any]:
    """One request a second, nobody in its way."""
    given = scenario(pools=pools, gateway={"router": router})
    given["workload"] = {
        "kind": "synthetic",
        "requests": 20,
        "arrivals": {"process": "deterministic", "rate": "1 req/s"},
        "prompt_tokens": {"distribution": "fixed", "value": prompt_tokens},
        "output_tokens": {"distribution": "fixed", "value": 2},
    }
    return given


def test_layer_by_layer_only_the_last_layer_is_left_to_send(tmp_path: Path) -> None:
    """The network is fast enough for a prompt of 1,000 tokens: the second token waits for the last of 32 layers."""
    pools = [pool("prefill", 2, "prefill"), pool("decode", 2, "decode")]
    serial = run(lonely(pools, "distserve"), tmp_path / "serial")
    layers = [{**p, "kv_transfer": "layerwise"} for p in pools]
    layerwise = run(lonely(layers, "distserve"), tmp_path / "layers")
    cache_bytes = 1000 * 32 * 2 * 8 * 128 * 2
    network = Network(Clock(), build_graph(Scenario.model_validate(lonely(pools, "distserve"))))
    saved = np.array(column(serial, "tpot_s")) - np.array(column(layerwise, "tpot_s"))
    whole_s, last_s = (network.estimate_s("gpu:0", "gpu:2", size) for size in (cache_bytes, cache_bytes / 32))
    np.testing.assert_allclose(saved, whole_s - last_s, rtol=1e-6)
    assert layerwise.summary["network_bytes"] == pytest.approx(20 * cache_bytes / 32)


def test_only_long_prompts_are_computed_apart(tmp_path: Path) -> None:
    pools = [pool("prefill", 1, "prefill"), pool("main", 3, "mixed")]
    given = scenario(pools=pools, gateway={"router": {"policy": "selective", "longer_than_tokens": 250}})
    given["workload"].pop("prefixes")
    result = run(given, tmp_path / "out")
    prompt, answer = column(result, "prompt_tokens"), column(result, "output_tokens")
    for tokens, output, where in zip(prompt, answer, column(result, "prefill_replica"), strict=True):
        if output > 1:
            assert (where == 0) == (tokens > 250)


def test_splitwise_borrows_when_queues_are_long(tmp_path: Path) -> None:
    pools = [pool("prompt", 1), pool("token", 3)]
    config = {"policy": "splitwise", "prompt_pools": ["prompt"], "token_pools": ["token"]}
    long_queue = run(scenario(pools=pools, gateway={"router": {**config, "queue_tokens": 100_000}}), tmp_path / "long")
    short = run(scenario(pools=pools, gateway={"router": {**config, "queue_tokens": 400}}), tmp_path / "short")
    assert set(first_places(long_queue)) == {0}
    assert {0, 1} <= set(first_places(short))
    assert short.summary["ttft_mean_s"] < long_queue.summary["ttft_mean_s"]


def first_places(result: fleetsim.Result) -> list[int]:
    """Where the prompts were computed."""
    pairs = zip(column(result, "prefill_replica"), column(result, "replica"), strict=True)
    return [last if first is None or first < 0 else first for first, last in pairs]


def test_xllm_changes_roles_and_says_when(tmp_path: Path) -> None:
    pools = [pool("main", 4)]
    given = scenario(pools=pools, gateway={"router": {"policy": "xllm", "ttft_slo_s": 0.5, "tpot_slo_s": 0.017}})
    given["workload"]["arrivals"] = {"process": "gamma", "rate": "6 req/s", "burstiness": 0.1}
    result = run(given, tmp_path / "out")
    flips = [e for e in result.table("events").to_pylist() if e["kind"].startswith("flip")]
    assert {e["kind"] for e in flips} == {"flip_to_prefill", "flip_to_decode"}
    prefills = {0, 1}
    for event in sorted(flips, key=lambda e: e["time_s"]):
        if event["kind"] == "flip_to_prefill":
            assert event["replica"] not in prefills
            prefills.add(event["replica"])
        else:
            prefills.remove(event["replica"])
        assert 1 <= len(prefills) <= 3
    slow = run({**given, "gateway": {"router": {**given["gateway"]["router"], "dwell_s": 1000.0}}}, tmp_path / "slow")
    events = [e for e in slow.table("events").to_pylist() if e["kind"].startswith("flip")]
    assert len(events) <= 4  # each instance once at most
    still = run({**given, "gateway": {"router": {**given["gateway"]["router"], "flips": False}}}, tmp_path / "still")
    assert not [e for e in still.table("events").to_pylist() if e["kind"].startswith("flip")]


def test_a_prefix_is_fetched_from_another_cache(tmp_path: Path) -> None:
    """Many requests of one group at once: the others fetch what the first replica computed, and it takes the network's time."""
    given = scenario(gateway={"router": {"policy": "conductor"}})
    given["workload"]["prefixes"] = {"groups": 1, "tokens": 640, "zipf": 1.0}
    given["workload"]["prompt_tokens"] = {"distribution": "fixed", "value": 800}
    result = same_in_single_steps(given, tmp_path)
    alone = run({**given, "gateway": {"router": "min-ttft"}}, tmp_path / "alone")
    token_bytes = 32 * 2 * 8 * 128 * 2
    assert result.summary["network_bytes"] > 0
    assert result.summary["network_bytes"] % (16 * token_bytes) == 0
    computed, computed_alone = (np.sum(r.table("replicas")["prompt_tokens"].to_numpy()) for r in (result, alone))
    assert computed < computed_alone
    assert set(column(result, "replica")) == {0, 1, 2, 3}
