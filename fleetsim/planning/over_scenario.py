"""Planning problems that are stated over a scenario: its workload, its objective and its engine, to be simulated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, PrivateAttr

from fleetsim.errors import Finding, InputError
from fleetsim.scenario.load import LoadedScenario, load_mapping, load_scenario, load_tree
from fleetsim.scenario.schema import Block
from fleetsim.scenario.source import Located

_EMBEDDED = "embedded:"


class ScenarioPlace(Block):
    """Knows where a problem stands, so that a scenario in it can be read."""

    _tree: Located | None = PrivateAttr(None)
    _base_dir: Path = PrivateAttr(Path())
    _file: Path | None = PrivateAttr(None)

    def at(self, tree: Located | None, file: Path | None) -> Self:
        """The same problem, knowing where it stands: mistakes in its scenario then name file and line."""
        placed = self.model_copy()
        placed._tree, placed._file = tree, file
        placed._base_dir = Path() if file is None else file.absolute().parent
        return placed

    def _read(self, scenario: dict[str, Any] | str) -> LoadedScenario:
        if isinstance(scenario, str):
            return load_scenario(scenario if scenario.startswith(_EMBEDDED) else self._base_dir / scenario)
        head: dict[str, Any] = {} if "schema" in scenario else {"schema": 1}
        if "name" not in scenario:
            head["name"] = "scenario of a planning problem"
        if self._tree is None or self._file is None:
            return load_mapping(scenario, head, self._base_dir)
        return load_tree(self._tree, head, self._file, self._base_dir)


class OverScenario(ScenarioPlace):
    """A problem that is searched by simulating a scenario."""

    scenario: dict[str, Any] | Annotated[str, Field(min_length=1)]
    """A scenario, or where its file is: a path from this file's folder, or ``embedded:NAME``."""

    def loaded(self) -> LoadedScenario:
        """Its scenario.

        Raises
        ------
        ScenarioError
            With every finding at once.
        """
        return self._read(self.scenario)


class Verifiable(ScenarioPlace):
    """A problem whose plan can be simulated if it says how."""

    scenario: dict[str, Any] | Annotated[str, Field(min_length=1)] | None = None
    """For `--verify`: a scenario, or where its file is, with an SLO and a pool for every chip, named like it."""

    def loaded(self) -> LoadedScenario:
        """Its scenario.

        Raises
        ------
        ScenarioError
            With every finding at once.
        InputError
            If there is none.
        """
        if self.scenario is None:
            message = "there is no `scenario` to simulate the plan with"
            hint = "give one with an SLO and a pool for every chip, named like it; or leave --verify out"
            raise InputError(Finding(message, "problem.scenario", hint=hint))
        return self._read(self.scenario)


def with_pools(
    loaded: LoadedScenario, pools: list[dict[str, Any]], changes: Mapping[str, Any] | None = None
) -> LoadedScenario:
    """The scenario with other pools, and other blocks in place of its own."""
    mapping = {**loaded.resolved, "pools": pools, **(changes or {})}
    return load_mapping({key: value for key, value in mapping.items() if value is not None}, base_dir=loaded.base_dir)
