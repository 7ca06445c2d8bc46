"""Sweeps: many runs of one scenario into one folder; what is finished is not done again."""

from __future__ import annotations

import io
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fleetsim import __version__
from fleetsim.errors import Finding, InputError
from fleetsim.experiment.run import folder_name
from fleetsim.output.parquet import MANIFEST, STUDY, remove_leftovers
from fleetsim.output.tables import SCHEMA_VERSION
from fleetsim.plugins import allowing_imports
from fleetsim.scenario.load import LoadedScenario
from fleetsim.scenario.schema import Scenario
from fleetsim.scenario.source import Located
from fleetsim.sweeping.axes import axes_of
from fleetsim.sweeping.crew import Engine, Options, crew
from fleetsim.sweeping.made_with import MadeWith, differences, made_with, require_portable
from fleetsim.sweeping.memory import expected_requests
from fleetsim.sweeping.plan import Plan, PlannedRun, plan
from fleetsim.sweeping.store import SUMMARY, LocalStore, Store, manifest_of, read_json, store_of, write_json
from fleetsim.sweeping.sweep_file import (
    Base,
    Replications,
    Seeds,
    Stated,
    base_of,
    name_of,
    read_sweep,
    study_file,
    sweep_of,
)
from fleetsim.sweeping.work import Assignment, Ended, failure_name

Where = str | os.PathLike[str] | Mapping[str, Any] | Scenario | LoadedScenario
SUMMARY_EVERY_S = 30.0
"""Time after which the summary is written again, so that a killed study has one [s]; more where writing takes long."""
SUMMARY_SHARE = 0.02
"""Share of the time that goes into that, at most."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a study is."""

    total: int
    """Runs that were asked for."""
    kept: int
    """Of them, finished before."""
    finished: int
    failed: int
    last: str = ""
    """What ended last, in words."""

    @property
    def done(self) -> int:
        """Runs that ended, now or before."""
        return self.kept + self.finished + self.failed


# --- a study that is there --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Timing:
    """How well the processes of a sweep were used."""

    runs: int
    processes: int
    wall_s: float
    """From the first run that was handed out to the last that ended; the start of the processes included."""
    busy_ratio: float
    """Share of that in which a process had a run, mean of the processes."""
    cpu_ratio: float
    """Processor time of the processes over that of as many cores: lower where others use them too."""
    overhead_s: float
    """Time of a process for each run, besides what `fleetsim run` would take [s]: handing out, tidying up, waiting, starting."""


@dataclass(frozen=True, slots=True, repr=False)
class Study:
    """What a sweep left: a folder or an address, and its table of runs."""

    path: str
    name: str
    runs: Sequence[Mapping[str, Any]]
    """One row per planned run, as in ``summary.parquet``."""
    warnings: Sequence[str] = ()
    interrupted: bool = False
    timing: Timing | None = None
    """None if nothing was run."""

    def __repr__(self) -> str:
        """One line; the figures are in `summary`."""
        left = f", {len(self.unfinished)} not done" if self.unfinished else ""
        failed = f", {len(self.failed)} failed" if self.failed else ""
        return f"Study({self.name!r}, {len(self.finished)} runs{failed}{left}, path={self.path!r})"

    def _with_status(self, status: str) -> list[Mapping[str, Any]]:
        return [row for row in self.runs if row["status"] == status]

    @property
    def finished(self) -> list[Mapping[str, Any]]:
        """Rows of the runs that have results."""
        return self._with_status("finished")

    @property
    def failed(self) -> list[Mapping[str, Any]]:
        """Rows of the runs that failed; `error` says why."""
        return self._with_status("failed")

    @property
    def unfinished(self) -> list[Mapping[str, Any]]:
        """Rows of the runs that were not done, or not to their end."""
        return self._with_status("interrupted")

    @property
    def summary(self) -> pa.Table:
        """One row per planned run: what it has on the axes, how it ended, its figures."""
        return summary_table(self.runs, _units(read_json(store_of(self.path), STUDY)))

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Study:
        """A study that is there; its summary is made anew from its runs, and written.

        Raises
        ------
        InputError
            If there is none.
        """
        return collect(store_of(path))


def collect(store: Store) -> Study:
    """Read what the runs of a study left and write its summary and manifest.

    Raises
    ------
    InputError
        If there is no study.
    """
    asked = read_json(store, STUDY)
    if asked is None or not isinstance(asked.get("runs"), list):
        raise InputError(Finding("holds no study", file=str(store), hint="a folder that `fleetsim sweep` wrote does"))
    while True:
        there = store.runs()
        rows = [_row(store, planned) for planned in asked["runs"]]
        _write_summary(store, asked, rows)
        if store.runs() == there:  # another shard may have published meanwhile
            return Study(str(store), str(asked["name"]), rows)


