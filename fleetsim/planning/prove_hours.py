"""Plans by the hour, proved: the hours that are fullest are simulated, and the plan is tightened until the SLO holds in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from fleetsim.errors import Finding, InputError
from fleetsim.experiment.replicate import Notice
from fleetsim.planning.distserve import Trial, at_rate
from fleetsim.planning.judge import Confidence, Judgement, judge
from fleetsim.planning.over_scenario import with_pools
from fleetsim.planning.plan import require_slo
from fleetsim.planning.result import Plan, Proof
from fleetsim.planning.solve import Effort
from fleetsim.scenario.load import LoadedScenario, load_mapping
from fleetsim.scenario.schema import MixWorkload
from fleetsim.units import show

ROUNDS = 8
"""Plans that are simulated at most."""
_HOURS = 3
"""Hours of a plan that are simulated: the fullest ones, and the fullest of any other set of chips."""
_TIGHTER, _LEAP, _FAR = 0.95, 0.85, 0.97
"""Factor on the utilisation from one plan to the next; the smaller one where the SLO was missed by far."""
_REQUESTS, _SPAN_S = 500, 60.0
"""Of a run at least: an hour is taken to be long against what a request takes."""


@dataclass(frozen=True, slots=True)
class Hour:
    """What a plan has in an hour, and what it serves."""

    label: str
    replicas: Mapping[str, int]
    """That serve, by chip."""
    rates_per_s: Mapping[str, float]
    """Of each kind of request."""
    load_ratio: float
    """Of all throughput."""
    power_w: float = 0.0
    """That the plan expects; 0: it does not say."""


class HourlyPlanner(Protocol):
    """A problem whose plan has hours."""

    @property
    def utilisation(self) -> float:
        """Share of a replica's throughput to plan with."""
        ...

    def loaded(self) -> LoadedScenario:
        """Scenario to simulate with."""
        ...

    def with_utilisation(self, ratio: float) -> HourlyPlanner:
        """The same problem, planned with another share."""
        ...

    def planned(self, effort: Effort | None) -> tuple[Plan, list[Hour]]:
        """The plan and its hours."""
        ...


@dataclass(frozen=True, slots=True)
class _Round:
    plan: Plan
    hour: Hour
    """The one with the lowest attainment."""
    judgement: Judgement


def prove_hours(
    problem: HourlyPlanner,
    effort: Effort | None = None,
    confidence: Confidence | None = None,
    notice: Notice = lambda _: None,
) -> Plan:
    """Plan, simulate the fullest hours, and plan with less of each replica's throughput until the SLO holds in all of them.

    An hour is simulated as a steady state: Poisson arrivals at its rates, its replicas in the scenario's pools, the scenario's
    router. That the SLO could not be proved is no error: the proof says why.

    Raises
    ------
    InputError
        If there is no scenario, it lacks a pool, or no plan is possible at first.
    """
    confidence = confidence or Confidence()
    loaded = problem.loaded()
    target = require_slo(loaded).attainment
    lines: list[str] = []
    plan, hours = problem.planned(effort)
    first = plan.objective
    while True:
        worst = _simulated(loaded, plan, hours, confidence)
        judgement = worst.judgement
        told = f"{_described(worst.hour)} in {worst.hour.label}: {judgement.verdict}, {judgement.reason}"
        lines.append(f"utilisation {problem.utilisation:.2f} ({show(plan.objective)} {plan.unit}): {told}")
        notice(lines[-1])
        if judgement.met or len(lines) >= ROUNDS:
            break
        far = judgement.attainment[0] < _FAR * target
        problem = problem.with_utilisation(problem.utilisation * (_LEAP if far else _TIGHTER))
        try:
            plan, hours = problem.planned(effort)
        except InputError as error:
            reason = f"the next plan, with utilisation {problem.utilisation:.2f}, is not possible: {error.findings[0].message}"
            return _proved(worst, confidence, lines, reason)
    notes = [f"simulated: the {_HOURS} fullest hours and that of each set of chips, as steady states"]
    if len(lines) > 1:
        notes.append(
            f"tightened to {problem.utilisation:.0%} of each replica's throughput: {plan.objective / first - 1.0:+.1%} cost"
        )
    worst = replace(worst, plan=replace(worst.plan, notes=(*worst.plan.notes, *notes)))
    return _proved(worst, confidence, lines, "" if judgement.met else _why(judgement, len(lines)))


