"""Programs as data, and what the solver says of them."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetsim.errors import InputError
from fleetsim.planning.program import Formulation, LinearProgram
from fleetsim.planning.solve import Effort, optimise, require_solution, shadow_prices, shortfalls


def knapsack(weights: list[int], demand: float, limit: float, integer: bool = True) -> LinearProgram:
    """Cheapest machines that carry a demand; the k-th costs k + 2 and carries weights[k]."""
    form = Formulation()
    names = [f"machine {k}" for k in range(len(weights))]
    columns = form.variables(names, cost=np.arange(len(weights)) + 2.0, upper=6.0, integer=integer)
    form.require("the demand", columns, [float(w) for w in weights], ">=", demand, unit="req/s")
    form.require("at most so many", columns, 1.0, "<=", limit, unit="machines", more="one more machine")
    return form.program()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(1, 40), st.integers(1, 9))
def test_answers_equal_enumeration(weights: list[int], demand: int, limit: int) -> None:
    program = knapsack(weights, demand, limit)
    best = min(
        (
            sum(n * (k + 2.0) for k, n in enumerate(counts))
            for counts in product(range(7), repeat=len(weights))
            if sum(counts) <= limit and sum(n * w for n, w in zip(counts, weights, strict=True)) >= demand
        ),
        default=None,
    )
    solution = optimise(program, Effort(gap_ratio=0.0))
    if best is None:
        assert solution.status == "infeasible"
        missed = shortfalls(program)
        assert missed
        assert all(one.by > 0 for one in missed)
    else:
        assert solution.objective == pytest.approx(best)
        assert solution.bound <= best + 1e-9
        relaxed = optimise(program.relaxed)
        assert relaxed.objective <= best + 1e-9


def test_duals_tell_what_one_more_is_worth() -> None:
    program = knapsack([4, 5], 26.0, 5.4, integer=False)
    solution = optimise(program)
    more = optimise(program.with_amount(1, 6.4))
    (price,) = shadow_prices(program, solution)
    assert price.saved == pytest.approx(solution.objective - more.objective)
    assert price.saved > 0
    assert str(price) == "one more machine would save 2 USD/h"


def test_integer_programs_are_solved_again_with_one_more() -> None:
    program = knapsack([1, 3], 9.0, 3.0)
    solution = optimise(program)
    prices = shadow_prices(program, solution)
    again = optimise(program.with_amount(1, 4.0))
    assert [price.method for price in prices] == ([] if again.objective == solution.objective else ["solved again"])


def test_infeasible_says_which_requirement_and_by_how_much() -> None:
    with pytest.raises(InputError, match=r"no plan keeps all requirements: the demand: missed by 21 req/s"):
        require_solution(knapsack([1, 3], 30.0, 3.0))


def test_unbounded_and_unpriced_are_told() -> None:
    form = Formulation()
    form.variables(["sold back"], cost=-1.0)
    with pytest.raises(InputError, match=r"unbounded(.|\n)*sold back"):
        require_solution(form.program())
    form = Formulation()
    form.variables(["tpu"], cost=float("nan"))
    with pytest.raises(InputError, match="tpu has no price"):
        require_solution(form.program())


def test_time_out_returns_the_best_plan_with_its_gap() -> None:
    rng = np.random.default_rng(3)
    form = Formulation()
    columns = form.variables(
        [f"x{k}" for k in range(200)], cost=-rng.integers(900, 1000, 200).astype(float), upper=1.0, integer=True
    )
    for row in range(20):
        form.require(f"row {row}", columns, rng.integers(900, 1000, 200).astype(float), "<=", 48_000.0)
    solution = optimise(form.program(), Effort(time_limit_s=2.0, gap_ratio=0.0))
    assert solution.status == "timed out"
    assert solution.gap_ratio > 0
    assert solution.bound < solution.objective < 0


def test_equal_programs_have_equal_answers() -> None:
    one, two = (optimise(knapsack([2, 3, 5], 23.0, 6.0)) for _ in range(2))
    assert one.values.tolist() == two.values.tolist()
