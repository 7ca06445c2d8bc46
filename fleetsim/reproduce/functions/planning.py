"""Figures of planners."""

from __future__ import annotations

import json
import tarfile
from functools import lru_cache
from itertools import product
from math import inf
from typing import Any

import numpy as np

from fleetsim.planning.alpaserve import Pipeline, served
from fleetsim.planning.eplb import replicate
from fleetsim.planning.fleetopt import StatedFleetOpt, StepProfile
from fleetsim.planning.prism import greedy, published_cases, score
from fleetsim.planning.problems import load_problem
from fleetsim.planning.result import Plan
from fleetsim.planning.spot_deadline import POLICIES, Job, evaluate, oracle_usd, resampled
from fleetsim.planning.stated import StatedMelange
from fleetsim.reproduce.functions import check
from fleetsim.scenario.template import scenarios_folder


@check
def figure(seed: int, problem: str, figure: str, **changes: Any) -> float:
    """A figure of the plan for a problem of scenarios/plans, with some of its fields changed."""
    file = load_problem(scenarios_folder() / "plans" / f"{problem}.yaml")
    stated = file.problem.model_dump(mode="json", exclude_none=True, exclude_unset=True)
    stated |= changes
    stated = {key: value for key, value in stated.items() if value is not None}
    plan = load_problem({"name": file.name, "problem": stated}).problem.solve()
    return plan.objective if figure == "objective" else plan.figures[figure]


@check
def tokens_per_joule(seed: int, context_tokens: int, **profile: Any) -> float:
    """Output tokens per second and watt of a replica whose requests all have windows of `context_tokens`."""
    return StepProfile.model_validate(profile).tokens_per_joule(context_tokens)


@check
def fleetopt_utilisation(
    seed: int, version: str, replicas: int, rate: str, context_tokens: int, **profile: Any
) -> float:
    """Load of so many replicas over what they carry, with the lengths of the FleetOpt problem in one pool of this window.

    Parameters
    ----------
    version : str
        ``paper`` or ``head``.
    """
    file = load_problem(scenarios_folder() / "plans" / "fleetopt.yaml")
    stated = file.problem.model_dump(mode="json", exclude_none=True, exclude_unset=True)
    stated |= {"version": version, "rate": rate, "boundaries": [context_tokens], "long_context": context_tokens}
    stated |= {"short_replica": profile, "gammas": [1.0]}
    del stated["drawn"]
    problem = StatedFleetOpt.model_validate(stated)
    sized = problem.candidate(context_tokens, 1.0).short
    return sized.rate_per_s * sized.service_s / sized.slots / replicas


@check
def melange_cost(seed: int, **problem: Any) -> float:
    """Cost of the cheapest fleet for a stated histogram [USD/h]."""
    return StatedMelange.model_validate({"kind": "melange", **problem}).solve().objective


@check
def prism_baseline(seed: int) -> float:
    """Score of the published baseline over the evaluator's cases, each placement checked."""
    return score([greedy(models, accelerators, 80.0).pressure for accelerators, models in published_cases()])


@check
def stated(seed: int, figure: str, problem: dict[str, Any]) -> float:
    """A figure of the plan for a problem that stands in the paper's file; several figures of one problem cost one search."""
    return _solved(json.dumps(problem, sort_keys=True)).figures[figure]


@lru_cache(maxsize=4)
def _solved(problem: str) -> Plan:
    return load_problem({"name": "paper", "problem": json.loads(problem)}).problem.solve()


@check
def pipeline_first_token_s(seed: int, service_s: float, rate: float, stages: int, requests: int) -> float:
    """Mean time from arrival to end of equal prompts in a pipeline whose stages take turns, Poisson arrivals [s]."""
    arrivals = np.cumsum(np.random.default_rng(seed).exponential(1.0 / rate, requests))
    one = Pipeline(1, stages, (0,))
    took = served([one], np.array([[service_s / stages]]), [inf], arrivals, np.zeros(requests, dtype=np.int64))
    return float(took.mean())


@check
def replication_optimal(seed: int, cases: int, experts: int) -> float:
    """Share of drawn loads for which greedy replication has the smallest largest load of a replica, by enumeration."""
    rng = np.random.default_rng(seed)
    good = 0
    for _ in range(cases):
        load, more = rng.exponential(1.0, experts), int(rng.integers(0, experts + 1))
        best = min(
            float((load / np.array(tried)).max())
            for tried in product(range(1, more + 2), repeat=experts)
            if sum(tried) == experts + more
        )
        good += float((load / replicate(load, experts + more)).max()) <= best * (1.0 + 1e-12)
    return good / cases


@check
def spot_deadline(seed: int, archive: str, member: str, figure: str, deadlines_h: list[float], starts: int) -> float:
    """A figure of jobs of 48 h with 12 min per start at a third of the on-demand price, over recorded traces and deadlines.

    ``NAME_of_on_demand`` and ``NAME_of_uniform_progress`` are ratios of mean costs, ``in_time`` the share of jobs in time under all
    policies.
    """
    costs, in_time = _spot_costs(archive, member, tuple(deadlines_h), starts)
    if figure == "in_time":
        return in_time
    name, _, over = figure.partition("_of_")
    return costs[name.replace("_", "-")] / costs[over.replace("_", "-")]


@lru_cache(maxsize=4)
def _spot_costs(
    archive: str, member: str, deadlines_h: tuple[float, ...], starts: int
) -> tuple[dict[str, float], float]:
    """Mean costs by policy, the oracle's among them, and the share of jobs in time."""
    lines = []
    with tarfile.open(archive) as files:
        for info in sorted(files.getmembers(), key=lambda one: one.name):
            stream = files.extractfile(info) if member in info.name and info.name.endswith(".json") else None
            if stream is not None:
                content = json.load(stream)
                gap_s = float(content["metadata"]["gap_seconds"])
                lines.append(resampled([(k * gap_s, float(n)) for k, n in enumerate(content["data"])], 300))
    costs: dict[str, list[float]] = {name: [] for name in (*POLICIES, "oracle")}
    in_time = []
    for hours in deadlines_h:
        job = Job(48 * 3600, round(hours * 3600), 720, 300, 1.0, 3.0)
        ticks = -(-job.deadline_s // job.tick_s)
        begins = [(line, round(k * (len(line) - ticks) / max(starts - 1, 1))) for line in lines for k in range(starts)]
        parts = [line[begin : begin + ticks] for line, begin in begins if len(line) >= ticks]
        costs["oracle"] += [oracle_usd(job, part) for part in parts]
        for name, policy in POLICIES.items():
            outcomes = evaluate(policy, job, parts)
            costs[name] += [one.cost_usd for one in outcomes]
            in_time += [one.finished_s <= job.deadline_s for one in outcomes]
    return {name: float(np.mean(values)) for name, values in costs.items()}, float(np.mean(in_time))
