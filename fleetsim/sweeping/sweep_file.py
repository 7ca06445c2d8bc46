"""A sweep as it is stated: a base scenario, axes, replications; in a file, on the command line or in Python.

::

    schema: 1
    name: two-routers
    scenario: embedded:quickstart        # or a file relative to this one, or what would stand in it
    set: {workload.requests: 2000}       # laid over it, as --set; optional
    axes:                                # see `fleetsim.sweeping.axes`
      gateway.router: [least-outstanding, power-of-two-choices]
      workload.arrivals.rate: {range: [40 req/s, 70 req/s], points: 4}
    replications: 3                      # or {count: 3, seeds: own}; common random numbers otherwise
    seed: 0                              # root of random axes, not of the runs
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from fleetsim.errors import Finding, ScenarioError, nearest
from fleetsim.scenario.explain import findings_of
from fleetsim.scenario.export import resolved_mapping
from fleetsim.scenario.load import LoadedScenario, load_tree
from fleetsim.scenario.merge import read_with_parents
from fleetsim.scenario.schema import Block, Count, Scenario
from fleetsim.scenario.shape import Shape
from fleetsim.scenario.source import Located, located, read_tree
from fleetsim.scenario.template import scenario_path, scenarios_folder, summary_of

Seeds = Literal["common", "own"]
EMBEDDED = "embedded:sweeps/"
"""Begin of the names of sweeps and searches that fleetsim carries."""


class Replications(Block):
    """How often every combination is run."""

    count: Annotated[Count, Field(le=100_000)] = 1
    """Runs of each combination."""
    seeds: Seeds = "common"
    """``common``: replication r has the seed of the scenario plus r in every combination, so that differences between
    combinations are not differences between arrivals; ``own``: every combination draws seeds of its own."""


class SweepFile(Block):
    """A sweep."""

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
    axes: dict[str, Any] | list[Any]
    """Which values which paths take: `fleetsim.sweeping.axes`."""
    replications: Annotated[Count, Field(le=100_000)] | Replications = 1
    """How often every combination is run, and with which seeds."""
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] = 0
    """Root of the streams of random axes."""


@dataclass(frozen=True, slots=True)
class Base:
    """The scenario that a sweep varies, as it is written: it need not be complete."""

    tree: Located
    path: Path | None
    """Its file; none if it was made in Python or stands in the sweep's file."""
    base_dir: Path
    overrides: Mapping[str, object]

    def loaded(self, combination: Mapping[str, object]) -> LoadedScenario:
        """The scenario with a combination laid over it.

        Raises
        ------
        ScenarioError
            If that makes no valid scenario.
        """
        laid = {**self.overrides, **combination}
        loaded = load_tree(self.tree, laid, self.path or Path(self.tree.file or "scenario"), self.base_dir)
        return loaded if self.path is not None else replace(loaded, path=None)

    def plain(self) -> dict[str, Any]:
        """The base with its defaults filled in; as it is written where it is not complete."""
        try:
            return self.loaded({}).resolved
        except ScenarioError:
            content: dict[str, Any] = self.tree.plain()
            return content


@dataclass(frozen=True, slots=True)
class Stated:
    """A sweep that was read: its base, its axes as they stand, how often."""

    name: str
    base: Base
    axes: Located
    replications: Replications
    seed: int
    file: str = ""


def embedded_sweeps() -> dict[str, str]:
    """One line about each sweep and search that fleetsim carries, by name."""
    files = sorted((scenarios_folder() / "sweeps").glob("*.yaml"))
    return {f"{EMBEDDED}{file.stem}": summary_of(file) for file in files}


def study_file(path: str | os.PathLike[str]) -> Path | None:
    """The file if it states a sweep or a search, not a scenario: it has axes, and a scenario. Also ``embedded:sweeps/NAME``.

    Raises
    ------
    ScenarioError
        If it cannot be read.
    """
    text = os.fspath(path)
    file = Path(text)
    if text.startswith(EMBEDDED):
        if text not in (known := embedded_sweeps()):
            raise ScenarioError(Finding(f'no sweep "{text}"', hint=nearest(text, known, "sweeps")))
        return scenarios_folder() / "sweeps" / f"{text.removeprefix(EMBEDDED)}.yaml"
    if text.startswith("embedded:") or not file.is_file():
        return None
    tree, _ = read_tree(file, text)
    return file if tree.child("axes") is not None and tree.child("scenario") is not None else None