def _simulated(loaded: LoadedScenario, plan: Plan, hours: Sequence[Hour], confidence: Confidence) -> _Round:
    """Some hours simulated: the first that is not met, or the one with the lowest attainment."""
    chosen = _fullest(hours)
    if not chosen:
        raise InputError(Finding("the plan has no hour with any work to simulate", "problem"))
    rounds = []
    for hour in chosen:
        rounds.append(_Round(plan, hour, judge(scenario_of(loaded, hour), confidence=confidence, force=True)))
        if not rounds[-1].judgement.met:
            return rounds[-1]
    return min(rounds, key=lambda one: one.judgement.attainment[1])


def _fullest(hours: Sequence[Hour]) -> list[Hour]:
    """The fullest hours, and the fullest of every other set of chips; of equally full ones those with fewer replicas."""
    order = sorted(hours, key=lambda hour: (-round(hour.load_ratio, 6), sum(hour.replicas.values())))
    kinds: dict[tuple[Any, ...], Hour] = {}
    for hour in order:
        if hour.replicas and sum(hour.rates_per_s.values()) > 0:
            kinds.setdefault((tuple(hour.replicas.items()), tuple(hour.rates_per_s.items())), hour)
    chosen = list(kinds.values())[:_HOURS]
    for hour in kinds.values():
        if all(set(hour.replicas) != set(one.replicas) for one in chosen):
            chosen.append(hour)
    return chosen


def scenario_of(loaded: LoadedScenario, hour: Hour) -> LoadedScenario:
    """The scenario with an hour's replicas and rates.

    Raises
    ------
    InputError
        If a chip has no pool, or a kind of request no part of the workload.
    """
    pools = {pool["name"]: pool for pool in loaded.resolved["pools"]}
    missing = [name for name in hour.replicas if name not in pools]
    if missing:
        message = f"no pool is named {', '.join(missing)}"
        raise InputError(loaded.finding(("pools",), message, "pools stand for the chips of the plan, by name"))
    chosen = [{**pools[name], "replicas": count} for name, count in hour.replicas.items() if count]
    trial = Trial(_REQUESTS, _SPAN_S, 0.1, Confidence())
    changed = with_pools(loaded, chosen)
    if not isinstance(loaded.scenario.workload, MixWorkload):
        return at_rate(changed, sum(hour.rates_per_s.values()), trial)
    mapping = changed.resolved
    parts = mapping["workload"]["parts"]
    unknown = [name for name in hour.rates_per_s if name not in parts]
    if unknown:
        message = f"no part of the workload is named {', '.join(unknown)}"
        raise InputError(
            loaded.finding(("workload", "parts"), message, "parts stand for the buckets of the plan, by name")
        )
    span_s = max(_SPAN_S, _REQUESTS / sum(hour.rates_per_s.values()))
    for name, rate in hour.rates_per_s.items():
        if rate * span_s < 1.0:
            parts.pop(name)
            continue
        arrivals = {"process": "poisson", "rate": f"{rate!r} req/s"}
        parts[name] = {**parts[name], "arrivals": arrivals, "requests": max(round(rate * span_s), 1)}
        parts[name].pop("duration", None)
    return load_mapping(mapping, base_dir=loaded.base_dir)


def _described(hour: Hour) -> str:
    fleet = " + ".join(f"{count} {name}" for name, count in hour.replicas.items() if count)
    return f"{fleet} for {show(sum(hour.rates_per_s.values()), 'requests/s')}"


def _why(judgement: Judgement, rounds: int) -> str:
    above = ", ".join(f"{share:.1%} above {name}" for name, share in judgement.missed_by.items() if share)
    reason = "the stated throughputs are not the scenario's, or more replicas do not help"
    return f"not proved after {rounds} plans ({above or 'requests did not finish'}): {reason}"


def _proved(worst: _Round, confidence: Confidence, lines: Sequence[str], reason: str) -> Plan:
    judgement = worst.judgement
    mean, low, high = judgement.attainment
    predicted = {"attainment_ratio": 1.0}
    if worst.hour.power_w:
        predicted["power_w"] = worst.hour.power_w
    proof = Proof(
        judgement.met,
        mean,
        low,
        high,
        judgement.target,
        confidence.level,
        judgement.seeds,
        predicted,
        {"attainment_ratio": mean, **judgement.figures},
        tuple(lines),
        reason,
    )
    return replace(worst.plan, proof=proof)
