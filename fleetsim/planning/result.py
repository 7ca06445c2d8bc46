"""What a planner answers with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fleetsim.planning.solve import ShadowPrice, Solution


@dataclass(frozen=True, slots=True)
class Proof:
    """What the simulation of a plan showed."""

    proved: bool
    """Whether the SLO holds with the stated confidence."""
    attainment_mean_ratio: float
    attainment_low_ratio: float
    """Low end of its confidence interval over seeds."""
    attainment_high_ratio: float
    target_ratio: float
    confidence: float
    seeds: int
    predicted: Mapping[str, float]
    """What the plan said, by figure."""
    simulated: Mapping[str, float]
    """What the simulation says, by figure."""
    rounds: tuple[str, ...]
    """What was tried, one line a round."""
    reason: str = ""
    """Why it could not be proved."""


@dataclass(frozen=True, slots=True, repr=False)
class Plan:
    """A finished plan."""

    kind: str
    """Which problem was solved."""
    status: str
    """``optimal`` (within the gap asked for), ``timed out`` (the best found, with its gap), or ``heuristic`` (by a rule)."""
    objective: float
    unit: str
    """Of the objective."""
    bound: float
    """No plan is better than this."""
    fleet: Mapping[str, Any]
    """Fragment of a scenario: what to lay over it to run the plan; empty where a plan is no single fleet."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """What the plan predicts."""
    table: Sequence[Mapping[str, Any]] = ()
    """What to buy, run or place: one row each."""
    prices: Sequence[ShadowPrice] = ()
    """What changing a requirement is worth, most first."""
    notes: Sequence[str] = ()
    """What the plan assumes, leaves out or warns of."""
    build_s: float = 0.0
    solve_s: float = 0.0
    proof: Proof | None = None

    @property
    def gap_ratio(self) -> float:
        """How far from optimal at most, over the objective."""
        return abs(self.objective - self.bound) / abs(self.objective) if self.objective else 0.0

    def __repr__(self) -> str:
        """One line."""
        return f"Plan({self.kind!r}, {self.objective:.6g} {self.unit}, {self.status}, gap {self.gap_ratio:.2%})"


def solved(kind: str, solution: Solution, unit: str, **more: Any) -> Plan:
    """A plan with what the solver says of it."""
    notes = list(more.pop("notes", ()))
    if solution.status == "timed out":
        notes.append(f"the time was over: this is the best plan found, at most {solution.gap_ratio:.2%} from optimal")
    return Plan(
        kind,
        solution.status,
        solution.objective,
        unit,
        solution.bound,
        build_s=solution.build_s,
        solve_s=solution.solve_s,
        notes=tuple(notes),
        **more,
    )
