"""Figures of planners."""

from __future__ import annotations

import json
from functools import lru_cache
from math import inf
from typing import Any

import numpy as np

from fleetsim.planning.alpaserve import Pipeline, served
from fleetsim.planning.fleetopt import StepProfile
from fleetsim.planning.prism import greedy, published_cases, score
from fleetsim.planning.problems import load_problem
from fleetsim.planning.result import Plan
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
