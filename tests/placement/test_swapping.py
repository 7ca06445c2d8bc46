"""Replicas that change their LLM: what a swap takes, what becomes of who runs, who decides; leaps give what single steps give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import fleetsim
from fleetsim.catalog.accelerator import load_accelerator
from fleetsim.catalog.link import load_link
from fleetsim.catalog.llm import load_llm
from fleetsim.placement.static_partition import divided
from fleetsim.plugins import names
from fleetsim.scenario.schema import Scenario
from tests.fleet.test_moves import MANY, column, run, same_in_single_steps

MODELS = ("llama-3.1-8b", "qwen2.5-7b")


def part(model: str, klass: str, requests: int = 60, rate: float = 8.0, tokens: int = 120) -> dict[str, Any]:
    return {
        "kind": "synthetic",
        "requests": requests,
        "model": model,
        "class": klass,
        "arrivals": {"process": "gamma", "rate": f"{rate} req/s", "burstiness": 0.4},
        "prompt_tokens": {"distribution": "lognormal", "mean": 300, "cv": 1.0, "min": 1, "max": 900},
        "output_tokens": {"distribution": "lognormal", "mean": tokens, "cv": 1.0, "min": 2, "max": 400},
    }


def scenario(placement: Any = "on-demand", replicas: int = 2, swap: Any = None, **changes: Any) -> dict[str, Any]:
    """Two LLMs, one interactive and one in batches, on a few replicas that may hold either."""
    return {
        "schema": 1,
        "name": "swapping",
        "seed": 3,
        "workload": {"kind": "mix", "parts": {"a": part(MODELS[0], "chat"), "b": part(MODELS[1], "batch")}},
        "slo": {"ttft": "10 s", "classes": {"chat": {"ttft": "3 s"}, "batch": {"ttft": "60 s"}}},
        "gateway": {"placement": placement},
        "pools": [
            {
                "name": "main",
                "llm": MODELS[0],
                "models": [MODELS[1]],
                "accelerator": "h100-sxm",
                "replicas": replicas,
                "swap": {"setup": "300 ms", **(swap or {})},
                "engine": {
                    "scheduler": {"policy": "vllm-v1", "max_batched_tokens": 256, "max_seqs": 16},
                    "kv": {"block_tokens": 16, "capacity_tokens": 3200},
                },
            }
        ],
        **changes,
    }


def events(result: fleetsim.Result, kind: str) -> list[dict[str, Any]]:
    return [row for row in result.table("events").to_pylist() if row["kind"] == kind]


# --- leaps -----------------------------------------------------------------------------------------------------------


@MANY
@given(
    placement=st.sampled_from(
        [
            "on-demand",
            {"policy": "on-demand", "spread": 2},
            "static-partition",
            "qlm",
            {"policy": "qlm", "group_requests": 4, "output_mean_tokens": 120, "solver": "50 ms", "check": "300 ms"},
            {"policy": "qlm", "group_requests": 8, "output_mean_tokens": 400, "evict": True},
        ]
    ),
    seed=st.integers(0, 1000),
    replicas=st.integers(2, 3),
    kv=st.sampled_from(["drop", "host"]),
    tokens=st.sampled_from([1600, 3200]),
    prefix_cache=st.booleans(),
    timeout=st.sampled_from([None, "4 s"]),
)
def test_leaps_equal_steps(
    placement: Any,
    seed: int,
    replicas: int,
    kv: str,
    tokens: int,
    prefix_cache: bool,
    timeout: str | None,
    tmp_path: Path,
) -> None:
    given = scenario(placement, replicas, {"kv": kv}, seed=seed)
    given["pools"][0]["engine"]["kv"]["capacity_tokens"] = tokens
    given["pools"][0]["engine"]["prefix_cache"] = prefix_cache
    if timeout is not None:
        given["gateway"]["timeout"] = timeout
    result = same_in_single_steps(given, tmp_path)
    assert result.summary["finished"] + result.summary["timed_out"] == 120


def test_a_load_that_outlasts_the_run_counts_until_its_end(tmp_path: Path) -> None:
    """The last request is given up while weights are on their way: found by chance, and then law 4 counted all of the load."""
    given = scenario({"policy": "on-demand", "spread": 2}, 2, {"kv": "drop"}, seed=5)
    given["pools"][0]["engine"]["kv"]["capacity_tokens"] = 3200
    given["pools"][0]["engine"]["prefix_cache"] = False
    given["gateway"]["timeout"] = "4 s"
    assert same_in_single_steps(given, tmp_path).summary["timed_out"] > 0


# --- what a swap takes --------------------------------------------------------------------------------------------------


def lonely(weights: str = "host", **swap: Any) -> dict[str, Any]:
    """One replica, one request for the LLM that it does not hold, then one for the other again, and so on."""
    made = scenario(replicas=1, swap={"weights": weights, **swap})
    one = {
        "prompt_tokens": {"distribution": "fixed", "value": 100},
        "output_tokens": {"distribution": "fixed", "value": 10},
    }
    slow = {"arrivals": {"process": "deterministic", "rate": "0.01 req/s"}, "requests": 3}
    made["workload"] = {
        "kind": "mix",
        "parts": {"b": {**part(MODELS[1], "batch"), **one, **slow}, "a": {**part(MODELS[0], "chat"), **one, **slow}},
    }
    made["workload"]["parts"]["a"]["arrivals"] = {"process": "deterministic", "rate": "0.009 req/s"}
    return made


def test_a_swap_takes_its_weights_over_the_host_link_and_the_set_up(tmp_path: Path) -> None:
    result = run(lonely(), tmp_path)
    begun, loaded = events(result, "model_load_begun"), events(result, "model_loaded")
    assert [row["model"] for row in begun] == [MODELS[n % 2] for n in range(1, len(begun) + 1)]
    link = load_link(load_accelerator("h100-sxm").host_link)
    for begin, end in zip(begun, loaded, strict=True):
        weights = load_llm(begin["model"]).weight_bytes("bf16")
        expected_s = weights / link.copy_bytes_per_s + 0.3
        np.testing.assert_allclose(end["time_s"] - begin["time_s"], expected_s, rtol=0.02)
    first = result.requests().sort_by("arrival_s").to_pylist()[0]
    assert first["model"] == MODELS[1]
    assert first["ttft_s"] > loaded[0]["time_s"] - begun[0]["time_s"]


def test_a_swap_is_charged_time_and_energy(tmp_path: Path) -> None:
    """Law 5 holds with swaps (check is on in `run`); the summary tells their part."""
    summary = run(lonely(), tmp_path / "swaps").summary
    power = load_accelerator("h100-sxm").power
    assert summary["model_swaps"] > 3
    np.testing.assert_allclose(
        summary["model_swap_energy_j"], summary["model_swap_s"] * (power.static_w - power.idle_w), rtol=1e-9
    )
    rest = summary["energy_idle_j"] - summary["model_swap_energy_j"]
    idle_s = summary["simulated_s"] * (1 - summary["busy_ratio"])
    np.testing.assert_allclose(rest, power.idle_w * idle_s, rtol=1e-9)


def test_drives_are_slower_than_host_memory_and_warm_weights_are_not(tmp_path: Path) -> None:
    host, ssd = (run(lonely(where), tmp_path / where).summary for where in ("host", "ssd"))
    warm = run(lonely("ssd", host_capacity="40 GB"), tmp_path / "warm")
    assert ssd["model_swap_s"] > 1.5 * host["model_swap_s"]
    begun, loaded = events(warm, "model_load_begun"), events(warm, "model_loaded")
    times = [end["time_s"] - begin["time_s"] for begin, end in zip(begun, loaded, strict=True)]
    assert times[0] > 1.5 * max(times[1:])  # both were on the host from then on


def test_two_swaps_share_a_servers_drives(tmp_path: Path) -> None:
    made = scenario({"policy": "on-demand", "spread": 0}, 2, {"weights": "ssd"})
    burst = {**part(MODELS[1], "batch", 20), "arrivals": {"process": "deterministic", "rate": "1000 req/s"}}
    made["workload"] = burst
    both = run(made, tmp_path / "both")
    alone = run(lonely("ssd"), tmp_path / "alone")
    shared = [
        b["time_s"] - a["time_s"]
        for a, b in zip(events(both, "model_load_begun"), events(both, "model_loaded"), strict=True)
    ]
    single = events(alone, "model_loaded")[0]["time_s"] - events(alone, "model_load_begun")[0]["time_s"]
    assert len(shared) == 2
    np.testing.assert_allclose(np.mean(shared) - 0.3, 2 * (single - 0.3), rtol=0.05)


def test_each_llm_has_its_own_cache_and_step_times(tmp_path: Path) -> None:
    """A replica that has swapped serves like one that never held anything else."""
    swapped = run(lonely(), tmp_path / "swapped")
    plain = lonely()
    plain["pools"] = [{**plain["pools"][0], "llm": model, "models": [], "name": model} for model in MODELS]
    del plain["gateway"]
    alone = run(plain, tmp_path / "plain")
    np.testing.assert_allclose(column(swapped, "tpot_s"), column(alone, "tpot_s"), rtol=1e-12)
    assert column(swapped, "model") == column(alone, "model")


def test_tables_tell_what_a_replica_holds(tmp_path: Path) -> None:
    result = run({**lonely(), "run": {"interval": "100 ms"}}, tmp_path)
    rows = result.table("replicas").to_pylist()
    assert {row["state"] for row in rows} >= {"ready", "loading"}
    assert {row["model"] for row in rows} == {*MODELS, None}
    assert all((row["model"] is None) == (row["state"] == "loading") for row in rows)
    np.testing.assert_allclose(
        sum(row["power_w"] * (row["end_s"] - row["start_s"]) for row in rows), result.summary["energy_j"], rtol=1e-6
    )


# --- who is taken back ------------------------------------------------------------------------------------------------------


def squeezed(kv: str, evict: bool = True) -> dict[str, Any]:
    """A replica full of long batch requests for one LLM, when urgent ones for the other arrive."""
    policy = {"policy": "qlm", "output_mean_tokens": 1500, "output_std_tokens": 0, "evict": evict}
    made = scenario(policy, 1, {"kv": kv, "kv_capacity": "20 GB"})
    made["pools"][0]["engine"]["kv"]["capacity_tokens"] = 64_000
    batch, chat = part(MODELS[0], "batch", 12), part(MODELS[1], "chat", 5)
    batch["output_tokens"] = {"distribution": "fixed", "value": 1500}
    batch["arrivals"] = {"process": "deterministic", "rate": "100 req/s"}
    chat["arrivals"] = {"process": "deterministic", "rate": "0.25 req/s"}
    chat["output_tokens"] = {"distribution": "fixed", "value": 20}
    made["workload"] = {"kind": "mix", "parts": {"batch": batch, "chat": chat}}
    made["slo"]["classes"]["batch"]["ttft"] = "600 s"
    return made


@pytest.mark.parametrize("kv", ["drop", "host"])
def test_looser_requests_give_way_to_another_llm(kv: str, tmp_path: Path) -> None:
    result = same_in_single_steps(squeezed(kv), tmp_path)
    assert result.summary["finished"] == 17
    assert result.summary["preemptions"] >= 12
    waits = dict(zip(column(result, "class"), column(result, "ttft_s"), strict=True))
    assert waits["chat"] < 3.0


def test_kept_keys_and_values_are_not_computed_again(tmp_path: Path) -> None:
    dropped, kept = (run(squeezed(kv), tmp_path / kv) for kv in ("drop", "host"))

    def computed(result: fleetsim.Result) -> int:
        return sum(result.table("replicas")["prompt_tokens"].to_pylist())

    assert computed(kept) < 0.5 * computed(dropped)
    weights = kept.summary["model_swap_bytes"]
    assert kept.summary["network_bytes"] > weights  # they travelled
    assert dropped.summary["network_bytes"] == weights


def test_without_eviction_who_runs_ends_first(tmp_path: Path) -> None:
    result = run(squeezed("drop", evict=False), tmp_path)
    assert result.summary["preemptions"] == 0
    assert result.summary["finished"] == 17


# --- who decides --------------------------------------------------------------------------------------------------------------


def test_the_static_partition_never_swaps(tmp_path: Path) -> None:
    result = run(scenario("static-partition", 3), tmp_path)
    assert result.summary["model_swaps"] == 0
    held = set(zip(column(result, "replica"), column(result, "model"), strict=True))
    assert len(held) == len({replica for replica, _ in held})


def test_shares_are_kept() -> None:
    able = [["a", "b", "c"]] * 10
    assert divided(able, {"a": 1, "b": 1, "c": 1}).count("a") in (3, 4)
    assert divided(able, {"a": 5, "b": 3, "c": 2}).count("a") == 5
    assert set(divided([["a", "b", "c"]] * 3, {"a": 100, "b": 1, "c": 1})) == {"a", "b", "c"}
    assert divided(able, {"a": 1, "b": 0, "c": 0}) == ["a"] * 10


def test_requests_that_name_no_llm_get_the_pools_own(tmp_path: Path) -> None:
    made = scenario()
    made["workload"] = {key: value for key, value in part(MODELS[0], "chat").items() if key != "model"}
    assert set(column(run(made, tmp_path), "model")) == {MODELS[0]}


def test_all_placements_were_tried() -> None:
    assert set(names("placements")) >= {"on-demand", "static-partition", "qlm"}


# --- bad input --------------------------------------------------------------------------------------------------------------------


def test_bad_scenarios_are_refused() -> None:
    for change, word in (
        ({"models": [MODELS[0]]}, "twice"),
        ({"role": "prefill"}, "role"),
        ({"models": []}, "give a pool"),
    ):
        made = scenario()
        made["pools"][0].update(change)
        with pytest.raises(ValidationError, match=word):
            Scenario.model_validate(made)
    made = scenario()
    made["pools"].append({"name": "other", "llm": MODELS[1], "accelerator": "h100-sxm"})
    with pytest.raises(ValidationError, match="for good"):
        Scenario.model_validate(made)


def test_an_llm_that_does_not_fit_or_is_not_known_is_told(tmp_path: Path) -> None:
    made = scenario()
    made["pools"][0]["models"] = ["llama-3.1-405b"]
    with pytest.raises(fleetsim.FleetsimError, match="does not fit"):
        run(made, tmp_path)
    made["pools"][0]["models"] = ["no-such-llm"]
    with pytest.raises(fleetsim.FleetsimError, match=r"models\[0\]"):
        run(made, tmp_path)
