"""The only place where planning meets a solver: programs are built with PuLP and solved by HiGHS, on one thread."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import Any, Literal

import numpy as np

from fleetsim.errors import Finding, InputError
from fleetsim.kernel.solver import quiet
from fleetsim.planning.program import Floats, LinearProgram, Requirement
from fleetsim.units import show

Status = Literal["optimal", "timed out", "infeasible", "unbounded"]
_SENSES = {"<=": -1, "==": 0, ">=": 1}
"""As PuLP numbers them."""
_FEASIBLE = 2
"""HiGHS' number of a primal solution that keeps all rows."""
_SHOWN = 8
"""Requirements named in an explanation at most."""
_RESOLVES = 12
"""Shadow prices that are found by solving again, at most …"""
_SMALL = 2000
"""… of integer programs with no more variables than this; larger ones show the duals of the program without integers."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How long and how exactly to solve."""

    time_limit_s: float = 60.0
    """The best plan found by then is returned, with its gap [s]."""
    gap_ratio: float = 1e-4
    """Relative distance to the bound at which a plan is called optimal."""


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """What a solver says of a program."""

    status: Status
    objective: float
    bound: float
    """No solution is cheaper than this."""
    values: Floats
    duals: Floats
    """Change of the objective for one more unit of each requirement's amount; empty for integer programs."""
    build_s: float
    solve_s: float

    @property
    def gap_ratio(self) -> float:
        """Distance to the bound over the objective: how far from optimal at most."""
        if self.objective == self.bound:
            return 0.0
        return (self.objective - self.bound) / abs(self.objective) if self.objective else inf


@dataclass(frozen=True, slots=True)
class ShadowPrice:
    """What changing a requirement by one unit is worth."""

    what: str
    """``one more h100-sxm``."""
    saved: float
    """Objective saved; below zero it costs so much more."""
    unit: str
    """Of `saved`."""
    method: Literal["dual", "solved again", "dual without integers"]
    """Duals hold for a small change of a linear program; integer programs are solved again with one more unless they are large."""

    def __str__(self) -> str:
        verb = "save" if self.saved >= 0 else "cost"
        return f"{self.what} would {verb} {show(abs(self.saved))} {self.unit}"


@dataclass(frozen=True, slots=True)
class Shortfall:
    """A requirement that cannot be kept together with the others, and by how much it would have to give way."""

    words: str
    by: float
    unit: str

    def __str__(self) -> str:
        return f"{self.words}: missed by {show(self.by, self.unit)}"


def optimise(program: LinearProgram, effort: Effort | None = None) -> Solution:
    """Solve a program.

    Returns
    -------
    Solution
        Of status ``infeasible`` or ``unbounded`` without values.

    Raises
    ------
    InputError
        If the time was over before any solution was found.
    """
    import pulp

    effort = effort or Effort()
    started = time.perf_counter()
    problem, variables, rows = _built(program)
    solver = pulp.HiGHS(
        msg=False,
        threads=1,
        gapRel=effort.gap_ratio,
        timeLimit=effort.time_limit_s,
        random_seed=0,
        log_to_console=False,
    )
    with quiet():
        solver.createAndConfigureSolver(problem)
        solver.buildSolverModel(problem)
        built = time.perf_counter()
        solver.callSolver(problem)
    ended = time.perf_counter()
    return _read(program, problem.solverModel, variables, rows, effort, (built - started, ended - built))


