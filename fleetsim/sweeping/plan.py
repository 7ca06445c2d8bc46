"""From a stated sweep to its runs, all of them checked before the first begins."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fleetsim.errors import Finding, ScenarioError
from fleetsim.experiment.check import require_valid
from fleetsim.experiment.replicate import Notice
from fleetsim.scenario.export import digest
from fleetsim.scenario.load import LoadedScenario
from fleetsim.scenario.merge import path_steps
from fleetsim.sweeping.axes import Combination, combinations, told, value_text
from fleetsim.sweeping.sweep_file import Replications, Stated
from fleetsim.units import UNITS

MOST_FINDINGS = 30
"""Findings that are shown; combinations tend to repeat each other's mistakes."""
ID_DIGITS = 12
"""Digits of a scenario's digest by which its run is called."""

Cell = str | int | float

_QUANTITY = re.compile(r"^\s*([+-]?[\d._]+(?:[eE][+-]?\d+)?)\s*(\S.*)$")
_UNITS = {unit for table in UNITS.values() for unit in table}


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run of a study."""

    id: str
    """First digits of the digest of its scenario, seed included."""
    loaded: LoadedScenario
    axes: Mapping[str, Cell]
    """What it has on each axis: a number in its base unit where all runs have one, else text."""
    replication: int
    """From 0."""

    @property
    def seed(self) -> int:
        """Root of its random streams."""
        return self.loaded.scenario.seed

    def row(self) -> dict[str, Any]:
        """As `study.json` has it."""
        return {"run": self.id, "seed": self.seed, "replication": self.replication, "axes": dict(self.axes)}

    @property
    def label(self) -> str:
        """In a line."""
        parts = [
            f"{path}={value:g}" if isinstance(value, float) else f"{path}={value}" for path, value in self.axes.items()
        ]
        return ", ".join([*parts, f"seed={self.seed}"])


@dataclass(frozen=True, slots=True)
class Plan:
    """What a sweep will do."""

    stated: Stated
    runs: Sequence[PlannedRun]
    units: Mapping[str, str]
    """Unit of each axis that is a quantity."""
    warnings: Sequence[str]


def plan(stated: Stated, notice: Notice = lambda _: None) -> Plan:
    """Every run of a sweep, checked.

    Parameters
    ----------
    stated : Stated
        From `read_sweep` or made in Python.
    notice : callable
        Told how far the checks are, where there are many.

    Raises
    ------
    ScenarioError
        With the findings of all combinations, each once.
    """
    combos = combinations(stated.axes, stated.seed)
    scenarios, warnings = _checked(stated, combos, notice)
    cells, units = cells_of(combos, scenarios)
    runs: dict[str, PlannedRun] = {}
    for index, loaded in enumerate(scenarios):
        for run in runs_of(loaded, stated.replications, cells[index]):
            if run.id in runs:
                warnings.append(f"{run.label}: the same run as {runs[run.id].label}; run once")
                continue
            runs[run.id] = run
    return Plan(stated, tuple(runs.values()), units, tuple(dict.fromkeys(warnings)))


def runs_of(loaded: LoadedScenario, replications: Replications, cells: Mapping[str, Cell]) -> list[PlannedRun]:
    """The runs of a combination: one for each replication."""
    return [_run(loaded, seed, cells, number) for number, seed in enumerate(_seeds(replications, loaded))]


def _run(loaded: LoadedScenario, seed: int, cells: Mapping[str, Cell], replication: int) -> PlannedRun:
    scenario = loaded.scenario
    if seed != scenario.seed:
        scenario = scenario.model_copy(update={"seed": seed})
        loaded = replace(loaded, scenario=scenario)
    return PlannedRun(digest(scenario)[:ID_DIGITS], loaded, cells, replication)


def _seeds(asked: Replications, loaded: LoadedScenario) -> list[int]:
    """Seeds of a combination's replications."""
    base = loaded.scenario.seed
    if asked.seeds == "common":
        return [(base + r) % 2**63 for r in range(asked.count)]
    whole = digest(loaded.scenario)
    return [int(hashlib.sha256(f"{whole} {r}".encode()).hexdigest()[:15], 16) for r in range(asked.count)]