def _row(store: Store, planned: Mapping[str, Any]) -> dict[str, Any]:
    """A run's row of the summary."""
    run = str(planned["run"])
    failure = read_json(store, failure_name(run))
    manifest = manifest_of(store, run) if failure is None else None
    status = "failed" if failure is not None else "finished" if manifest is not None else "interrupted"
    figures: Mapping[str, Any] = {} if manifest is None else manifest["summary"]
    head = {
        "run": run,
        "status": status,
        "error": None if failure is None else str(failure.get("error", "")),
        "seed": planned["seed"],
        "replication": planned["replication"],
        **{f"axis.{path}": value for path, value in planned["axes"].items()},
        "verdict": None if manifest is None else manifest["verdict"],
        "wall_s": None if manifest is None else manifest["wall_s"],
    }
    return head | {name: value for name, value in figures.items() if name not in head}


def _write_summary(store: Store, asked: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    buffer = io.BytesIO()
    pq.write_table(summary_table(rows, _units(asked)), buffer, compression="zstd")
    store.write(SUMMARY, buffer.getvalue())
    counts = {status: sum(row["status"] == status for row in rows) for status in ("finished", "failed", "interrupted")}
    status = "complete" if counts["finished"] == len(rows) else "interrupted" if counts["interrupted"] else "failed"
    write_json(store, MANIFEST, _manifest(asked, status, counts))


def _manifest(asked: Mapping[str, Any], status: str, counts: Mapping[str, int]) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "fleetsim_version": __version__,
        "kind": "study",
        "name": asked["name"],
        "status": status,
        "runs": len(asked["runs"]),
        **counts,
    }


def _units(asked: Mapping[str, Any] | None) -> Mapping[str, str]:
    units = {} if asked is None else asked.get("units", {})
    return units if isinstance(units, Mapping) else {}


def summary_table(rows: Sequence[Mapping[str, Any]], units: Mapping[str, str]) -> pa.Table:
    """Rows of a study as a table; axes that are quantities carry their unit."""
    columns: dict[str, pa.Array] = {}
    fields = []
    for name in dict.fromkeys(key for row in rows for key in row):
        array = _array([row.get(name) for row in rows], text=name in ("error", "verdict"))
        unit = units.get(name.removeprefix("axis."), "") if name.startswith("axis.") else ""
        fields.append(pa.field(name, array.type, metadata={"unit": unit} if unit else None))
        columns[name] = array
    return pa.table(list(columns.values()), schema=pa.schema(fields, {"schema_version": SCHEMA_VERSION}))


def _array(values: list[Any], text: bool) -> pa.Array:
    known = [value for value in values if value is not None]
    if not known:
        return pa.nulls(len(values), pa.string() if text else pa.float64())
    if all(isinstance(value, bool) for value in known):
        return pa.array(values, pa.bool_())
    if all(isinstance(value, int) and not isinstance(value, bool) for value in known):
        return pa.array(values, pa.int64())
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    return pa.array([None if value is None else str(value) for value in values], pa.string())


# --- doing one --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checked sweep with what is known about its runs before it begins."""

    plan: Plan
    options: Options
    made_with: Mapping[str, MadeWith]
    """By run."""
    chosen: Sequence[PlannedRun]
    """Runs of this shard."""
    warnings: Sequence[str] = field(default=())


def stated(
    scenario: Where,
    axes: Mapping[str, Any] | Located | None = None,
    *,
    overrides: Mapping[str, object] | None = None,
    replications: int | None = None,
    seeds: Seeds | None = None,
    name: str | None = None,
) -> Stated:
    """What is asked for: a sweep's file or mapping, or a scenario with axes; what is given here counts more.

    Raises
    ------
    InputError
        If it cannot be read, or has no axes.
    """
    asked = _asked(scenario, axes)
    if axes is not None:
        asked = replace(asked, axes=_axes_over(asked.axes, axes_of(axes) if isinstance(axes, Mapping) else axes))
    if overrides:
        asked = replace(asked, base=replace(asked.base, overrides={**asked.base.overrides, **overrides}))
    given = {"count": replications, "seeds": seeds}
    changed = asked.replications.model_dump() | {key: value for key, value in given.items() if value is not None}
    return replace(asked, name=name or asked.name, replications=Replications.model_validate(changed))


def _asked(scenario: Where, axes: Mapping[str, Any] | Located | None) -> Stated:
    if isinstance(scenario, Mapping) and "axes" in scenario and "scenario" in scenario:
        return sweep_of(scenario)
    file = study_file(scenario) if isinstance(scenario, str | os.PathLike) else None
    if file is not None:
        return read_sweep(file)
    base = base_of(scenario, {})
    if axes is None:
        hint = "name what varies, e.g. --axis gateway.router=round-robin,least-outstanding; or give a sweep's file (docs/sweeps.md)"
        raise InputError(Finding("a sweep needs axes", hint=hint))
    return Stated(name_of(base, "sweep"), base, Located({}), Replications(), 0)


