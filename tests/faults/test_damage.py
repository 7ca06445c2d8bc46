"""Tiers that lose what they hold, or hold something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetsim.engine.kv_tiers.tier import Tier
from fleetsim.errors import InputError
from tests.fleet.test_moves import MANY, column, pool, run, same_in_single_steps, scenario

PATH = (range(100, 110), range(500, 510))


def test_what_is_corrupt_shows_when_it_is_read_and_is_whole_when_it_is_written() -> None:
    tier = Tier("host", 100, 1.0)
    tier.insert(PATH, 0, 14)
    assert tier.corrupt(1.0) == 14
    tier.insert(PATH, 14, 20)
    assert tier.holds(PATH, 20) == 20  # nobody knows
    assert tier.read(PATH, 12, 20) == 12
    assert tier.holds(PATH, 20) == 12
    tier.insert(PATH, 12, 20)
    assert tier.holds(PATH, 20) == 20
    assert tier.read(PATH, 12, 20) == 20
    assert tier.read(PATH, 0, 20) == 0
    assert tier.damage is not None
    assert tier.damage.found_blocks == 14
    tier.verify()


def test_a_share_of_the_blocks_is_corrupt() -> None:
    tier = Tier("host", 100_000, 1.0)
    tier.insert((range(50_000),), 0, 50_000)
    assert tier.corrupt(0.3) == pytest.approx(15_000, rel=0.03)


def test_what_is_read_while_a_tier_is_lost_is_lost_too() -> None:
    tier = Tier("host", 100, 1.0)
    tier.insert(PATH, 0, 20)
    node = tier.pin(PATH, 8)
    assert tier.lose() == 20
    assert tier.read(PATH, 0, 8) == 0
    tier.unpin(node)
    assert tier.holds(PATH, 20) == 0
    tier.verify()


def struck(what: str, at_s: float = 2.0, tier: str = "host", **more: Any) -> dict[str, Any]:
    where = {} if tier == "store" else {"replicas": [0, 1]}
    return {"policy": "scheduled", "incidents": [{"at_s": at_s, "what": what, "tier": tier, **where, **more}]}


def tiered(prefetch: str = "never", seed: int = 5, overlap: bool = True, **kv: Any) -> dict[str, Any]:
    """Two replicas with small caches over a host and a store that keep what they lose."""
    tiers: dict[str, Any] = {
        "host": {"capacity": "1 GB"},
        "store": {"prefetch": prefetch, "min_tokens": 16},
        "overlap": overlap,
    }
    engine = {"kv": {"block_tokens": 16, "capacity_tokens": 1600, "tiers": tiers, **kv}}
    given = scenario(seed=seed, pools=[pool("main", 2, **engine)], network={"store": {"bandwidth": "2 GB/s"}})
    given["workload"]["prefixes"] = {"groups": 12, "tokens": 320, "zipf": 0.5}
    given["workload"]["prompt_tokens"] |= {"mean": 400}
    return given


@pytest.mark.parametrize(("tier", "prefetch"), [("host", "never"), ("store", "never"), ("store", "wait_complete")])
def test_corrupt_blocks_cost_their_way_and_are_computed(tier: str, prefetch: str, tmp_path: Path) -> None:
    # what the host has is not read from the store
    emptied = [struck("lose-cache")] if tier == "store" else []
    calm = run(tiered(prefetch) | {"faults": emptied}, tmp_path / "calm")
    faults = [*emptied, struck("corrupt-cache", tier=tier)]
    result = same_in_single_steps(tiered(prefetch) | {"faults": faults}, tmp_path)
    assert set(column(result, "status")) == {"finished"}
    assert result.summary["corrupt_tokens"] > calm.summary["corrupt_tokens"]
    computed = [sum(r.table("fleet")["prompt_tokens"].to_pylist()) for r in (calm, result)]
    assert computed[1] > computed[0]
    event = next(e for e in result.table("events").to_pylist() if e["kind"] == "cache_corrupted")
    assert event["count"] > 10


def test_a_tier_that_is_lost_fills_again(tmp_path: Path) -> None:
    calm = run(tiered(), tmp_path / "calm")
    given = tiered() | {"faults": [struck("lose-cache"), struck("lose-cache", tier="store")]}
    result = same_in_single_steps(given, tmp_path)
    assert set(column(result, "status")) == {"finished"}
    loaded, usual = (np.array(column(r, "loaded_tokens")) for r in (result, calm))
    assert loaded.sum() < usual.sum()
    late = np.array(column(result, "arrival_s")) > 2.5
    assert loaded[late].sum() > 0


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (struck("lose-cache", tier="ssd"), "have none"),
        (struck("lose-cache", for_s=3.0), "does not come back"),
        ({"policy": "scheduled", "incidents": [{"at_s": 1, "what": "lose-cache"}]}, "strikes nothing"),
    ],
)
def test_damage_to_nothing_is_refused(fault: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        run(tiered() | {"faults": [fault]}, tmp_path / "out")


@MANY
@given(
    seed=st.integers(0, 1000),
    prefetch=st.sampled_from(["best_effort", "wait_complete", "timeout", "never"]),
    what=st.sampled_from(["lose-cache", "corrupt-cache"]),
    tier=st.sampled_from(["host", "store"]),
    at_s=st.sampled_from([0.7131, 1.5, 2.2]),
    share=st.sampled_from([0.2, 1.0]),
    overlap=st.booleans(),
    crashes=st.booleans(),
)
def test_damage_in_leaps_and_steps(
    seed: int,
    prefetch: str,
    what: str,
    tier: str,
    at_s: float,
    share: float,
    overlap: bool,
    crashes: bool,
    tmp_path: Path,
) -> None:
    given = tiered(prefetch, seed, overlap)
    given["pools"][0]["startup"] = {"weights": "none", "init": "0.2 s"}
    given["faults"] = [struck(what, at_s, tier, share=share)]
    if crashes:
        given["faults"].append({"policy": "crashes", "scope": "replica", "mtbf_h": 0.001, "repair_h": 0.0001})
    result = same_in_single_steps(given, tmp_path)
    assert set(column(result, "status")) <= {"finished", "failed"}