def _checked(stated: Stated, combos: Sequence[Combination], notice: Notice) -> tuple[list[LoadedScenario], list[str]]:
    scenarios: list[LoadedScenario] = []
    warnings: list[str] = []
    findings: dict[tuple[Any, ...], Finding] = {}
    for number, combination in enumerate(combos):
        if number and number % 500 == 0:
            notice(f"checked {number:,} of {len(combos):,} combinations")
        try:
            loaded = stated.base.loaded(combination)
            warnings += [str(finding) for finding in require_valid(loaded)]
            scenarios.append(loaded)
        except ScenarioError as error:
            for finding in _only_errors(error.findings):
                key = (finding.file, finding.line, finding.column, finding.path, finding.message)
                findings.setdefault(key, _with_combination(finding, combination))
    if findings:
        listed = list(findings.values())
        more = [] if len(listed) <= MOST_FINDINGS else [Finding(f"… and {len(listed) - MOST_FINDINGS} more")]
        raise ScenarioError([*listed[:MOST_FINDINGS], *more])
    return scenarios, warnings


def _only_errors(findings: Iterable[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.severity == "error"]


def _with_combination(finding: Finding, combination: Combination) -> Finding:
    """The finding, and which combination is its first, unless the value at fault is one of the combination's own."""
    places = {(value.file, value.line, value.column) for value in combination.values()}
    if not combination or (finding.file, finding.line, finding.column) in places:
        return finding
    first = f"with {told(combination)}"
    return replace(finding, hint=f"{finding.hint}\n    {first}" if finding.hint else first)


# --- what the table of the runs says of each axis ---------------------------------------------------------------------


def cells_of(
    combos: Sequence[Combination], scenarios: Sequence[LoadedScenario]
) -> tuple[list[dict[str, Cell]], dict[str, str]]:
    """What each combination has on each axis, as the table of runs says it; and the unit of each axis that is a quantity."""
    resolved = [loaded.resolved for loaded in scenarios]
    columns: dict[str, list[Cell]] = {}
    units: dict[str, str] = {}
    for path in dict.fromkeys(path for one in combos for path in one):
        steps = path_steps(path, path)
        given = [one[path].plain() if path in one else None for one in combos]
        found = [_at(whole, steps) for whole in resolved]
        numbers = [_number(value, now) for value, now in zip(given, found, strict=True)]
        kinds = {unit for _, unit in numbers}
        if all(number is not None for number, _ in numbers) and len(kinds) == 1:
            columns[path] = [number for number, _ in numbers if number is not None]
            if unit := kinds.pop():
                units[path] = unit
        else:
            columns[path] = [
                value_text(now if value is None else value) for value, now in zip(given, found, strict=True)
            ]
    return [{path: column[i] for path, column in columns.items()} for i in range(len(combos))], units


def _at(whole: Any, steps: Sequence[str | int]) -> Any:
    """Value of a resolved scenario at a path; None where there is none."""
    for step in steps:
        if isinstance(whole, Mapping):
            whole = whole.get(str(step))
        elif isinstance(whole, list):
            named = {str(item.get("name")): i for i, item in enumerate(whole) if isinstance(item, Mapping)}
            index = step if isinstance(step, int) else named.get(step, -1)
            whole = whole[index] if 0 <= index < len(whole) else None
        else:
            return None
    return whole


def _number(given: Any, now: Any) -> tuple[int | float | None, str]:
    """The value in the resolved scenario as a number with its base unit, if it is one and was given as one."""
    if isinstance(now, int | float) and not isinstance(now, bool):
        return (now, "") if not isinstance(given, str | Mapping | list) else (None, "")
    match = _QUANTITY.match(now) if isinstance(now, str) else None
    if match is None or match[2] not in _UNITS or isinstance(given, Mapping | list):
        return None, ""
    return float(match[1]), match[2]
