"""A plan for a scenario: the cheapest fleet that serves its workload within its SLO, by Mélange's integer program."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fleetsim.catalog.series import series_of
from fleetsim.errors import InputError
from fleetsim.planning.demand import Demand, demand_of
from fleetsim.planning.melange import Assignment, MelangeProblem, solve_melange
from fleetsim.planning.offers import Candidate, candidates_for
from fleetsim.planning.racks import Racks
from fleetsim.planning.result import Plan
from fleetsim.planning.solve import Effort
from fleetsim.planning.throughput import Rate, steady_rate
from fleetsim.scenario.load import LoadedScenario, load_mapping, load_scenario
from fleetsim.scenario.schema import Slo

UTILISATION = 0.85
"""Share of a replica's throughput that is planned with unless another is asked for."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a planner may be told."""

    candidates: Sequence[str] = ()
    """Accelerators to choose from; default: those of the scenario's pools."""
    limits: Mapping[str, int] | None = None
    """Accelerators that can be had, by name."""
    prices: Mapping[str, float] | None = None
    """Prices of one accelerator in place of the catalogue's [USD/h]."""
    utilisation_limit: float = UTILISATION
    """Share of a replica's throughput to plan with."""
    slices: int = 4
    """Parts of a bucket that may go to different replicas."""
    rows: int = 10
    """Buckets by prompt length."""
    columns: int = 6
    """Buckets by answer length, where the scenario has a predictor that routing can go by; one otherwise."""
    power_limit_w: float | None = None
    """Of all accelerators at work [W]."""
    racks: Racks | None = None
    """In which all replicas stand."""
    carbon_limit_kg_per_h: float | None = None
    """Of all replicas at work, by the mean of the scenario's carbon intensity [kg/h]."""
    window_s: float | None = None
    """Plan for busy windows of this length instead of the mean rate [s]."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan with what it was made from: what verification starts with."""

    plan: Plan
    problem: MelangeProblem
    demand: Demand
    candidates: Sequence[Candidate]
    rates: Sequence[Sequence[Rate]]


def as_loaded(scenario: str | os.PathLike[str] | Mapping[str, Any] | LoadedScenario) -> LoadedScenario:
    """The scenario as loaded from wherever it is."""
    if isinstance(scenario, LoadedScenario):
        return scenario
    return load_mapping(scenario) if isinstance(scenario, Mapping) else load_scenario(scenario)


def require_slo(loaded: LoadedScenario) -> Slo:
    """The scenario's objective.

    Raises
    ------
    InputError
        If there is none.
    """
    slo = loaded.scenario.slo
    if slo is None:
        message = "there is no `slo`: a plan needs limits to keep"
        raise InputError(loaded.finding((), message, "such as slo: {ttft: 1 s, tpot: 50 ms, attainment: 0.99}"))
    return slo


def plan_melange(loaded: LoadedScenario, options: Options | None = None, effort: Effort | None = None) -> Planned:
    """Plan a scenario's fleet from its workload, its SLO and candidate accelerators.

    Raises
    ------
    InputError
        If the scenario cannot be planned, or no fleet keeps the requirements.
    """
    options = options or Options()
    slo = require_slo(loaded)
    columns = options.columns if loaded.scenario.gateway.predictor is not None else 1
    demand = demand_of(loaded, options.rows, columns, options.window_s)
    candidates = candidates_for(loaded, options.candidates, options.prices)
    rates = [
        [steady_rate(c.pool, bucket.prompt_tokens, bucket.output_tokens, slo) for bucket in demand.buckets]
        for c in candidates
    ]
    busiest = [max(rate.power_w for rate in row) for row in rates]
    offers = [replace(c.offer, power_w=power) for c, power in zip(candidates, busiest, strict=True)]
    problem = MelangeProblem(
        rates_per_s=[bucket.rate_per_s for bucket in demand.buckets],
        offers=offers,
        throughputs_per_s=[[rate.requests_per_s for rate in row] for row in rates],
        labels=[bucket.label for bucket in demand.buckets],
        slices=options.slices,
        utilisation_limit=options.utilisation_limit,
        limits=options.limits or {},
        power_limit_w=options.power_limit_w,
        racks=options.racks,
        carbon_g_per_kwh=0.0 if options.carbon_limit_kg_per_h is None else _carbon_g_per_kwh(loaded),
        carbon_limit_kg_per_h=options.carbon_limit_kg_per_h,
    )
    plan, assignment = solve_melange(problem, effort)
    fleet = fragment(demand, candidates, assignment)
    plan = replace(plan, fleet=fleet, notes=(*_notes(loaded, demand, options, columns), *plan.notes))
    return Planned(plan, problem, demand, candidates, rates)


def _carbon_g_per_kwh(loaded: LoadedScenario) -> float:
    """Mean carbon intensity of the scenario's energy, with its PUE [g/kWh]."""
    energy = loaded.scenario.energy
    if energy.carbon_intensity is None:
        message = "a limit of carbon needs the carbon intensity of the site's energy"
        hint = "set energy.carbon_intensity, such as 380 g/kWh"
        raise InputError(loaded.finding(("energy",), message, hint))
    where = "energy.carbon_intensity"
    return series_of(energy.carbon_intensity, "carbon intensity", loaded.base_dir, where).average * energy.pue


def _notes(loaded: LoadedScenario, demand: Demand, options: Options, columns: int) -> list[str]:
    notes = list(demand.notes)
    notes.append(f"planned with {options.utilisation_limit:.0%} of each replica's throughput; the rest absorbs bursts")
    if any(pool.engine.prefix_cache for pool in loaded.scenario.pools):
        notes.append("prefix hits are left out: real caches need less")
    if columns == 1:
        notes.append("buckets by prompt length only: the scenario has no predictor, so routing cannot go by answers")
    slo = loaded.scenario.slo
    if slo is not None and slo.classes:
        notes.append("limits of classes are left out: all requests are planned with the SLO's own")
    return notes


def fragment(demand: Demand, candidates: Sequence[Candidate], assignment: Assignment) -> dict[str, Any]:
    """What to lay over the scenario to run the plan: pools, and the router where there are several."""
    bought = [g for g, count in enumerate(assignment.replicas) if count]
    pools = [{**candidates[g].offer.pool, "replicas": assignment.replicas[g]} for g in bought]
    if len(bought) < 2:
        return {"pools": pools}
    rows, columns = len(demand.grid.prompt_edges) + 1, len(demand.grid.output_edges) + 1
    shares = {}
    for g in bought:
        table = [[0.0] * columns for _ in range(rows)]
        for bucket, share in zip(demand.buckets, assignment.shares, strict=True):
            table[bucket.row][bucket.column] = share[g]
        shares[candidates[g].offer.name] = table
    router: dict[str, Any] = {"policy": "melange", "prompt_edges": list(demand.grid.prompt_edges)}
    if demand.grid.output_edges:
        router["output_edges"] = list(demand.grid.output_edges)
    router["shares"] = shares
    return {"pools": pools, "gateway": {"router": router}}


def laid_over(loaded: LoadedScenario, fleet: Mapping[str, Any]) -> LoadedScenario:
    """The scenario with a plan's fleet in place of its own."""
    mapping = dict(loaded.resolved)
    mapping["pools"] = fleet["pools"]
    if "gateway" in fleet:
        mapping["gateway"] = {**mapping.get("gateway", {}), **fleet["gateway"]}
    return load_mapping(mapping, base_dir=loaded.base_dir)
