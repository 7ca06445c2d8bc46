"""The contest: every entry in every scenario with the same seeds, and what its decisions cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from time import thread_time_ns
from typing import Any

import numpy as np

from fleetsim import plugins
from fleetsim.arena.suite import KINDS, NONE, Entry, scenario_file
from fleetsim.errors import FleetsimError, InputError
from fleetsim.experiment.check import require_valid
from fleetsim.experiment.replicate import Figures, Kept, Notice, Task, perform
from fleetsim.experiment.run import Result, run
from fleetsim.metrics.answers import upper_hull
from fleetsim.plots.answers import COLUMNS, AnswerDigest
from fleetsim.plugins import Choice, allowing_imports
from fleetsim.scenario.export import canonical_json
from fleetsim.scenario.load import LoadedScenario, load_scenario
from fleetsim.scenario.schema import Scenario


@dataclass(frozen=True, slots=True)
class Contest:
    """Figures of all runs."""

    entries: Sequence[Entry]
    scenarios: Sequence[str]
    seeds: int
    figures: Mapping[tuple[Entry, str], Sequence[Figures]]
    """One per seed, where the entry can run the scenario."""
    excluded: Mapping[tuple[Entry, str], str]
    """Why an entry cannot run a scenario."""
    decision_us: Mapping[Entry, float] = field(default_factory=dict)
    """Measured mean time of a decision on this machine [µs]; never part of a score."""


def contest(
    entries: Sequence[Entry],
    scenarios: Sequence[str],
    seeds: int,
    jobs: int = 1,
    kept: Kept | None = None,
    notice: Notice = lambda _: None,
    allow_import: bool = False,
    only: Mapping[str, Sequence[str]] | None = None,
) -> Contest:
    """Run every entry in every scenario.

    Parameters
    ----------
    entries : sequence of Entry
        See `fleetsim.arena.suite.entries`.
    scenarios : sequence of str
        Names of the suite, or files.
    seeds : int
        Runs of each: seeds 1, 2, …; the same workloads for every entry.
    jobs : int
        Processes.
    kept : Kept, optional
        Where finished runs are kept.
    notice : callable
        Told what is running.
    allow_import : bool
        Let entries be ``module:Class``.
    only : mapping, optional
        Scenarios in which each kind meets; a kind that is not named meets in all.

    Raises
    ------
    InputError
        If a scenario is not valid as it stands.
    """
    tasks: dict[tuple[Entry, str, int], Task] = {}
    excluded: dict[tuple[Entry, str], str] = {}
    with allowing_imports(allow_import):
        for name in scenarios:
            require_valid(load_scenario(scenario_file(name)), force=False)
            for entry in entries:
                if only is not None and name not in only.get(entry.kind, scenarios):
                    continue
                try:
                    for seed in range(1, seeds + 1):
                        tasks[entry, name, seed] = _task(entry, name, seed, allow_import)
                except InputError as error:
                    excluded[entry, name] = error.findings[0].message
    found = dict(zip(tasks, perform(list(tasks.values()), jobs, kept, notice), strict=True))
    figures: dict[tuple[Entry, str], list[Figures]] = {}
    for (entry, name, _), said in found.items():
        if "failed" in said:
            excluded[entry, name] = str(said["failed"])
        figures.setdefault((entry, name), []).append(said)
    ran = {key: runs for key, runs in figures.items() if key not in excluded}
    return Contest(entries, scenarios, seeds, ran, excluded)


def _loaded(entry: Entry, name: str, seed: int) -> LoadedScenario:
    path = scenario_file(name)
    loaded = _with_entry(entry, path, path.stat().st_mtime_ns)
    return replace(loaded, scenario=loaded.scenario.model_copy(update={"seed": seed}))


@lru_cache(maxsize=16)
def _with_entry(entry: Entry, path: Path, mtime_ns: int) -> LoadedScenario:  # noqa: ARG001
    """A scenario with an entry's policy; reading and validating it takes as long as a short run, so seeds share it."""
    return load_scenario(path, entry.overrides(_plain(path)))


@lru_cache(maxsize=16)
def _plain(path: Path) -> Scenario:
    return load_scenario(path).scenario


def _task(entry: Entry, name: str, seed: int, allow_import: bool) -> Task:
    loaded = _loaded(entry, name, seed)
    if seed == 1:
        require_valid(loaded, force=False)
    ours = entry.name == NONE or plugins.load(entry.kind, entry.name).__module__.startswith("fleetsim.")
    label = f"{name}: {entry.name}, seed {seed}"
    return Task(label, f"arena {canonical_json(loaded.scenario)}", _run, (entry, name, seed, allow_import), keep=ours)