def _axes_over(written: Located, given: Located) -> Located:
    """Axes given with the command in place of those of the same path in the file."""
    if isinstance(written.value, list):
        return replace(written, value=[*written.value, given])
    assert isinstance(written.value, dict)
    assert isinstance(given.value, dict)
    return replace(written, value={**written.value, **given.value})


def prepare(asked: Stated, options: Options, notice: Callable[[str], None] = lambda _: None) -> Prepared:
    """Check every combination and find out what its results depend on.

    Raises
    ------
    InputError
        With all findings.
    """
    index, shards = options.shard
    if not 1 <= index <= shards:
        raise InputError(Finding(f"{index}/{shards}: expected I/N with I from 1 to N", "--shard"))
    with allowing_imports(options.allow_import):
        planned = plan(asked, notice)
        made = _made_with(planned.runs)
        if options.processes > 1:
            for run in planned.runs:
                require_portable(run.loaded, options.engine)
    return Prepared(planned, options, made, planned.runs[index - 1 :: shards], planned.warnings)


def _made_with(runs: Sequence[PlannedRun]) -> dict[str, MadeWith]:
    """What each run's result depends on; replications depend on the same."""
    made: dict[str, MadeWith] = {}
    last: tuple[int, MadeWith] | None = None
    for run in runs:
        key = id(run.axes)
        if last is None or last[0] != key:
            last = (key, made_with(run.loaded))
        made[run.id] = last[1]
    return made


def sweep(
    scenario: Where,
    axes: Mapping[str, Any] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, object] | None = None,
    replications: int | None = None,
    seeds: Seeds | None = None,
    name: str | None = None,
    jobs: int = 0,
    engine: Engine = "local",
    address: str | None = None,
    shard: tuple[int, int] = (1, 1),
    fresh: bool = False,
    keep_old: bool = False,
    memory_bytes: float | None = None,
    check: bool = False,
    allow_import: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Study:
    """Run a scenario with every combination of values on some axes.

    Parameters
    ----------
    scenario : path, mapping, Scenario or LoadedScenario
        A scenario; or a sweep's file, or what would stand in one.
    axes : mapping, optional
        Values by path, as under ``axes`` of a sweep's file: ``{"gateway.router": ["round-robin", MyRouter],
        "workload.arrivals.rate": {"log-range": ["10 req/s", "80 req/s"], "points": 4}}``.
    out : path or address, optional
        Folder of the study, or an address that fsspec knows; default ``fleetsim-out/<name>``.
    overrides : mapping, optional
        Values laid over the scenario in all runs.
    replications : int, optional
        Runs of each combination, with seeds that follow the scenario's.
    seeds : ``common`` or ``own``, optional
        Whether combinations share their seeds (common random numbers, the default).
    name : str, optional
        Of the study.
    jobs : int
        Processes; 0: one per core; 1: in this process.
    engine : ``local`` or ``ray``
        Processes of this machine, or a Ray cluster.
    address : str, optional
        Of the cluster; otherwise one is started here.
    shard : (int, int)
        (i, n): only every n-th run, beginning with the i-th.
    fresh : bool
        Do finished runs again.
    keep_old : bool
        Keep finished runs that other code, policies or files made.
    memory_bytes : float, optional
        What all processes may use together [bytes]; default: what is free.
    check : bool
        Check the laws of the simulation while it runs.
    allow_import : bool
        Let scenarios name policies as ``module:Class``.
    progress : callable, optional
        Told after each run.

    Returns
    -------
    Study
        Failed runs are rows with their error, not exceptions.

    Raises
    ------
    InputError
        If any combination is not valid, before anything runs.
    """
    options = Options(jobs, engine, address, shard, fresh, keep_old, memory_bytes, check, allow_import)
    asked = stated(scenario, axes, overrides=overrides, replications=replications, seeds=seeds, name=name)
    ready = prepare(asked, options)
    return carry_out(ready, store_of(out if out is not None else default_out(asked.name)), progress or (lambda _: None))


def default_out(name: str) -> str:
    """Folder of a study that nobody named."""
    return os.path.join("fleetsim-out", folder_name(name))


