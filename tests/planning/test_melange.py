"""Mélange's integer program: its toy case, and random ones against enumeration."""

from __future__ import annotations

from itertools import product
from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetsim.errors import InputError
from fleetsim.planning.melange import MelangeProblem, Offer, solve_melange
from fleetsim.planning.solve import Effort

TOY = MelangeProblem(
    rates_per_s=[6.0, 3.0, 15.0, 6.0],
    offers=[Offer("A10G", 1.01), Offer("A100", 3.67)],
    throughputs_per_s=[[2.0, 1.0, 5.0, 2.0], [20.0, 20.0, 40.0, 20.0]],
    slices=1,
)


def test_the_toy_case_of_the_authors_costs_6_70_usd() -> None:
    plan, assignment = solve_melange(TOY)
    assert plan.objective == pytest.approx(6.70, abs=1e-9)
    assert plan.status == "optimal"
    assert assignment.replicas == (3, 1)
    assert plan.bound == pytest.approx(6.70)
    assert plan.figures["linear_bound_usd_per_h"] == pytest.approx(3.67 * 1.125)


def test_one_kind_alone_costs_7_34_usd() -> None:
    alone = MelangeProblem(TOY.rates_per_s, TOY.offers[1:], TOY.throughputs_per_s[1:], slices=1)
    assert solve_melange(alone)[0].objective == pytest.approx(7.34)


def enumerated(problem: MelangeProblem) -> float | None:
    """Cheapest of all assignments of whole buckets."""
    best = None
    table = np.array(problem.throughputs_per_s)
    for choice in product(range(len(problem.offers)), repeat=len(problem.rates_per_s)):
        loads = [0.0] * len(problem.offers)
        for bucket, g in enumerate(choice):
            loads[g] += problem.rates_per_s[bucket] / table[g, bucket]
        counts = [ceil(load - 1e-9) for load in loads]
        if any(n > problem.limits.get(o.name, 99) for n, o in zip(counts, problem.offers, strict=True)):
            continue
        cost = sum(n * o.price_usd_per_h for n, o in zip(counts, problem.offers, strict=True))
        best = cost if best is None else min(best, cost)
    return best


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 5), st.integers(1, 4))
def test_optimum_equals_enumeration(seed: int, kinds: int, buckets: int, limit: int) -> None:
    rng = np.random.default_rng(seed)
    problem = MelangeProblem(
        rates_per_s=rng.integers(1, 20, buckets).tolist(),
        offers=[Offer(f"chip{g}", float(rng.integers(1, 9))) for g in range(kinds)],
        throughputs_per_s=rng.integers(1, 12, (kinds, buckets)).tolist(),
        slices=1,
        limits={"chip0": limit},
    )
    best = enumerated(problem)
    if best is None:
        with pytest.raises(InputError, match="no plan keeps all requirements"):
            solve_melange(problem)
        return
    plan, assignment = solve_melange(problem, Effort(gap_ratio=0.0))
    assert plan.objective == pytest.approx(best)
    assert np.array(assignment.shares).sum(axis=1) == pytest.approx(1.0)
    halves = MelangeProblem(
        problem.rates_per_s, problem.offers, problem.throughputs_per_s, slices=2, limits=problem.limits
    )
    assert solve_melange(halves, Effort(gap_ratio=0.0))[0].objective <= best + 1e-9


def test_limits_have_a_price_in_words() -> None:
    limited = MelangeProblem(TOY.rates_per_s, TOY.offers, TOY.throughputs_per_s, slices=1, limits={"A100": 0})
    plan, _ = solve_melange(limited)
    assert plan.objective == pytest.approx(12 * 1.01)
    assert [str(price) for price in plan.prices] == ["one more A100 would save 5.42 USD/h"]


def test_power_limits_hold_and_are_priced() -> None:
    offers = [Offer("A10G", 1.01, power_w=300.0), Offer("A100", 3.67, power_w=500.0)]
    problem = MelangeProblem(TOY.rates_per_s, offers, TOY.throughputs_per_s, slices=1, power_limit_w=1000.0)
    plan, assignment = solve_melange(problem)
    assert assignment.replicas == (0, 2)
    assert [str(price) for price in plan.prices] == ["one more kW of power would save 0.64 USD/h"]


def test_bad_input_is_told() -> None:
    for changes, message in (
        ({"rates_per_s": [-1.0, 3.0, 15.0, 6.0]}, "must not be negative"),
        ({"offers": [Offer("A10G", 1.01), Offer("A100", float("nan"))]}, "A100 has no price"),
        ({"limits": {"H100": 3}}, "which is no candidate"),
        ({"throughputs_per_s": [[0.0] * 4, [0.0, 20, 40, 20]]}, "no candidate keeps the SLO for bucket 0"),
        ({"utilisation_limit": 0.0}, "utilisation 0"),
        ({"limits": {"A100": 1, "A10G": 2}}, "no plan keeps all requirements: .*missed by"),
    ):
        fields = {k: getattr(TOY, k) for k in TOY.__slots__} | changes
        with pytest.raises(InputError, match=message):
            solve_melange(MelangeProblem(**fields))
