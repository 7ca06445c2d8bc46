"""The chaos scenarios: all laws on, nobody lost, and leaps give what single steps give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fleetsim
from fleetsim.scenario.load import load_scenario
from tests.fleet.test_moves import COUNTS, TIMES

FOLDER = Path(__file__).resolve().parents[2] / "scenarios" / "chaos"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "base")
HAPPENS: dict[str, set[str]] = {
    "crash-storm": {"replica_failed", "replica_repaired", "replica_ready"},
    "rack-loss": {"replica_failed", "replica_repaired"},
    "partition": {"replica_unreachable", "replica_reachable"},
    "gateway-loss": {"gateway_lost", "gateway_back"},
    "corrupt-store": {"cache_lost", "cache_corrupted"},
    "spot-storm": {"interruption_notice", "spot_interruption", "replica_draining"},
    "straggler": {"replica_slow", "replica_as_usual"},
    "cascade": {"replica_failed", "replica_unreachable", "gateway_lost"},
}
FEELS: dict[str, list[str]] = {
    "crash-storm": ["recoveries", "copied_bytes", "restored_tokens", "lost_energy_j"],
    "rack-loss": ["recoveries", "lost_tokens", "lost_accelerator_s"],
    "partition": ["recoveries", "lost_tokens"],
    "gateway-loss": ["failed_tries"],
    "corrupt-store": ["corrupt_tokens", "loaded_tokens"],
    "spot-storm": ["migrations"],
    "straggler": [],
    "cascade": ["recoveries", "failed_tries"],
}
"""Figures that are above zero."""


def run(name: str, out: Path, *overrides: str) -> fleetsim.Result:
    return fleetsim.run(FOLDER / f"{name}.yaml", out=out, check=True, overrides=overrides)


def both(name: str, out: Path, *overrides: str) -> fleetsim.Result:
    """Run in leaps and in single steps, compare, return the first."""
    fast = run(name, out / "leaps", *overrides)
    slow = run(name, out / "steps", "pools[0].engine.step_by_step=true", *overrides)
    a, b = (result.requests().sort_by("request_id") for result in (fast, slow))
    for column in COUNTS:
        assert a[column].to_pylist() == b[column].to_pylist(), column
    for column in (*TIMES, "energy_j", "cost_usd"):
        assert a[column].to_pylist() == pytest.approx(b[column].to_pylist(), rel=1e-9, nan_ok=True), column
    return fast


def test_every_scenario_has_its_expectations() -> None:
    assert set(NAMES) == set(HAPPENS) == set(FEELS)


@pytest.mark.parametrize("name", NAMES)
def test_nobody_is_lost(name: str, tmp_path: Path) -> None:
    result = run(name, tmp_path / name)
    summary: dict[str, Any] = dict(result.summary)
    assert summary["requests"] == load_scenario(FOLDER / f"{name}.yaml").scenario.workload.requests  # type: ignore[union-attr]
    ends = set(result.requests()["status"].to_pylist())
    assert ends <= ({"finished", "timed_out", "rejected"} if name == "cascade" else {"finished"})
    assert summary["finished"] > 0.8 * summary["requests"]
    assert set(result.table("events")["kind"].to_pylist()) >= HAPPENS[name]
    for figure in FEELS[name]:
        assert summary[figure] > 0, figure
    assert (summary["availability_ratio"] < 1.0) == (name not in ("gateway-loss", "corrupt-store", "straggler"))


@pytest.mark.parametrize("name", NAMES)
def test_it_hurts(name: str, tmp_path: Path) -> None:
    """What breaks is felt: the worst answers come later than where nothing breaks."""
    calm, result = run("base", tmp_path / "calm"), run(name, tmp_path / name)
    if name == "corrupt-store":  # here the caches are small too
        calm = run(name, tmp_path / "sound", "faults=[]")
        assert result.summary["cached_tokens"] < calm.summary["cached_tokens"]
    else:
        assert result.summary["e2el_p99_s"] > calm.summary["e2el_p99_s"]


FEW = settings(max_examples=2, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", NAMES)
@FEW
@given(seed=st.integers(0, 10_000), detect_ms=st.sampled_from([0, 300]), cache=st.booleans())
def test_leaps_and_steps(name: str, seed: int, detect_ms: int, cache: bool, tmp_path: Path) -> None:
    given_ = [f"seed={seed}", f"gateway.on_failure.detect={detect_ms} ms", "workload.requests=150"]
    if not cache and name != "corrupt-store":
        given_.append("pools[0].engine.prefix_cache=false")
    both(name, tmp_path, *given_)