def to_do(ready: Prepared, store: Store) -> tuple[list[PlannedRun], list[str]]:
    """Runs of this shard that are not finished, longest first; and what is to be said about those that are."""
    left: list[PlannedRun] = []
    changed: dict[str, int] = {}
    for run in ready.chosen:
        manifest = None if ready.options.fresh else manifest_of(store, run.id)
        if manifest is None or read_json(store, failure_name(run.id)) is not None:
            left.append(run)
        elif what := ", ".join(differences(manifest.get("made_with"), ready.made_with[run.id])):
            changed[what] = changed.get(what, 0) + 1
            if not ready.options.keep_old:
                left.append(run)
    done = "kept, although made with another" if ready.options.keep_old else "done again: made with another"
    notes = [
        f"{count} finished run{'s' if count > 1 else ''} {done} version of {what}" for what, count in changed.items()
    ]
    return sorted(left, key=lambda run: -expected_requests(run.loaded)), notes


def carry_out(
    ready: Prepared, store: Store, progress: Callable[[Progress], None] = lambda _: None, command: Sequence[str] = ()
) -> Study:
    """Do what a sweep asks for and is not done yet.

    Parameters
    ----------
    ready : Prepared
        From `prepare`.
    store : Store
        Where.
    progress : callable
        Told after each run.
    command : sequence of str
        What `study.json` says it was made by.
    """
    store.prepare()
    asked = _asked_for(ready, command)
    refuse_other(store, asked)
    left, notes = to_do(ready, store)
    write_json(store, STUDY, asked)
    write_json(store, MANIFEST, _manifest(asked, "running", {}))
    state = Progress(len(ready.chosen), len(ready.chosen) - len(left), 0, 0)
    progress(state)
    interrupted = False
    all_ended: list[Ended] = []
    started = written = time.perf_counter()
    pause_s = SUMMARY_EVERY_S
    try:
        for ended in _ended(ready, left, store):
            failed = bool(ended.error)
            all_ended.append(ended)
            state = replace(
                state,
                finished=state.finished + (not failed),
                failed=state.failed + failed,
                last=ended.error,
            )
            progress(state)
            if (begun := time.perf_counter()) - written > pause_s:
                collect(store)
                written = time.perf_counter()
                pause_s = max(SUMMARY_EVERY_S, (written - begun) / SUMMARY_SHARE)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        if isinstance(store, LocalStore):
            remove_leftovers(store.folder)
    timing = _timing(all_ended, ready.options, time.perf_counter() - started)
    return replace(collect(store), warnings=[*ready.warnings, *notes], interrupted=interrupted, timing=timing)


def _timing(ended: Sequence[Ended], options: Options, wall_s: float) -> Timing | None:
    """How well the processes were used; on a cluster nobody counts them."""
    if not ended or options.engine != "local":
        return None
    processes = options.processes
    available_s = processes * wall_s
    overhead_s = (available_s - math.fsum(one.run_s for one in ended)) / len(ended)
    busy, cpu = (
        math.fsum(times) / available_s for times in ([one.wall_s for one in ended], [one.cpu_s for one in ended])
    )
    return Timing(len(ended), processes, wall_s, busy, cpu, overhead_s)


def _asked_for(ready: Prepared, command: Sequence[str]) -> dict[str, Any]:
    """Content of `study.json`."""
    asked = ready.plan.stated
    more = {"replications": asked.replications.model_dump(), "axes_seed": asked.seed}
    return study_json(asked.name, asked.base, asked.axes.plain(), ready.plan.units, ready.plan.runs, command) | more


def study_json(
    name: str, base: Base, axes: Any, units: Mapping[str, str], runs: Sequence[PlannedRun], command: Sequence[str]
) -> dict[str, Any]:
    """What `study.json` says of any study."""
    return {
        "schema_version": SCHEMA_VERSION,
        "fleetsim_version": __version__,
        "name": name,
        "scenario": base.plain(),
        "axes": axes,
        "units": dict(units),
        "seeds": sorted({run.seed for run in runs}),
        "planned": len(runs),
        "command": list(command),
        "runs": [run.row() for run in runs],
    }


def refuse_other(store: Store, asked: Mapping[str, Any]) -> None:
    """A study is not replaced by one of another name."""
    before = read_json(store, STUDY)
    if before is not None and before.get("name") != asked["name"]:
        message = f'holds the study "{before.get("name")}", not "{asked["name"]}"'
        raise InputError(Finding(message, file=str(store), hint="choose another --out"))


def _ended(ready: Prepared, left: Sequence[PlannedRun], store: Store) -> Iterator[Ended]:
    """How the runs end."""
    with crew(ready.options) as carried_out:
        yield from carried_out(assignments(ready, left, store))


def assignments(ready: Prepared, runs: Sequence[PlannedRun], store: Store) -> list[Assignment]:
    """What processes are told about these runs."""
    options = ready.options
    return [Assignment(run.id, run.loaded, store, ready.made_with[run.id], options.check) for run in runs]
