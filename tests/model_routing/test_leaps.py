"""Every model router and every budget controller gives in leaps what it gives in single steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fleetsim
from fleetsim.plugins import names
from tests.fleet.test_moves import MANY, same_in_single_steps
from tests.model_routing.test_answering import BIG, HERE, SMALL, scenario

LOUD = {"calm": 0.2, "busy": 0.8}


@MANY
@given(
    router=st.sampled_from([*names("model_routers"), f"{HERE}:Thoughtful"]),
    budget=st.sampled_from([None, *names("budgets")]),
    mode=st.sampled_from(["parallel", "sequential"]),
    seed=st.integers(0, 1000),
    rate=st.sampled_from([5.0, 60.0]),
    budgets=st.sampled_from([(0,), (0, 128)]),
    sessions=st.booleans(),
    timeout=st.sampled_from([None, "3 s"]),
    vanishes=st.booleans(),
)
def test_policies_in_leaps_and_steps(
    router: str,
    budget: str | None,
    mode: str,
    seed: int,
    rate: float,
    budgets: tuple[int, ...],
    sessions: bool,
    timeout: str | None,
    vanishes: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    config = scenario(router, 40, rate, quality={"features": {"auc": 0.65}, "feedback": {"delay": "0.2 s"}})
    config["quality"]["models"][BIG]["budgets"] = budgets
    config["seed"] = seed
    if budget is not None:
        more: dict[str, Any] = {"mode": mode, "most": 6} if budget == "ttspm" else {}
        config["gateway"]["budget"] = {"policy": budget, **LOUD, **more}
    if sessions:
        turns = {"distribution": "fixed", "value": 3}
        config["workload"]["sessions"] = {"turns": turns, "think_time": "0.5 s", "max_context_tokens": 1500}
    if timeout is not None:
        config["gateway"]["timeout"] = timeout
    if vanishes:
        config["quality"]["models"][BIG]["leaves"] = "0.7 s"
    result = same_in_single_steps(config, tmp_path_factory.mktemp("leaps"))
    assert result.summary["requests"] == 40


@pytest.mark.parametrize("name", names("model_routers"))
def test_every_router_in_leaps_and_steps(name: str, tmp_path: Path) -> None:
    """Each of them once, with sessions, late feedback, errors of the predictor, and a model that leaves and one that joins."""
    config = scenario(name, 45, 30.0, quality={"features": {"auc": 0.65}, "feedback": {"delay": "0.2 s", "share": 0.8}})
    config["quality"]["models"][BIG] |= {"budgets": (0, 128), "leaves": "1.2 s"}
    config["quality"]["models"][SMALL]["joins"] = "0.1 s"
    turns = {"distribution": "fixed", "value": 3}
    config["workload"]["sessions"] = {"turns": turns, "think_time": "0.3 s", "max_context_tokens": 1500}
    result = same_in_single_steps(config, tmp_path)
    assert result.summary["finished"] + result.summary["rejected"] == 45


@pytest.mark.parametrize("name", ["thinking", "signals"])
def test_scenarios_of_budgets_and_signals_run_and_repeat(name: str, tmp_path: Path) -> None:
    """As they stand in the folder of scenarios, with fewer requests: twice the same tables, to the last byte."""
    file = Path(__file__).parents[2] / "scenarios" / "models" / f"{name}.yaml"
    a, b = (
        fleetsim.run(file, out=tmp_path / str(i), check=True, overrides=["workload.requests=120"]) for i in range(2)
    )
    assert a.summary["finished"] == 120
    assert a.requests().equals(b.requests())
    assert len(set(a.requests()["model"].to_pylist())) > 1
    assert (a.requests()["calls"].to_numpy().max() > 1) == (name == "thinking")
