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


KINDS: list[tuple[str, str, dict[str, int]]] = [
    ("gemma-3-12b", "h100-sxm", {}),
    ("gemma-3-12b", "l40s", {"pp": 2}),
    ("gpt-oss-20b", "h100-sxm", {}),
    ("gpt-oss-120b", "h200-sxm", {"tp": 2}),
    ("qwen3-next-80b-a3b", "h200-sxm", {"tp": 4}),
    ("nemotron-nano-9b-v2", "h100-sxm", {}),
    ("deepseek-v3.2", "b200-sxm", {"tp": 8}),
    ("deepseek-v3", "b200-sxm", {"dp": 8, "ep": 8}),
]
"""Layers of every kind: windows, experts, recurrence, latent and sparse attention; stages and coupled ranks."""
options = st.fixed_dictionaries(
    {"model": st.just("roofline")},
    optional={
        "expert_spread": st.sampled_from([0.3, 1.0]),
        "fuse_all_reduce": st.booleans(),
        "graph_padding": st.booleans(),
        "async_scheduling": st.booleans(),
        "host_per_sequence": st.just("20 us"),
        "overlap": st.sampled_from([0.2, 1.0]),
        "nano_batches": st.sampled_from([2, 4]),
        "draft_tokens": st.sampled_from([1, 4]),
        "acceptance": st.sampled_from([0.0, 0.8]),
    },
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(scenario=scenarios(), kind=st.sampled_from(KINDS), step_time=options)
def test_roofline(
    scenario: dict[str, Any], kind: tuple[str, str, dict[str, int]], step_time: dict[str, Any], tmp_path: Path
) -> None:
    llm, accelerator, parallelism = kind
    pools = [{**p, "llm": llm, "accelerator": accelerator, "parallelism": parallelism} for p in scenario["pools"]]
    assert_same(*run_both(with_model({**scenario, "pools": pools}, step_time), tmp_path))


@pytest.mark.skipif(find_spec(PACKAGE) is None, reason="aiconfigurator-core is not installed: fleetsim[silicon]")
@ANYTHING
@given(scenario=scenarios())
def test_silicon(scenario: dict[str, Any], tmp_path: Path) -> None:
    measured = {"rtx-4090": "l40s"}
    pools = [{**p, "accelerator": measured.get(p["accelerator"], p["accelerator"])} for p in scenario["pools"]]
    assert_same(*run_both(with_model({**scenario, "pools": pools}, {"model": "silicon"}), tmp_path))


@pytest.mark.parametrize(
    "values",
    [{}, {"overlap": 1.0, "draft_tokens": 2}, {"overlap": 0.765, "nano_batches": 2}],
    ids=["default", "overlapped", "cut"],
)
def test_leaps_pass_windows(values: dict[str, Any], tmp_path: Path) -> None:
    """Not vacuous either: answers grow from inside the window of gpt-oss (128 tokens) far beyond it, in leaps."""
    scenario: dict[str, Any] = {
        "schema": 1,
        "name": "windows",
        "workload": {
            "kind": "synthetic",
            "requests": 20,
            "arrivals": {"process": "poisson", "rate": "5 req/s"},
            "prompt_tokens": {"distribution": "fixed", "value": 20},
            "output_tokens": {"distribution": "fixed", "value": 900},
        },
        "pools": [{"name": "main", "llm": "gpt-oss-20b", "accelerator": "h100-sxm", "engine": {}}],
    }
    fast, slow = run_both(with_model(scenario, {"model": "roofline", **values}), tmp_path)
    assert_same(fast, slow)
    assert fast.events < 0.1 * slow.events


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
