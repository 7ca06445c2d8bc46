"""Blocks of a request on other replicas: books, costs, and leaps against single steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.fleet.test_moves import HERE, MANY, column, pool, same_in_single_steps, scenario


def lavish(**options: Any) -> dict[str, Any]:
    return {"rebalancer": {"policy": f"{HERE}:Lavish", **options}}


def test_requests_borrow_memory_while_they_decode(tmp_path: Path) -> None:
    result = same_in_single_steps(scenario(gateway=lavish()), tmp_path)
    assert result.summary["finished"] == 120
    assert result.summary["loans"] > 20
    assert result.summary["loans_recalled"] > 0


@MANY
@given(
    seed=st.integers(0, 1000),
    tokens=st.sampled_from([1600, 3200]),
    prefix_cache=st.booleans(),
    scheduler=st.sampled_from(["vllm-v1", "sarathi", "vllm-v0", "sglang", "orca"]),
    also_moves=st.booleans(),
    dp=st.sampled_from([1, 2]),
    swap=st.booleans(),
)
def test_loans_in_leaps_and_steps(
    seed: int, tokens: int, prefix_cache: bool, scheduler: str, also_moves: bool, dp: int, swap: bool, tmp_path: Path
) -> None:
    engine = {
        "scheduler": {"policy": scheduler},
        "kv": {"capacity_tokens": tokens, "block_tokens": 16, "preemption": {"mode": "swap" if swap else "recompute"}},
        "prefix_cache": prefix_cache,
    }
    pools = [{**pool("main", 3, **engine), "parallelism": {"dp": dp}}]
    same_in_single_steps(scenario(seed=seed, pools=pools, gateway=lavish(also_moves=also_moves)), tmp_path)


def long_prompts(seed: int = 5, longest: int = 9000, **changes: Any) -> dict[str, Any]:
    """Prompts of which some take more than one of three replicas' caches."""
    prompts = {"distribution": "lognormal", "mean": 1200, "cv": 2.0, "min": 1, "max": longest}
    base = scenario(seed=seed, pools=[pool("main", 3)], gateway={"router": {"policy": "infinite-llm"}})
    base["workload"] = {
        **base["workload"],
        "prompt_tokens": prompts,
        "requests": 60,
        "arrivals": {"process": "poisson", "rate": "4 req/s"},
    }
    return {**base, **changes}


def test_prompts_longer_than_a_replica_lie_on_several(tmp_path: Path) -> None:
    result = same_in_single_steps(long_prompts(longest=7000), tmp_path)
    prompts, status = np.array(column(result, "prompt_tokens")), column(result, "status")
    assert (prompts > 3200).sum() > 3
    assert set(status) == {"finished"}
    assert result.summary["loans"] > 3
    assert result.summary["remote_attention_bytes"] > 0


@MANY
@given(
    seed=st.integers(0, 1000),
    prefix_cache=st.booleans(),
    scheduler=st.sampled_from(["vllm-v1", "sarathi", "vllm-v0", "sglang", "orca"]),
    dp=st.sampled_from([1, 2]),
    swap=st.booleans(),
    also_lends=st.booleans(),
    own_ratio=st.sampled_from([0.2, 0.5]),
)
def test_long_prompts_in_leaps_and_steps(
    seed: int,
    prefix_cache: bool,
    scheduler: str,
    dp: int,
    swap: bool,
    also_lends: bool,
    own_ratio: float,
    tmp_path: Path,
) -> None:
    engine = {
        "scheduler": {"policy": scheduler},
        "kv": {"capacity_tokens": 3200, "block_tokens": 16, "preemption": {"mode": "swap" if swap else "recompute"}},
        "prefix_cache": prefix_cache,
    }
    gateway: dict[str, Any] = {
        "router": {"policy": "infinite-llm", "own_ratio": own_ratio},
        "first_token_timeout": "20 s",
    }
    if also_lends:
        gateway |= lavish()
    pools = [{**pool("main", 3, **engine), "parallelism": {"dp": dp}}]
    same_in_single_steps(long_prompts(seed, pools=pools, gateway=gateway), tmp_path)
