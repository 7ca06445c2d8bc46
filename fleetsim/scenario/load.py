"""A scenario file, with what it extends and what overrides it, as a checked frozen scenario."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fleetsim.errors import Finding, ScenarioError
from fleetsim.scenario.explain import findings_of, place
from fleetsim.scenario.export import resolved_mapping
from fleetsim.scenario.merge import Overrides, override, read_with_parents
from fleetsim.scenario.schema import Scenario
from fleetsim.scenario.source import Located, located, path_text
from fleetsim.scenario.template import scenario_path


@dataclass(frozen=True, slots=True)
class LoadedScenario:
    """A valid scenario and where it came from."""

    scenario: Scenario
    path: Path | None
    """The file; none if the scenario was made in Python."""
    base_dir: Path
    """Folder that relative file names in the scenario start from."""
    warnings: tuple[Finding, ...] = ()
    tree: Located = field(default_factory=lambda: Located({}))
    """The scenario as it was written, with the place of every value."""

    @property
    def resolved(self) -> dict[str, Any]:
        """The scenario as a mapping with all defaults filled in; it loads back to the same scenario."""
        return resolved_mapping(self.scenario)

    def finding(self, path: tuple[str | int, ...], message: str, hint: str = "", severity: str = "error") -> Finding:
        """A finding about the value at `path`, with its place in the file."""
        return Finding(message, path_text(path), hint=hint, severity=severity, **place(self.tree, path))


def load_scenario(path: str | os.PathLike[str], overrides: Overrides = ()) -> LoadedScenario:
    """Read and validate a scenario file.

    Parameters
    ----------
    path : str or path
        A YAML file, or ``embedded:NAME``.
    overrides : str, sequence of str, or mapping
        ``path=value`` texts as ``--set`` takes them (``pools[0].replicas=3``, ``pools.main.replicas=3``), or values by
        path.

    Returns
    -------
    LoadedScenario

    Raises
    ------
    ScenarioError
        With every finding at once.
    """
    file = scenario_path(path)
    tree, findings = read_with_parents(file, os.fspath(file))
    return _validated(tree, findings, overrides, file, file.absolute().parent)


def load_mapping(
    scenario: Scenario | Mapping[str, Any], overrides: Overrides = (), base_dir: str | os.PathLike[str] = "."
) -> LoadedScenario:
    """Validate a scenario made in Python; see `load_scenario`.

    Parameters
    ----------
    scenario : Scenario or mapping
        A scenario, or what would stand in its file.
    overrides : sequence of str, or mapping
        As for `load_scenario`.
    base_dir : str or path
        Folder that relative file names in the scenario start from.
    """
    base = Path(base_dir).absolute()
    if isinstance(scenario, Scenario) and not overrides:
        return LoadedScenario(scenario, None, base, tree=located(resolved_mapping(scenario)))
    tree = located(resolved_mapping(scenario) if isinstance(scenario, Scenario) else scenario)
    return _validated(tree, [], overrides, None, base)


def load_tree(tree: Located, overrides: Overrides, file: Path, base_dir: Path) -> LoadedScenario:
    """Validate a scenario that stands in another file; see `load_scenario`.

    Parameters
    ----------
    tree : Located
        The scenario, with the places of its values.
    overrides : sequence of str, or mapping
        As for `load_scenario`.
    file : Path
        The file that it stands in.
    base_dir : Path
        Folder that relative file names in the scenario start from.
    """
    return _validated(tree, [], overrides, file, base_dir)


def _validated(
    tree: Located, findings: list[Finding], overrides: Overrides, file: Path | None, base_dir: Path
) -> LoadedScenario:
    tree, more = override(tree, overrides)
    findings = [*findings, *more]
    try:
        scenario = Scenario.model_validate(tree.plain())
    except ValidationError as error:
        taken = {(f.file, f.line, f.column) for f in findings if f.line is not None}
        findings += [f for f in findings_of(error, tree) if (f.file, f.line, f.column) not in taken]
    except RecursionError:
        findings.append(Finding("nested too deeply", file=str(file or "")))
    if findings:
        raise ScenarioError(_named(findings, file))
    return LoadedScenario(scenario, file, base_dir, tree=tree)


def _named(findings: list[Finding], file: Path | None) -> list[Finding]:
    return [f if f.file or file is None else replace(f, file=str(file)) for f in findings]
