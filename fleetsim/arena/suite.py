"""The suite of scenarios, and who may enter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from fleetsim import plugins
from fleetsim.errors import Finding, InputError, nearest
from fleetsim.scenario.schema import Scenario
from fleetsim.scenario.source import read_tree
from fleetsim.scenario.template import scenarios_folder


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of policies that can be compared."""

    path: str
    """Where a scenario names the policy: below each pool if it begins with ``engine``."""
    baseline: str
    """What differences are taken to."""
    decision: str
    """Method whose calls are its decisions; none where they are not timed."""
    beside: Mapping[str, object] = field(default_factory=dict)
    """What every entry of the kind finds in a scenario besides."""


NONE = "none"
"""Baseline of kinds that a scenario can do without: nobody decides."""


KINDS: Mapping[str, Kind] = {
    "routers": Kind("gateway.router", "least-outstanding", "route"),
    "schedulers": Kind("engine.scheduler", "vllm-v1", "schedule"),
    "orders": Kind("engine.order", "fcfs", "", {"gateway.predictor": "learned"}),
    "admissions": Kind("gateway.admission", NONE, "decide"),
    "evictions": Kind("engine.kv.eviction", "lru", ""),
    "rebalancers": Kind("gateway.rebalancer", NONE, "tick"),
}


def comparable() -> dict[str, list[str]]:
    """Installed policies of each kind that can be compared."""
    return {kind: plugins.names(kind) for kind in KINDS if plugins.names(kind)}


@dataclass(frozen=True, slots=True)
class Entry:
    """A policy that takes part."""

    kind: str
    name: str
    """Name of a plug-in, or ``module:Class``."""

    @property
    def baseline(self) -> bool:
        """Whether others are compared with it."""
        return self.name == KINDS[self.kind].baseline

    def overrides(self, scenario: Scenario) -> dict[str, object]:
        """What it changes in a scenario: its block, with its own defaults, in place of the one that is there."""
        kind = KINDS[self.kind]
        block = None if self.name == NONE else {"policy": self.name, **parameters(self.kind, self.name)}
        pools = range(len(scenario.pools)) if kind.path.startswith("engine") else ()
        paths = [f"pools[{number}].{kind.path}" for number in pools] or [kind.path]
        return {**kind.beside, **dict.fromkeys(paths, block)}


def entries(wanted: Mapping[str, Sequence[str]], kinds: Sequence[str] = ()) -> list[Entry]:
    """The policies asked for, kind by kind, the baseline among them; all installed ones where none is named.

    Parameters
    ----------
    wanted : mapping
        Names by kind.
    kinds : sequence of str
        Kinds whose installed policies all take part.

    Raises
    ------
    InputError
        If there is no such policy, or no such kind.
    """
    known = comparable()
    for kind in kinds:
        if kind not in known:
            raise InputError(
                Finding(f'no kind of policies "{kind}" meets in the arena', hint=nearest(kind, known, "kinds"))
            )
    asked: dict[str, Sequence[str]] = {kind: known[kind] for kind in kinds}
    asked.update({kind: names for kind, names in wanted.items() if names})
    if not asked:
        asked.update(known)
    found = []
    for kind, names in asked.items():
        if kind not in known:
            raise InputError(Finding(f"no {kind} are installed", hint=f"known kinds: {', '.join(known)}"))
        for name in dict.fromkeys([KINDS[kind].baseline, *names]):
            try:
                if name != NONE:
                    plugins.load(kind, name)
            except LookupError as error:
                raise InputError(Finding(f"{kind}: {error}")) from None
            found.append(Entry(kind, name))
    return found


def folder() -> Path:
    """Folder of the suite."""
    return scenarios_folder() / "arena"


def version() -> int:
    """Version of the suite and of the score."""
    return int(_suite()["version"])


def scenario_names() -> list[str]:
    """Scenarios of the suite, in its order."""
    return [str(name) for name in _suite()["scenarios"]]


def meeting_places() -> dict[str, list[str]]:
    """Scenarios of the suite in which each kind meets."""
    return {str(kind): [str(name) for name in names] for kind, names in _suite()["kinds"].items()}


def parameters(kind: str, name: str) -> dict[str, Any]:
    """What the suite gives a policy that has no defaults of its own."""
    return dict(_suite()["parameters"].get(kind, {}).get(name, {}))


@cache
def _suite() -> dict[str, Any]:
    tree, _ = read_tree(folder() / "suite.yaml", "suite.yaml")
    content: dict[str, Any] = tree.plain()
    return content


def scenario_file(name: str) -> Path:
    """File of a scenario of the suite, or a file of one's own.

    Raises
    ------
    InputError
        If there is no such scenario.
    """
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    known = scenario_names()
    if name not in known:
        raise InputError(Finding(f'no arena scenario "{name}"', hint=nearest(name, known, "scenarios")))
    return folder() / f"{name}.yaml"
