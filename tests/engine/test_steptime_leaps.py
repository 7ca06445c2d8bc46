"""Leaps give what the step-by-step run gives with every step-time model, also where lines end at every few steps."""

from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleetsim.engine.steptime.kernel_tables import PACKAGE
from tests.engine.test_leaps import assert_same, run_both, scenarios
from tests.engine.test_steptime_affine import NUMBERS
from tests.engine.test_steptime_table import HEADER, write

ANYTHING = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
CONTEXTS = (1, 3, 7, 12, 20, 33, 50, 77, 120, 300, 700)


def with_model(scenario: dict[str, Any], step_time: dict[str, Any]) -> dict[str, Any]:
    pools = [{**pool, "engine": {**pool["engine"], "step_time": step_time}} for pool in scenario["pools"]]
    return {**scenario, "pools": pools}


def bent_table(path: Path, seed: int) -> Path:
    """A grid of random steepness: every few tokens of context another line holds."""
    rng = np.random.default_rng(seed)
    batches, prompts, cached = (1, 2, 5, 30), (1, 60, 500), (0, 400)
    decode = 5e-3 + 1e-3 * rng.random((len(batches), len(CONTEXTS))).cumsum(axis=0).cumsum(axis=1)
    prompt = 6e-3 + 1e-2 * rng.random((len(prompts), len(cached))).cumsum(axis=0).cumsum(axis=1)
    points = [["decode", b, c, time] for (b, c), time in zip(product(batches, CONTEXTS), decode.ravel(), strict=True)]
    points += [["prefill", n, c, time] for (n, c), time in zip(product(prompts, cached), prompt.ravel(), strict=True)]
    energies = [[*point, 500 * point[3] + rng.random()] for point in points]
    return write(path, energies, [*HEADER, "energy_j"]) if seed % 2 else write(path, points)


@ANYTHING
@given(scenario=scenarios(), dynamic=st.booleans())
def test_affine(scenario: dict[str, Any], dynamic: bool, tmp_path: Path) -> None:
    power = {"dynamic_power": "150 W"} if dynamic else {}
    assert_same(*run_both(with_model(scenario, {"model": "affine", **NUMBERS, **power}), tmp_path))


@ANYTHING
@given(scenario=scenarios(), seed=st.integers(0, 1000))
def test_table(scenario: dict[str, Any], seed: int, tmp_path: Path) -> None:
    path = bent_table(tmp_path / "t.csv", seed)
    assert_same(*run_both(with_model(scenario, {"model": "table", "file": str(path)}), tmp_path))


@pytest.mark.skipif(find_spec(PACKAGE) is None, reason="aiconfigurator-core is not installed: fleetsim[silicon]")
@ANYTHING
@given(scenario=scenarios())
def test_silicon(scenario: dict[str, Any], tmp_path: Path) -> None:
    measured = {"rtx-4090": "l40s"}
    pools = [{**p, "accelerator": measured.get(p["accelerator"], p["accelerator"])} for p in scenario["pools"]]
    assert_same(*run_both(with_model({**scenario, "pools": pools}, {"model": "silicon"}), tmp_path))


def test_lines_end_within_leaps(tmp_path: Path) -> None:
    """The comparison is not vacuous: with a table of eleven contexts, leaps are shorter than without, and still leaps."""
    scenario: dict[str, Any] = {
        "schema": 1,
        "name": "bent",
        "workload": {
            "kind": "synthetic",
            "requests": 30,
            "arrivals": {"process": "poisson", "rate": "2 req/s"},
            "prompt_tokens": {"distribution": "fixed", "value": 5},
            "output_tokens": {"distribution": "fixed", "value": 600},
        },
        "pools": [{"name": "main", "llm": "llama-3.1-8b", "accelerator": "h100-sxm", "engine": {}}],
    }
    path = bent_table(tmp_path / "t.csv", 7)
    fast, slow = run_both(with_model(scenario, {"model": "table", "file": str(path)}), tmp_path)
    assert_same(fast, slow)
    straight, _ = run_both(with_model(scenario, {"model": "affine", **NUMBERS}), tmp_path / "straight")
    assert straight.events < fast.events < 0.3 * slow.events