def _built(program: LinearProgram) -> tuple[Any, list[Any], list[Any]]:
    """The program in PuLP's terms, with its variables and rows in our order.

    Expressions are made from pairs, not by adding terms one after the other, which takes PuLP a copy for each.
    """
    import pulp

    problem = pulp.LpProblem("plan", pulp.LpMinimize)
    lower = [None if low == -inf else low for low in program.lower.tolist()]
    upper = [None if high == inf else high for high in program.upper.tolist()]
    kinds = [pulp.LpInteger if whole else pulp.LpContinuous for whole in program.integer.tolist()]
    variables = [
        problem.add_variable(f"v{number}", low, high, kind)
        for number, (low, high, kind) in enumerate(zip(lower, upper, kinds, strict=True))
    ]
    problem += pulp.LpAffineExpression(list(zip(variables, program.cost.tolist(), strict=True)))
    rows = []
    for number, row in enumerate(program.requirements):
        pairs = zip(row.columns.tolist(), row.coefficients.tolist(), strict=True)
        left = pulp.LpAffineExpression([(variables[column], factor) for column, factor in pairs])
        constraint = pulp.LpConstraint(left, _SENSES[row.sense], f"r{number}", row.amount)
        problem.addConstraint(constraint)
        rows.append(constraint)
    return problem, variables, rows


def _read(
    program: LinearProgram,
    solver: Any,
    variables: list[Any],
    rows: list[Any],
    effort: Effort,
    times: tuple[float, float],
) -> Solution:
    import highspy

    codes = highspy.HighsModelStatus
    code, info = solver.getModelStatus(), solver.getInfo()
    nothing = np.empty(0)
    if code in (codes.kInfeasible, codes.kUnboundedOrInfeasible):
        return Solution("infeasible", inf, inf, nothing, nothing, *times)
    if code == codes.kUnbounded:
        return Solution("unbounded", -inf, -inf, nothing, nothing, *times)
    if info.primal_solution_status != _FEASIBLE:
        message = f"no plan was found within {effort.time_limit_s:g} s"
        hint = "raise the time limit, or state a smaller problem: fewer candidates, buckets or hours"
        raise InputError(Finding(message, hint=hint))
    answer = solver.getSolution()
    found = np.array(answer.col_value)
    values = found[[variable.index for variable in variables]]
    values[program.integer] = np.round(values[program.integer])
    values += 0.0  # no zero below zero
    objective = float(program.cost @ values)
    whole = bool(program.integer.any())
    duals = nothing if whole else np.array(answer.row_dual)[[row.index for row in rows]]
    optimal = code in (codes.kOptimal, codes.kObjectiveBound, codes.kObjectiveTarget)
    bound = info.mip_dual_bound if whole else objective if optimal else -inf
    return Solution("optimal" if optimal else "timed out", objective, min(bound, objective), values, duals, *times)


def require_solution(program: LinearProgram, effort: Effort | None = None, what: str = "plan") -> Solution:
    """Solve a program that must have a solution.

    Raises
    ------
    InputError
        If it has none, saying which requirements cannot be kept together and by how much; if costs fall without end; or if the time
        was over first.
    """
    effort = effort or Effort()
    _require_numbers(program)
    solution = optimise(program, effort)
    if solution.status == "unbounded":
        endless = [
            name
            for name, cost, upper in zip(program.names, program.cost, program.upper, strict=True)
            if cost < 0 and upper == inf
        ]
        hint = f"what has a negative price and no limit: {', '.join(endless[:5]) or 'a combination'}"
        raise InputError(Finding(f"the {what} is unbounded: more of it would always be cheaper", hint=hint))
    if solution.status == "infeasible":
        limits = [row.more != "" for row in program.requirements]
        missed = (shortfalls(program, effort, limits) if any(limits) else []) or shortfalls(program, effort)
        listed = "; ".join(map(str, missed)) or "bounds of variables contradict each other"
        hint = "the least that would have to give way, relative to each requirement; relax one of them or offer more"
        raise InputError(Finding(f"no {what} keeps all requirements: {listed}", hint=hint))
    return solution


def _require_numbers(program: LinearProgram) -> None:
    """Refuse what a solver would answer with nonsense."""
    for name, cost in zip(program.names, program.cost.tolist(), strict=True):
        if not isfinite(cost):
            raise InputError(Finding(f"{name} has no price", hint="give one, or leave it out of the candidates"))
    for row in program.requirements:
        if not (isfinite(row.amount) and np.isfinite(row.coefficients).all()):
            raise InputError(Finding(f"{row.words}: not a finite number"))


