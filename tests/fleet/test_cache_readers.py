"""Routers that read what replicas have cached see the same in leaps and in single steps, also while blocks are evicted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fleet.test_moves import pool, same_in_single_steps, scenario

READERS: list[dict[str, Any]] = [
    {"policy": "min-ttft"},
    {"policy": "lmetric"},
    {"policy": "conductor"},
    {"policy": "prefix-score", "precise": True},
    {"policy": "dualmap", "block_tokens": 16, "slo_s": 1.0},
]


@pytest.mark.parametrize("router", READERS, ids=lambda router: router["policy"])
@pytest.mark.parametrize(("seed", "tokens"), [(0, 1000), (3, 1600), (5, 1000), (4, 3200)])
def test_leaps_equal_steps_while_blocks_go(router: dict[str, Any], seed: int, tokens: int, tmp_path: Path) -> None:
    small = pool("main", 3, kv={"capacity_tokens": tokens, "block_tokens": 16})
    result = same_in_single_steps(scenario(seed=seed, pools=[small], gateway={"router": router}), tmp_path)
    events = result.table("events").to_pylist()
    assert sum(row["count"] for row in events if row["kind"] == "kv_evictions") > 20
