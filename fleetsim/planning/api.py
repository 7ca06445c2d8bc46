"""Planning from Python: what ``fleetsim plan``, ``fleetsim find-rate`` and ``fleetsim find-fleet`` do."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fleetsim.experiment.replicate import Notice
from fleetsim.planning import find_rate as rates
from fleetsim.planning.judge import Confidence
from fleetsim.planning.plan import Options, as_loaded, plan_melange
from fleetsim.planning.problems import is_problem, solve_problem
from fleetsim.planning.prove import find_fleet_for, plan_and_prove
from fleetsim.planning.result import Plan
from fleetsim.planning.solve import Effort
from fleetsim.scenario.load import LoadedScenario

Where = str | os.PathLike[str] | Mapping[str, Any] | LoadedScenario


def plan(
    scenario: Where,
    candidates: Sequence[str] = (),
    *,
    options: Options | None = None,
    effort: Effort | None = None,
    verify: bool = False,
    confidence: Confidence | None = None,
    notice: Notice = lambda _: None,
) -> Plan:
    """Plan the cheapest fleet for a scenario's workload and SLO, or solve a problem file.

    Parameters
    ----------
    scenario : path, mapping or LoadedScenario
        A scenario; or a file that states a planning problem (`fleetsim list plans`).
    candidates : sequence of str
        Accelerators to choose from; default: those of the scenario's pools.
    options : Options, optional
        Limits, prices, buckets and the like.
    effort : Effort, optional
        How long and how exactly to solve.
    verify : bool
        Simulate the plan, and tighten it until the simulated SLO holds; `Plan.proof` tells.
    confidence : Confidence, optional
        How sure that must be.
    notice : callable
        Told about each fleet that is simulated.

    Raises
    ------
    InputError
        If the input makes no sense, or nothing keeps its requirements: which, and by how much.
    """
    if is_problem(scenario):
        return solve_problem(scenario, effort, verify, confidence, notice)
    asked = options or Options()
    if candidates:
        asked = replace(asked, candidates=tuple(candidates))
    loaded = as_loaded(scenario)
    if not verify:
        return plan_melange(loaded, asked, effort).plan
    return plan_and_prove(loaded, asked, effort, confidence, notice=notice)


def find_fleet(
    scenario: Where,
    candidates: Sequence[str] = (),
    *,
    options: Options | None = None,
    effort: Effort | None = None,
    confidence: Confidence | None = None,
    rounds: int = 40,
    notice: Notice = lambda _: None,
) -> Plan:
    """The cheapest fleet whose simulated SLO holds: see `fleetsim.planning.prove.find_fleet_for`; parameters as for `plan`."""
    asked = options or Options()
    if candidates:
        asked = replace(asked, candidates=tuple(candidates))
    return find_fleet_for(as_loaded(scenario), asked, effort, confidence, rounds, notice)


def find_rate(
    scenario: Where,
    *,
    tolerance: float = 0.02,
    confidence: Confidence | None = None,
    requests: int | None = None,
    notice: Notice = lambda _: None,
) -> rates.Found:
    """The highest Poisson rate at which a scenario's fleet keeps its SLO: see `fleetsim.planning.find_rate.search`."""
    return rates.search(as_loaded(scenario), tolerance, confidence, requests, notice)