def _run(entry: Entry, name: str, seed: int, allow_import: bool) -> Figures:
    """Figures of one run; why there are none where the policy failed."""
    with TemporaryDirectory(prefix="fleetsim-") as folder, allowing_imports(allow_import):
        try:
            result = run(_loaded(entry, name, seed), Path(folder) / "run", allow_import=allow_import)
        except FleetsimError as error:
            return {"failed": str(error)}
        except Exception as error:  # a policy's own mistake ends its run, not the contest
            return {"failed": f"{type(error).__name__}: {error}"}
        return {**_measured(entry.kind, result), **_of_answers(result)}


def _measured(kind: str, result: Result) -> Figures:
    """The measures of a kind."""
    told = {**result.summary, **_beside_mixes(result)}
    found = {}
    for name, measure in KINDS[kind].measures.items():
        value = told.get(measure.column)
        found[name] = value / told[measure.per] if measure.per and value is not None else value
    return found


def _arms(result: Result) -> dict[str, tuple[float, float]]:
    """Of each model, list price of a request [USD] and quality if it answered all."""
    return {
        str(row["value"]): (row["list_usd_alone"] / row["requests"], row["quality_alone_mean"])
        for row in result.groups
        if row["by"] == "arm"
    }


def _beside_mixes(result: Result) -> Figures:
    """How much better the answers are than those of a random mix of single models at the same list price."""
    arms = _arms(result)
    if not arms:
        return {}
    usd, quality = zip(*upper_hull(list(arms.values())), strict=True)
    mixed = float(np.interp(result.summary["list_usd"] / result.summary["requests"], usd, quality))
    return {"quality_over_mix": result.summary["quality_per_request"] - mixed}


def _of_answers(result: Result) -> Figures:
    """What pictures of model routers take: points of the single models, and the regret so far."""
    arms = _arms(result)
    if not arms:
        return {}
    digest = AnswerDigest(float(result.summary["makespan_s"]))
    for batch in result.table("requests").select(COLUMNS).to_batches():
        digest.add(batch)
    regret = digest.regret_table("")
    return {"arms": arms, "regret_so_far": {name: regret[name].to_pylist() for name in ("requests", "regret")}}


# --- what decisions cost ------------------------------------------------------------------------------------------------


class Stopwatch:
    """Time spent in a policy's methods, and how many decisions it took."""

    def __init__(self, decision: str) -> None:
        self.decision = (decision, f"{decision}_knowing")  # who is told the answers is asked in another way
        self.decisions = 0
        self.spent_ns = 0

    def around(self, policy: Any) -> Any:
        """The policy with its methods timed."""
        return _Timed(policy, self)


class _Timed:
    """Stands for a policy; its methods report to a stopwatch."""

    def __init__(self, policy: Any, watch: Stopwatch) -> None:
        self._policy, self._watch = policy, watch

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._policy, name)
        if not callable(value):
            return value
        timed = self._timed(value, name in self._watch.decision)
        setattr(self, name, timed)
        return timed

    def _timed(self, method: Callable[..., Any], decides: bool) -> Callable[..., Any]:
        watch = self._watch

        def call(*args: Any) -> Any:
            start_ns = thread_time_ns()
            answer = method(*args)
            watch.spent_ns += thread_time_ns() - start_ns
            watch.decisions += decides
            return answer

        return call


class _TimedChoice(Choice):
    """A policy block whose policy is timed."""

    __slots__ = ("watch",)
    watch: Stopwatch

    def create(self, *args: Any) -> Any:
        """The timed policy."""
        return self.watch.around(super().create(*args))


def decision_us(entry: Entry, name: str, allow_import: bool = False) -> float | None:
    """Mean time of the entry's decisions in one run of a scenario [µs], reading the clock included; None if it took none."""
    if not KINDS[entry.kind].decision or entry.name == NONE:
        return None
    watch = Stopwatch(KINDS[entry.kind].decision)
    with TemporaryDirectory(prefix="fleetsim-") as folder, allowing_imports(allow_import):
        loaded = _loaded(entry, name, 1)
        timed = LoadedScenario(_watched(loaded.scenario, entry, watch), loaded.path, loaded.base_dir, tree=loaded.tree)
        run(timed, Path(folder) / "run", allow_import=allow_import)
    return watch.spent_ns / watch.decisions / 1e3 if watch.decisions else None


def _watched(scenario: Scenario, entry: Entry, watch: Stopwatch) -> Scenario:
    section, _, key = KINDS[entry.kind].path.partition(".")
    if section == "gateway":
        block = _with_watch(scenario.gateway, key, watch)
        return scenario.model_copy(update={"gateway": block})
    pools = tuple(pool.model_copy(update={"engine": _with_watch(pool.engine, key, watch)}) for pool in scenario.pools)
    return scenario.model_copy(update={"pools": pools})


def _with_watch(block: Any, key: str, watch: Stopwatch) -> Any:
    choice = getattr(block, key)
    timed = _TimedChoice(choice.kind, choice.name, choice.config)
    object.__setattr__(timed, "watch", watch)
    return block.model_copy(update={key: timed})
