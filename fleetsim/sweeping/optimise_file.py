"""A search as it is stated: what may vary, what is wanted, what must hold; in a file, on the command line or in Python.

::

    schema: 1
    name: cheapest
    scenario: embedded:quickstart
    set: {workload.requests: 2000}
    axes:                                                  # chosen from a list, or between the ends of a range
      pools[0].replicas: {range: [2, 8]}
      gateway.router: [least-outstanding, {policy: power-of-two-choices}]
    objectives: {cost_usd: minimise, ttft_p99_s: minimise}
    constraints: [slo_attainment_ratio >= 0.99]
    trials: 40
    replications: 2                                        # objectives are means over these, seeds as in a sweep
    seed: 0                                                # of the search
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from fleetsim.errors import ScenarioError
from fleetsim.scenario.explain import findings_of
from fleetsim.scenario.schema import Block, Count, Ratio
from fleetsim.scenario.shape import Shape
from fleetsim.scenario.source import Located, located, read_tree
from fleetsim.sweeping.axes import Choices, Span, choices_of
from fleetsim.sweeping.sweep_file import Base, base_at

Direction = Literal["minimise", "maximise"]
Sampler = Literal["tpe", "nsga2", "random"]
OBJECTIVES: Mapping[str, Direction] = {
    "cost_usd": "minimise",
    "energy_j": "minimise",
    "ttft_p99_s": "minimise",
    "goodput_requests_per_s": "maximise",
}
"""Where nobody says what is wanted."""

_CONSTRAINT = re.compile(r"^\s*([A-Za-z_][\w.]*)\s*(>=|<=)\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*$")


@dataclass(frozen=True, slots=True)
class Constraint:
    """A bound that a figure of the summary must keep."""

    figure: str
    at_least: bool
    bound: float

    def __str__(self) -> str:
        return f"{self.figure} {'>=' if self.at_least else '<='} {self.bound:g}"

    def violation(self, value: float) -> float:
        """By how much it is broken; at most zero where it holds."""
        return self.bound - value if self.at_least else value - self.bound


def constraint_of(text: str) -> Constraint:
    """A constraint such as ``slo_attainment_ratio >= 0.99``.

    Raises
    ------
    ValueError
        If it is not of that form.
    """
    match = _CONSTRAINT.match(text)
    if match is None:
        raise ValueError(f'expected FIGURE >= NUMBER or FIGURE <= NUMBER, found "{text[:60]}"')
    return Constraint(match[1], match[2] == ">=", float(match[3]))


class OptimiseFile(Block):
    """A search."""

    schema_version: Annotated[Literal[1], Field(alias="schema")] = 1
    """Version of the format."""
    name: Annotated[str, Field(min_length=1, max_length=200)]
    """What the study is called."""
    description: str = ""
    """For people."""
    scenario: str | dict[str, Any]
    """The base: a file, ``embedded:NAME``, or a scenario written here."""
    overrides: Annotated[dict[str, Any], Field(alias="set", default_factory=dict)]
    """Values laid over the base, by path."""
    axes: Annotated[dict[str, Any], Field(min_length=1)]
    """What may vary: paths, each with a list to choose from, a range or a log-range."""
    objectives: Annotated[dict[str, Direction], Field(min_length=1, default_factory=lambda: dict(OBJECTIVES))]
    """Figures of the summary, each to be minimised or maximised; means over the replications."""
    constraints: tuple[str, ...] | None = None
    """What must hold, such as ``slo_attainment_ratio >= 0.99``; by default the scenario's own SLO, if it has one."""
    trials: Annotated[Count, Field(le=1_000_000)] = 40
    """Combinations that are tried."""
    replications: Annotated[Count, Field(le=1000)] = 1
    """Runs of each, with the scenario's seed and those that follow it."""
    seed: Annotated[int, Field(ge=0, lt=2**31, strict=True)] = 0
    """Of the search."""
    sampler: Sampler = "tpe"
    """Who proposes: tree-structured Parzen estimators, a genetic algorithm, or chance."""
    batch: Annotated[Count, Field(le=1000)] = 4
    """Trials proposed at a time, before any of them is known: the number of processes changes nothing about the search."""
    prune_at: Annotated[Ratio, Field(lt=1)] = 0.2
    """Share of the requests after which a trial that is OVERLOADED is given up; 0: never."""

    @field_validator("constraints")
    @classmethod
    def _readable(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for text in value or ():
            constraint_of(text)
        return value


@dataclass(frozen=True, slots=True)
class Search:
    """A search that was read."""

    asked: OptimiseFile
    base: Base
    axes: Mapping[str, Choices | Span]
    plain: Mapping[str, Any]
    """The axes as they stand."""

    @property
    def constraints(self) -> Sequence[Constraint]:
        """What must hold."""
        if self.asked.constraints is not None:
            return [constraint_of(text) for text in self.asked.constraints]
        slo = self.base.plain().get("slo")
        if not isinstance(slo, Mapping):
            return []
        attainment = slo.get("attainment", 0.99)
        return [Constraint("slo_attainment_ratio", True, float(attainment))]


def read_search(path: str | os.PathLike[str], more: Mapping[str, Any]) -> Search:
    """Read a file; what is given besides counts more.

    Raises
    ------
    InputError
        With every finding at once.
    """
    file = Path(path)
    tree, findings = read_tree(file, os.fspath(file))
    if findings:
        raise ScenarioError(findings)
    assert isinstance(tree.value, dict)
    named = {"name": Located(file.stem, os.fspath(file)), **tree.value}
    return _search(Located(named, tree.file, tree.line, tree.column), more, file.absolute().parent)


def search_of(mapping: Mapping[str, Any], base_dir: str | os.PathLike[str] = ".", base: Base | None = None) -> Search:
    """A search made in Python: what would stand in its file; with a base of its own if one is given."""
    tree = located({key: value for key, value in mapping.items() if key != "axes"}, "optimise")
    assert isinstance(tree.value, dict)
    axes = mapping.get("axes")
    node = axes if isinstance(axes, Located) else located(axes, "axes")
    return _search(Located({**tree.value, "axes": node}, "optimise"), {}, Path(base_dir).absolute(), base)


def _search(tree: Located, more: Mapping[str, Any], folder: Path, base: Base | None = None) -> Search:
    assert isinstance(tree.value, dict)
    laid = dict(tree.value)
    for key, value in more.items():
        node = value if isinstance(value, Located) else located(value, f"--{key}")
        before = laid.get(key)
        if (
            key in ("axes", "set")
            and before is not None
            and isinstance(before.value, dict)
            and isinstance(node.value, dict)
        ):
            node = Located({**before.value, **node.value}, node.file)
        laid[key] = node
    whole = Located(laid, tree.file, tree.line, tree.column)
    try:
        asked = OptimiseFile.model_validate(whole.plain())
    except ValidationError as error:
        raise ScenarioError(findings_of(error, whole, Shape(OptimiseFile))) from None
    base_node, axes, overrides = whole.child("scenario"), whole.child("axes"), whole.child("set")
    assert base_node is not None
    assert axes is not None
    assert isinstance(axes.value, dict)
    over = dict(overrides.value) if overrides is not None and isinstance(overrides.value, dict) else {}
    found = base if base is not None else base_at(base_node, folder, over, asked.name)
    return Search(asked, found, {path: choices_of(child, path) for path, child in axes.value.items()}, axes.plain())
