"""Helix's placement: tiny cases by enumeration, flows equal to the program."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetsim.errors import InputError
from fleetsim.planning.helix import StatedHelix, max_flow
from fleetsim.planning.problems import load_problem
from fleetsim.planning.solve import Effort
from fleetsim.reproduce.functions.helix import separate, swarm


def helix(**problem: Any) -> StatedHelix:
    stated = load_problem({"name": "h", "problem": {"kind": "helix", **problem}}).problem
    assert isinstance(stated, StatedHelix)
    return stated


def enumerated(problem: StatedHelix) -> float:
    """Largest flow of all placements."""
    names = list(problem.nodes)
    choices = [
        [(s, s + k) for k in range(1, len(problem.nodes[n].tokens_per_s) + 1) for s in range(problem.layers - k + 1)]
        for n in names
    ]
    return max(max_flow(problem, dict(zip(names, choice, strict=True)))[0] for choice in product(*choices))


def test_two_nodes_that_hold_half_each_form_a_chain() -> None:
    nodes = {"a": {"tokens_per_s": [100, 50]}, "b": {"tokens_per_s": [80, 40]}}
    plan = helix(layers=4, nodes=nodes, link_tokens_per_s=1000).solve()
    assert plan.objective == pytest.approx(40)
    assert {row["layers"] for row in plan.table} == {"0 to 1", "2 to 3"}


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 4), st.integers(2, 3))
def test_placements_equal_enumeration(seed: int, layers: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    nodes = {}
    for k in range(count):
        one = float(rng.integers(20, 100))
        fit = int(rng.integers(1, layers + 1))
        nodes[f"n{k}"] = {"tokens_per_s": [one / (j + 1) for j in range(fit)]}
    links = [
        {"source": a, "target": b, "tokens_per_s": float(rng.integers(0, 60))}
        for a in nodes
        for b in nodes
        if a != b and rng.random() < 0.5
    ]
    problem = helix(layers=layers, nodes=nodes, link_tokens_per_s=70.0, links=links)
    best = enumerated(problem)
    if best <= 0:
        with pytest.raises(InputError):
            problem.solve()
        return
    assert problem.solve(Effort(gap_ratio=0.0)).objective == pytest.approx(best, rel=1e-6)


def test_what_cannot_work_is_told() -> None:
    with pytest.raises(InputError, match="hold 1 of 4 layers"):
        helix(layers=4, nodes={"a": {"tokens_per_s": [10]}}, link_tokens_per_s=5).solve()
    with pytest.raises(InputError, match="names b, which is no node"):
        helix(
            layers=1,
            nodes={"a": {"tokens_per_s": [10]}},
            link_tokens_per_s=5,
            links=[{"source": "a", "target": "b", "tokens_per_s": 1}],
        )


def test_simple_placements_of_the_paper_file() -> None:
    nodes = {
        "fast/0": {"tokens_per_s": [90, 45, 30, 22]},
        "slow/0": {"tokens_per_s": [40, 20]},
        "slow/1": {"tokens_per_s": [40, 20]},
    }
    problem = helix(layers=4, nodes=nodes, link_tokens_per_s=1000)
    stages = swarm(problem)  # two equal ones: the fast node is the first, and both slow ones are needed to match it
    assert stages == {"fast/0": (0, 2), "slow/0": (2, 4), "slow/1": (2, 4)}
    assert max_flow(problem, stages)[0] == pytest.approx(40)
    pipelines = separate(problem)
    assert pipelines == {"fast/0": (0, 4), "slow/0": (0, 2), "slow/1": (2, 4)}
    assert max_flow(problem, pipelines)[0] == pytest.approx(42)