def read_sweep(path: str | os.PathLike[str]) -> Stated:
    """Read a sweep file.

    Raises
    ------
    ScenarioError
        With every finding at once.
    """
    file = Path(path)
    tree, findings = read_tree(file, os.fspath(file))
    if tree.child("name") is None and isinstance(tree.value, dict):
        tree = replace(tree, value={**tree.value, "name": Located(file.stem, tree.file)})
    return _stated(tree, findings, file.absolute().parent, os.fspath(file))


def sweep_of(mapping: Mapping[str, Any], base_dir: str | os.PathLike[str] = ".") -> Stated:
    """A sweep made in Python: what would stand in its file."""
    return _stated(located({"name": "sweep", **mapping}, "sweep"), [], Path(base_dir).absolute(), "")


def _stated(tree: Located, findings: list[Finding], folder: Path, file: str) -> Stated:
    try:
        stated = SweepFile.model_validate(tree.plain())
    except ValidationError as error:
        raise ScenarioError([*findings, *findings_of(error, tree, Shape(SweepFile))]) from None
    if findings:
        raise ScenarioError(findings)
    node, axes = tree.child("scenario"), tree.child("axes")
    assert node is not None
    assert axes is not None
    laid = tree.child("set")
    overrides = dict(laid.value) if laid is not None and isinstance(laid.value, dict) else {}
    base = base_at(node, folder, overrides, stated.name)
    count = stated.replications
    replications = count if isinstance(count, Replications) else Replications(count=count)
    return Stated(stated.name, base, axes, replications, stated.seed, file)


def base_at(node: Located, folder: Path, overrides: Mapping[str, object], name: str) -> Base:
    """The base that stands under ``scenario`` of a file: a name, relative to the file's folder, or the scenario itself."""
    if not isinstance(node.value, str):
        return Base(_complete(node, name), None, folder, overrides)
    text = node.value
    if not text.startswith("embedded:"):
        if not (folder / text).is_file():
            raise ScenarioError(Finding(f"no such file: {text}", "scenario", node.file, node.line, node.column))
        return base_of(folder / text, overrides)
    try:
        return base_of(text, overrides)
    except ScenarioError as error:
        found = [
            f if f.file else replace(f, file=node.file, line=node.line, column=node.column) for f in error.findings
        ]
        raise ScenarioError(found) from None


def _complete(node: Located, name: str) -> Located:
    """A scenario written in a sweep's file needs no version and no name of its own."""
    if not isinstance(node.value, dict):
        return node
    return replace(node, value={"schema": Located(1, node.file), "name": Located(name, node.file), **node.value})


def base_of(
    scenario: str | os.PathLike[str] | Mapping[str, Any] | Scenario | LoadedScenario, overrides: Mapping[str, object]
) -> Base:
    """A scenario as the base of a sweep: a file, ``embedded:NAME``, what would stand in a file, or either of them loaded."""
    if isinstance(scenario, LoadedScenario):
        return Base(located(scenario.resolved), scenario.path, scenario.base_dir, overrides)
    if isinstance(scenario, Scenario):
        return Base(located(resolved_mapping(scenario)), None, Path.cwd(), overrides)
    if isinstance(scenario, Mapping):
        return Base(_complete(located(scenario), "sweep"), None, Path.cwd(), overrides)
    path = scenario_path(scenario)
    tree, findings = read_with_parents(path, os.fspath(path))
    if findings:
        raise ScenarioError(findings)
    return Base(tree, path, path.absolute().parent, overrides)


def name_of(base: Base, kind: str) -> str:
    """What a study of a base is called: not as the base is, whose own result would stand in the same folder."""
    name = base.tree.child("name")
    return f"{name.value}-{kind}" if name is not None and isinstance(name.value, str) and name.value else kind
