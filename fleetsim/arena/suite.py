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
class Measure:
    """A figure that runs are compared by."""

    column: str
    """Its name in the summary, or in what the contest adds to it."""
    title: str = ""
    """What the tables call it; nothing: it is kept and not shown."""
    unit: str = ""
    factor: float = 1.0
    digits: int = 0
    sign: int = 0
    """1 where more is better, -1 where less is."""
    scored: bool = False
    """Whether it is part of the score."""
    per: str = ""
    """Figure of the summary that it is divided by."""


LATENCIES: Mapping[str, Measure] = {
    "attainment": Measure("slo_attainment_ratio", "SLO attainment", "%", 100.0, 1, 1, True),
    "goodput_requests_per_s": Measure("goodput_requests_per_s"),
    "ttft_mean_s": Measure("ttft_mean_s", "mean TTFT", "ms", 1e3, 0, -1, True),
    "ttft_p99_s": Measure("ttft_p99_s", "p99 TTFT", "ms", 1e3, 0, -1, True),
    "itl_p99_s": Measure("itl_p99_s", "p99 gap", "ms", 1e3, 0, -1, True),
}
"""What is kept of a run, by the name that the table gives it."""
ANSWERS: Mapping[str, Measure] = {
    "quality": Measure("quality_per_request", "quality", "%", 100.0, 1, 1, True),
    "over_mix": Measure("quality_over_mix", "over a mix", "%", 100.0, 1, 1),
    "pgr": Measure("pgr", "PGR", "%", 100.0, 0, 1),
    "regret": Measure("quality_regret_mean", "regret", "%", 100.0, 1, -1),
    "list_usd": Measure("list_usd", "price", "USD/1,000", 1e3, 3, -1, True, "requests"),
    "energy_j": Measure("energy_requests_j", "energy", "J", 1.0, 0, -1, True, "requests"),
    "e2el_p99_s": Measure("e2el_p99_s", "p99 E2E", "s", 1.0, 1, -1, True),
    "attainment": Measure("slo_attainment_ratio", "SLO attainment", "%", 100.0, 1, 1, True),
    "apgr": Measure("apgr"),
}
"""The same where models are chosen."""


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
    suite: str = "fleet"
    measures: Mapping[str, Measure] = field(default_factory=lambda: LATENCIES)

    @property
    def scored(self) -> dict[str, int]:
        """What the score is made of: 1 where more is better, -1 where less is."""
        return {name: measure.sign for name, measure in self.measures.items() if measure.scored}

    @property
    def shown(self) -> dict[str, Measure]:
        """What is shown of each scenario."""
        return {name: measure for name, measure in self.measures.items() if measure.title}


NONE = "none"
"""Baseline of kinds that a scenario can do without: nobody decides."""


KINDS: Mapping[str, Kind] = {
    "routers": Kind("gateway.router", "least-outstanding", "route"),
    "schedulers": Kind("engine.scheduler", "vllm-v1", "schedule"),
    "orders": Kind("engine.order", "fcfs", "", {"gateway.predictor": "learned"}),
    "admissions": Kind("gateway.admission", NONE, "decide"),
    "evictions": Kind("engine.kv.eviction", "lru", ""),
    "rebalancers": Kind("gateway.rebalancer", NONE, "tick"),
    "model_routers": Kind("gateway.model_router", "single", "route", suite="models", measures=ANSWERS),
}
SUITES: Mapping[str, str] = {"fleet": "suite.yaml", "models": "suite-models.yaml"}
"""Files of the suites: what a fleet does with requests, and which model answers them."""


def comparable(suite: str = "fleet") -> dict[str, list[str]]:
    """Installed policies of each kind of a suite that can be compared."""
    return {name: plugins.names(name) for name, kind in KINDS.items() if kind.suite == suite and plugins.names(name)}


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


def entries(wanted: Mapping[str, Sequence[str]], kinds: Sequence[str] = (), suite: str = "fleet") -> list[Entry]:
    """The policies asked for, kind by kind, the baseline among them; all installed ones where none is named.

    Parameters
    ----------
    wanted : mapping
        Names by kind.
    kinds : sequence of str
        Kinds whose installed policies all take part.
    suite : str
        ``fleet`` or ``models``.

    Raises
    ------
    InputError
        If there is no such policy, or no such kind.
    """
    known = comparable(suite)
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
            raise InputError(
                Finding(f"no {kind} meet in the suite of {suite}", hint=f"known kinds: {', '.join(known)}")
            )
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


def version(suite: str = "fleet") -> int:
    """Version of a suite and of its score."""
    return int(_suite(suite)["version"])


def scenario_names(suite: str = "fleet") -> list[str]:
    """Scenarios of a suite, in its order."""
    return [str(name) for name in _suite(suite)["scenarios"]]


def meeting_places(suite: str = "fleet") -> dict[str, list[str]]:
    """Scenarios of a suite in which each kind meets."""
    return {str(kind): [str(name) for name in names] for kind, names in _suite(suite)["kinds"].items()}


def parameters(kind: str, name: str) -> dict[str, Any]:
    """What the suite gives a policy that has no defaults of its own."""
    return dict(_suite(KINDS[kind].suite)["parameters"].get(kind, {}).get(name, {}))


@cache
def _suite(suite: str) -> dict[str, Any]:
    file = SUITES[suite]
    tree, _ = read_tree(folder() / file, file)
    content: dict[str, Any] = tree.plain()
    return content


def scenario_file(name: str) -> Path:
    """File of a scenario of a suite, or a file of one's own.

    Raises
    ------
    InputError
        If there is no such scenario.
    """
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    known = [name for suite in SUITES for name in scenario_names(suite)]
    if name not in known:
        raise InputError(Finding(f'no arena scenario "{name}"', hint=nearest(name, known, "scenarios")))
    return folder() / f"{name}.yaml"
