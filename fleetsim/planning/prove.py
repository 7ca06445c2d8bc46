"""Plan, then prove: simulate what was planned, and tighten the plan until the simulated SLO holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fleetsim.errors import InputError
from fleetsim.experiment.replicate import Notice
from fleetsim.planning.judge import FIGURES, Confidence, Judgement, judge
from fleetsim.planning.melange import Assignment, MelangeProblem, balanced, solve_melange
from fleetsim.planning.plan import Options, Planned, fragment, laid_over, plan_melange
from fleetsim.planning.result import Plan, Proof
from fleetsim.planning.solve import Effort, require_solution
from fleetsim.scenario.load import LoadedScenario
from fleetsim.units import show

ROUNDS = 12
"""Fleets that verification simulates at most."""
_RAISE, _LEAP = 1.05, 1.25
"""Factor on the demand from one plan to the next; where the SLO was missed by far, the larger one."""
_FAR = 0.97
"""Attainment over its target below which it was missed by far."""
_RAISES = 60


@dataclass(frozen=True, slots=True)
class _Tried:
    """A fleet and what became of it."""

    counts: tuple[int, ...]
    plan: Plan
    judgement: Judgement


def plan_and_prove(
    loaded: LoadedScenario,
    options: Options | None = None,
    effort: Effort | None = None,
    confidence: Confidence | None = None,
    rounds: int = ROUNDS,
    notice: Notice = lambda _: None,
) -> Plan:
    """Plan a fleet, simulate it on the scenario's workload, and plan with more demand until the simulated SLO holds.

    The plan's `proof` compares what was predicted with what was simulated. The bound is `least_cost` of the demand as it is.

    Raises
    ------
    InputError
        As `plan_melange`. That the SLO could not be proved is no error: the proof says why.
    """
    confidence = confidence or Confidence()
    planned = plan_melange(loaded, options, effort)
    least = least_cost(planned.problem, effort)
    lines: list[str] = []
    tried: list[_Tried] = []
    factor, problem, plan = 1.0, planned.problem, planned.plan
    counts = counts_of(planned, plan)
    while True:
        judgement = judge(laid_over(loaded, plan.fleet), confidence=confidence)
        tried.append(_Tried(counts, plan, judgement))
        lines.append(f"{described(plan)} ({show(plan.objective)} {plan.unit}): {judgement.verdict}, {judgement.reason}")
        notice(lines[-1])
        if judgement.met or len(tried) >= rounds:
            break
        far = judgement.attainment[0] < _FAR * judgement.target
        step = _tighter(planned, problem, factor, _LEAP if far else _RAISE, counts, effort)
        if isinstance(step, str):
            return _proved(planned, plan, judgement, confidence, lines, least, step)
        factor, plan, counts = step
    reason = "" if judgement.met else _why(tried)
    return _proved(planned, plan, judgement, confidence, lines, least, reason)


def _tighter(
    planned: Planned,
    problem: MelangeProblem,
    factor: float,
    step: float,
    counts: tuple[int, ...],
    effort: Effort | None,
) -> tuple[float, Plan, tuple[int, ...]] | str:
    """The first plan for more demand that buys another fleet; a reason if there is none."""
    for _ in range(_RAISES):
        factor *= step
        try:
            plan, assignment = solve_melange(
                replace(problem, rates_per_s=[rate * factor for rate in problem.rates_per_s]), effort
            )
        except InputError as error:
            return f"the next plan, for {factor:.2f} times the demand, is not possible: {error.findings[0].message}"
        if assignment.replicas != counts:
            fleet = fragment(planned.demand, planned.candidates, assignment)
            notes = (*planned.plan.notes, f"tightened: planned for {factor:.2f} times the demand")
            return factor, replace(plan, fleet=fleet, notes=notes), assignment.replicas
    return f"plans for up to {factor:.1f} times the demand buy the same fleet"


def least_cost(problem: MelangeProblem, effort: Effort | None = None) -> float:
    """What no fleet of these offers undercuts as far as their throughputs hold.

    Whole replicas, all of their throughput, and any division of the requests.
    """
    free = replace(problem, utilisation_limit=1.0, refuted=())
    return require_solution(free.formulate(whole_slices=False), effort).bound


def _why(tried: Sequence[_Tried]) -> str:
    """What the simulations of ever larger fleets say about the reason."""
    first, last = tried[0].judgement, tried[-1].judgement
    above = ", ".join(f"{share:.1%} above {name}" for name, share in last.missed_by.items() if share)
    gained = last.attainment[0] - first.attainment[0]
    verdict = (
        "more replicas helped, but not enough in so many rounds" if gained > 0.005 else "more replicas do not help"
    )
    return f"not proved after {len(tried)} fleets ({above or 'requests did not finish'}): {verdict}"


def _proved(
    planned: Planned,
    plan: Plan,
    judgement: Judgement,
    confidence: Confidence,
    lines: Sequence[str],
    least: float,
    reason: str,
) -> Plan:
    mean, low, high = judgement.attainment
    simulated = {"attainment_ratio": mean, **{name: judgement.figures[name] for name in FIGURES}}
    predicted = {"attainment_ratio": 1.0, "cost_usd_per_h": plan.objective, "power_w": _power_w(planned, plan)}
    proof = Proof(
        judgement.met,
        mean,
        low,
        high,
        judgement.target,
        confidence.level,
        judgement.seeds,
        predicted,
        simulated,
        tuple(lines),
        reason,
    )
    return replace(plan, bound=min(least, plan.bound), proof=proof)


def _power_w(planned: Planned, plan: Plan) -> float:
    """Mean power of the accelerators: busy ones at work, the others idle, by the plan's utilisation."""
    total = 0.0
    for row in plan.table:
        g = next(k for k, c in enumerate(planned.candidates) if c.offer.name == row["offer"])
        idle = planned.candidates[g].pool.model.idle_w
        busy = float(np.mean([rate.power_w for rate in planned.rates[g] if rate.requests_per_s] or [idle]))
        total += row["replicas"] * (row["utilisation"] * busy + (1.0 - row["utilisation"]) * idle)
    return total