def shortfalls(
    program: LinearProgram, effort: Effort | None = None, bends: Sequence[bool] | None = None
) -> list[Shortfall]:
    """Requirements that would have to give way, and by how much: the least in sum, each relative to its own amount.

    Every elastic requirement (of those that `bends` marks, if given) gets slack, and the slack is minimised instead of the cost.
    None if that is not enough either.
    """
    bending = [row.elastic for row in program.requirements] if bends is None else list(bends)
    signs = {"<=": (-1.0,), ">=": (1.0,), "==": (1.0, -1.0)}
    rows: list[Requirement] = []
    weights: list[float] = []
    owners: list[Requirement] = []
    count = len(program.names)
    for row, bent_here in zip(program.requirements, bending, strict=True):
        columns, factors = row.columns, row.coefficients
        for sign in signs[row.sense] if bent_here else ():
            columns, factors = np.append(columns, count + len(weights)), np.append(factors, sign)
            weights.append(1.0 / abs(row.amount) if row.amount else 1.0)
            owners.append(row)
        rows.append(replace(row, columns=columns, coefficients=factors))
    slacks = len(weights)
    bent = LinearProgram(
        (*program.names, *(f"slack {k}" for k in range(slacks))),
        np.concatenate([np.zeros(count), weights]),
        np.concatenate([program.lower, np.zeros(slacks)]),
        np.concatenate([program.upper, np.full(slacks, inf)]),
        np.concatenate([program.integer, np.zeros(slacks, dtype=bool)]),
        tuple(rows),
    )
    if not slacks:
        return []
    solution = optimise(bent, effort)
    if solution.status not in ("optimal", "timed out"):
        return []
    found = solution.values[count:]
    missed = [
        Shortfall(owner.words, float(slack), owner.unit)
        for owner, slack in zip(owners, found, strict=True)
        if slack > 1e-7 * max(abs(owner.amount), 1.0)
    ]
    return sorted(missed, key=lambda one: -one.by)[:_SHOWN]


def shadow_prices(program: LinearProgram, solution: Solution, effort: Effort | None = None) -> list[ShadowPrice]:
    """What one more unit of each requirement that asks for a price is worth, most first; those worth nothing are left out.

    Duals of linear programs. Integer programs have none: those whose row is nearly tight are solved again with one more unit. Large
    ones, for which that would take long, show the duals of the same program without integers.
    """
    asked = [number for number, row in enumerate(program.requirements) if row.more]
    prices: list[ShadowPrice] = []
    whole = bool(program.integer.any())
    if not whole or len(program.names) > _SMALL:
        duals = (optimise(program.relaxed, effort) if whole and asked else solution).duals
        method: Literal["dual", "dual without integers"] = "dual without integers" if whole else "dual"
        rows = [(program.requirements[number].more, number) for number in asked] if duals.size else []
        prices += [ShadowPrice(more, -float(duals[number]), program.unit, method) for more, number in rows]
    else:
        for number in [n for n in asked if _tight(program.requirements[n], solution.values)][:_RESOLVES]:
            row = program.requirements[number]
            again = optimise(program.with_amount(number, row.amount + 1.0), effort)
            if again.status == "optimal":
                prices.append(ShadowPrice(row.more, solution.objective - again.objective, program.unit, "solved again"))
    scale = max(abs(solution.objective), 1e-12) * 1e-6
    return sorted((price for price in prices if abs(price.saved) > scale), key=lambda price: -price.saved)


def _tight(row: Requirement, values: Floats) -> bool:
    """Whether one more unit could matter: less than that, or less than the largest whole step, is left of it."""
    used = float(row.coefficients @ values[row.columns])
    step = max(1.0, float(np.abs(row.coefficients).max(initial=0.0)))
    return abs(row.amount - used) < step or row.sense != "<="
