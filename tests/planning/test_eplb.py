"""Replicas of experts: optimal replication against enumeration, laws of plans, and what is refused."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetsim.errors import InputError
from fleetsim.planning.eplb import (
    BALANCERS,
    Cluster,
    DrawnLoads,
    Floats,
    Integers,
    evaluate,
    loads_of,
    replicate,
    require_valid,
)
from fleetsim.planning.problems import load_problem
from fleetsim.planning.result import Plan


def solved(**problem: Any) -> Plan:
    return load_problem({"name": "test", "problem": {"kind": "eplb"} | problem}).problem.solve()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 100), min_size=6, max_size=6), st.integers(6, 12))
def test_greedy_replication_is_optimal(load: list[int], slots: int) -> None:
    """Of six experts in two and more replicas: no other counts have a smaller largest load of a replica."""
    values = np.array(load, dtype=np.float64)
    counts = replicate(values, slots)
    assert counts.sum() == slots
    best = min(
        max(v / n for v, n in zip(load, tried, strict=True))
        for tried in product(range(1, slots - 4), repeat=6)
        if sum(tried) == slots
    )
    assert (values / counts).max() == pytest.approx(best)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([(8, 2, 4), (8, 1, 1), (4, 4, 8), (6, 3, 4)]),
    st.integers(1, 3),
    st.booleans(),
)
def test_plans_are_complete_and_loads_add_up(seed: int, shape: tuple[int, int, int], times: int, tree: bool) -> None:
    accelerators, nodes, groups = shape
    loads = DrawnLoads(layers=3, experts=24, windows=2, seed=seed).draw()
    cluster = Cluster(accelerators, 24 * times, nodes, groups)
    plan = BALANCERS["hierarchical" if tree else "greedy"](loads[0], cluster)
    require_valid(plan, loads[0], cluster)
    per_accelerator, per_slot = loads_of(plan, loads[1], cluster)
    assert per_accelerator.sum(axis=1) == pytest.approx(1.0)
    assert per_slot.sum(axis=1) == pytest.approx(1.0)
    if tree and not groups % nodes and not accelerators % nodes:
        size, share = 24 // groups, accelerators // nodes * cluster.each
        for layer in plan:
            homes = [set(layer[n * share : (n + 1) * share] // size) for n in range(nodes)]
            assert sum(map(len, homes)) == groups  # a group lies on one node


@pytest.mark.parametrize("method", ["hierarchical", "greedy"])
@pytest.mark.parametrize("times", [2, 4])
def test_loads_that_stay_are_balanced(method: str, times: int) -> None:
    windows = DrawnLoads(layers=4, experts=64, windows=3, drift=1.0).draw()
    assert (windows[0] == windows[-1]).all()
    found = evaluate(BALANCERS[method], windows, Cluster(16, 64 * times, 1, 8))
    assert found.per_accelerator >= 0.95
    assert found.moved_ratio == 0.0


def test_drift_costs_balance_and_moves_experts() -> None:
    cluster = Cluster(16, 128, 2, 8)
    balances = [
        evaluate(BALANCERS["hierarchical"], DrawnLoads(drift=drift, windows=8).draw(), cluster)
        for drift in (1.0, 0.95, 0.5)
    ]
    assert balances[0].per_accelerator > balances[1].per_accelerator > balances[2].per_accelerator
    assert 0.0 == balances[0].moved_ratio < balances[1].moved_ratio < balances[2].moved_ratio
    assert all(0.0 < one.per_slot <= 1.0 for one in balances)


def test_loads_drift_as_stated() -> None:
    windows = DrawnLoads(layers=40, experts=64, windows=2, drift=0.9).draw()
    before, after = (np.log(window) for window in windows)
    before, after = (x - x.mean(axis=1, keepdims=True) for x in (before, after))
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] == pytest.approx(0.9, abs=0.02)
    assert after.std() == pytest.approx(before.std(), rel=0.05)


def test_plans_that_cheat_are_refused() -> None:
    windows, cluster = DrawnLoads(layers=1, experts=4, windows=2).draw(), Cluster(2, 8)

    def hottest(loads: Floats, _: Cluster) -> Integers:
        return np.full((1, 8), int(loads[0].argmax()))

    def short(loads: Floats, _: Cluster) -> Integers:
        return np.array([[0, 1, 2, 3]])

    with pytest.raises(ValueError, match="leaves out 3 experts"):
        evaluate(hottest, windows, cluster)
    with pytest.raises(ValueError, match="for 1 layers of 8 slots"):
        evaluate(short, windows, cluster)


def test_by_hand_and_bad_input() -> None:
    """Three experts of loads 4, 1, 1 on two accelerators of two slots: the first one twice, 3 and 3."""
    plan = solved(
        accelerators=2, slots=4, loads=[[[4, 1, 1]], [[4, 1, 1]]], method="greedy", time="0.04 s", expert_bytes="1 MB"
    )
    assert plan.objective == pytest.approx(1.0)
    assert plan.figures["balance_per_slot_ratio"] == pytest.approx(1.5 / 2)
    assert plan.figures["score"] == pytest.approx(0.5 + 0.25)
    assert plan.figures["moved_bytes"] == 0.0
    for problem, message in (
        ({"accelerators": 3, "slots": 4}, "4 slots cannot be divided by 3 accelerators"),
        ({"accelerators": 4, "slots": 32}, "32 slots for 64 experts"),
        ({"accelerators": 1, "slots": 2, "loads": [[[1, 1]]]}, "two windows at least"),
        ({"accelerators": 1, "slots": 2, "loads": [[[1, 1]], [[1]]]}, "as many layers"),
        ({"accelerators": 1, "slots": 2, "loads": [[[1, 1]], [[0, 0]]]}, "a window has no load"),
        ({"accelerators": 1, "slots": 2, "loads": [[[1, -1]], [[1, 1]]]}, r"loads(.|\n)*0"),
    ):
        with pytest.raises(InputError, match=message):
            solved(**problem)
