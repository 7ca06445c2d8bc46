"""Planning problems in files: ``problem: {kind: …}`` states one; scenarios/plans holds an example of each kind."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from fleetsim.errors import Finding, InputError, ScenarioError, nearest
from fleetsim.experiment.replicate import Notice
from fleetsim.planning.alpaserve import StatedAlpaServe
from fleetsim.planning.encoder_split import StatedEncoderSplit
from fleetsim.planning.eplb import StatedEplb
from fleetsim.planning.fleetopt import StatedFleetOpt
from fleetsim.planning.helix import StatedHelix
from fleetsim.planning.judge import Confidence
from fleetsim.planning.over_scenario import OverScenario, ScenarioPlace
from fleetsim.planning.parallelism import StatedParallelism
from fleetsim.planning.portfolio import StatedPortfolio
from fleetsim.planning.prism import StatedPrism
from fleetsim.planning.procurement import StatedProcurement
from fleetsim.planning.prove_hours import prove_hours
from fleetsim.planning.queueing import StatedQueue
from fleetsim.planning.regions import StatedRegions
from fleetsim.planning.result import Plan
from fleetsim.planning.sageserve import StatedSageServe
from fleetsim.planning.solve import Effort
from fleetsim.planning.spot_deadline import StatedSpotDeadline
from fleetsim.planning.stated import StatedMelange
from fleetsim.scenario.explain import findings_of
from fleetsim.scenario.load import LoadedScenario
from fleetsim.scenario.schema import Block
from fleetsim.scenario.shape import Shape
from fleetsim.scenario.source import Located, located, read_tree
from fleetsim.scenario.template import scenarios_folder, summary_of

_EMBEDDED = "embedded:plans/"
Problem = Annotated[
    StatedMelange
    | StatedQueue
    | StatedFleetOpt
    | StatedRegions
    | StatedPortfolio
    | StatedSageServe
    | StatedPrism
    | StatedHelix
    | StatedParallelism
    | StatedAlpaServe
    | StatedEplb
    | StatedEncoderSplit
    | StatedSpotDeadline
    | StatedProcurement,
    Field(discriminator="kind"),
]


class ProblemFile(Block):
    """A file that states a planning problem."""

    name: Annotated[str, Field(min_length=1)]
    """What this problem is called in reports."""
    description: str = ""
    """For people."""
    problem: Problem
    """Sets, parameters and requirements."""


def embedded_problems() -> dict[str, str]:
    """One line about each problem that fleetsim carries, by the name that `fleetsim plan` takes."""
    return {f"{_EMBEDDED}{path.stem}": summary_of(path) for path in sorted(_folder().glob("*.yaml"))}


def _folder() -> Path:
    return scenarios_folder() / "plans"


def is_problem(where: str | os.PathLike[str] | Mapping[str, Any] | LoadedScenario) -> bool:
    """Whether this states a problem rather than a scenario."""
    if isinstance(where, LoadedScenario):
        return False
    if isinstance(where, Mapping):
        return "problem" in where
    if os.fspath(where).startswith(_EMBEDDED):
        return True
    path = Path(where)
    if not path.is_file():
        return False
    tree, _ = read_tree(path, os.fspath(path))
    return isinstance(tree.value, dict) and "problem" in tree.value


def load_problem(where: str | os.PathLike[str] | Mapping[str, Any]) -> ProblemFile:
    """Read and validate a problem.

    Raises
    ------
    ScenarioError
        With every finding at once.
    """
    findings: list[Finding] = []
    path = None
    if isinstance(where, Mapping):
        tree = located(where)
    else:
        path = _path(where)
        tree, findings = read_tree(path, os.fspath(path))
    file = _validated(tree, findings)
    if isinstance(file.problem, ScenarioPlace):
        stated = tree.child("problem")
        own = None if stated is None else stated.child("scenario")
        file = file.model_copy(update={"problem": file.problem.at(own, path)})
    if isinstance(file.problem, StatedSpotDeadline) and path is not None:
        file = file.model_copy(update={"problem": file.problem.in_folder(path.absolute().parent)})
    return file


def _validated(tree: Located, findings: list[Finding]) -> ProblemFile:
    try:
        file = ProblemFile.model_validate(tree.plain())
    except ValidationError as error:
        raise ScenarioError([*findings, *findings_of(error, tree, Shape(ProblemFile))]) from None
    if findings:
        raise ScenarioError(findings)
    return file


def _path(where: str | os.PathLike[str]) -> Path:
    text = os.fspath(where)
    if not text.startswith(_EMBEDDED):
        return Path(where)
    name = text.removeprefix(_EMBEDDED)
    known = [path.stem for path in _folder().glob("*.yaml")]
    if name not in known:
        raise ScenarioError(Finding(f'no embedded problem "{name}"', hint=nearest(name, known, "embedded problems")))
    return _folder() / f"{name}.yaml"


def solve_problem(
    where: str | os.PathLike[str] | Mapping[str, Any] | LoadedScenario,
    effort: Effort | None = None,
    verify: bool = False,
    confidence: Confidence | None = None,
    notice: Notice = lambda _: None,
) -> Plan:
    """Solve the problem that a file or a mapping states.

    Raises
    ------
    InputError
        If it makes no sense or has no solution; with `verify`, if its plan is nothing that could be simulated.
    """
    assert not isinstance(where, LoadedScenario), "a loaded scenario states no problem"
    problem = load_problem(where).problem
    if verify and isinstance(problem, StatedProcurement):
        return problem.prove(effort, confidence, notice)
    if not verify or isinstance(problem, OverScenario):  # those are searched by simulation, and proved in any case
        return problem.solve(effort)
    if not isinstance(problem, StatedPortfolio | StatedRegions):
        message = f"--verify simulates fleets, and a plan of kind {problem.kind} is none"
        hint = "kinds that can be verified: portfolio, regions, procurement; or plan for a scenario"
        raise InputError(Finding(message, "problem.kind", hint=hint))
    return prove_hours(problem, effort, confidence, notice)