def counts_of(planned: Planned, plan: Plan) -> tuple[int, ...]:
    """Replicas of each candidate in a plan."""
    bought: Mapping[str, int] = {row["offer"]: row["replicas"] for row in plan.table}
    return tuple(bought.get(candidate.offer.name, 0) for candidate in planned.candidates)


def described(plan: Plan) -> str:
    """A fleet in a few words."""
    return " + ".join(f"{row['replicas']} {row['offer']}" for row in plan.table)


def find_fleet_for(
    loaded: LoadedScenario,
    options: Options | None = None,
    effort: Effort | None = None,
    confidence: Confidence | None = None,
    rounds: int = 40,
    notice: Notice = lambda _: None,
) -> Plan:
    """The cheapest fleet whose simulated SLO holds, by cuts.

    The integer program proposes the cheapest fleet that could carry the load with all of its throughput; the simulation judges it.
    A fleet that fails is cut off together with all that have no more of anything, and the next cheapest is proposed. So whatever is
    cheaper than the answer either cannot carry the load by the throughput model, or failed, or has no more of anything than one
    that failed (more replicas are taken never to do harm).

    Raises
    ------
    InputError
        As `plan_melange`.
    """
    confidence = confidence or Confidence()
    planned = plan_melange(loaded, replace(options or Options(), utilisation_limit=1.0), effort)
    exact = replace(effort or Effort(), gap_ratio=0.0)
    problem, lines, least = planned.problem, list[str](), least_cost(planned.problem, effort)
    while True:
        plan, first = solve_melange(problem, exact)
        assignment = Assignment(first.replicas, balanced(problem, first.replicas, exact))
        fleet = fragment(planned.demand, planned.candidates, assignment)
        judgement = judge(laid_over(loaded, fleet), confidence=confidence)
        plan = replace(plan, kind="fleet by simulation", fleet=fleet, notes=_fleet_notes(planned))
        lines.append(f"{described(plan)} ({show(plan.objective)} {plan.unit}): {judgement.verdict}, {judgement.reason}")
        notice(lines[-1])
        if judgement.met:
            plan = replace(plan, notes=(*plan.notes, f"{len(lines) - 1} cheaper fleets failed in the simulation"))
            return _proved(planned, plan, judgement, confidence, lines, least, "")
        if len(lines) >= rounds:
            reason = f"none of the {rounds} cheapest fleets keeps the SLO: raise the number of rounds, or offer others"
            return _proved(planned, plan, judgement, confidence, lines, least, reason)
        problem = replace(problem, refuted=(*problem.refuted, assignment.replicas))


def _fleet_notes(planned: Planned) -> tuple[str, ...]:
    return tuple(note for note in planned.plan.notes if "absorbs bursts" not in note)
