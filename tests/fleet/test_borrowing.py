"""Blocks of a request on other replicas: books, costs, and leaps against single steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.fleet.test_moves import HERE, MANY, pool, same_in_single_steps, scenario


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
