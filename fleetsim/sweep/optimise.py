"""Search over paths of a scenario by Optuna: the best trade-offs between figures of its runs, as a study that resumes."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fleetsim.errors import Finding, InputError, ScenarioError, nearest
from fleetsim.experiment.check import require_valid
from fleetsim.experiment.replicate import code_digest
from fleetsim.metrics.verdict import OVERLOADED
from fleetsim.output.parquet import STUDY, remove_leftovers
from fleetsim.plugins import allowing_imports
from fleetsim.scenario.load import LoadedScenario
from fleetsim.scenario.schema import MixWorkload, SyntheticWorkload, TraceWorkload, TreeSearchWorkload
from fleetsim.scenario.source import Located
from fleetsim.sweep.axes import Choices, Combination, Span, value_text
from fleetsim.sweep.crew import CarryOut, Engine, Options, crew
from fleetsim.sweep.made_with import differences, made_with, require_portable
from fleetsim.sweep.memory import expected_requests
from fleetsim.sweep.optimise_file import (
    OBJECTIVES,
    Constraint,
    Direction,
    Sampler,
    Search,
    read_search,
    search_of,
)
from fleetsim.sweep.plan import PlannedRun, cells_of, runs_of
from fleetsim.sweep.store import LocalStore, Store, manifest_of, read_json, store_of, write_json
from fleetsim.sweep.study import Study, Where, collect, default_out, refuse_other, study_json, summary_table
from fleetsim.sweep.sweep_file import Replications, base_of, name_of, study_file
from fleetsim.sweep.work import Assignment, failure_name

STORAGE = "optuna.db"
TRIALS, PARETO = "trials.parquet", "pareto.parquet"
PROBES = "probes"
LEAST_PROBE = 200
"""Requests below which a verdict on the first part of a run means nothing: then none is asked for."""
POPULATION = 20
"""Individuals of a generation of the genetic algorithm."""
REPORTED = (*OBJECTIVES, "slo_attainment_ratio")
"""Figures of every trial in the table of trials, besides its objectives."""


@dataclass(frozen=True, slots=True, repr=False)
class Optimised:
    """What a search found."""

    study: Study
    """All its runs."""
    trials: Sequence[Mapping[str, Any]]
    """One row per trial, as in ``trials.parquet``."""
    pareto: Sequence[Mapping[str, Any]]
    """The trials that no other beats in everything, and that keep the constraints; as in ``pareto.parquet``."""
    objectives: Mapping[str, Direction]
    constraints: Sequence[str]
    interrupted: bool = False

    def __repr__(self) -> str:
        """One line."""
        return f"Optimised({self.study.name!r}, {len(self.trials)} trials, {len(self.pareto)} best, path={self.study.path!r})"


Told = Callable[[int, int, int], None]
"""Called after each batch with (trials that ended, trials in all, trials given up early)."""


def optimise(
    scenario: Where,
    axes: Mapping[str, Any] | None = None,
    *,
    objectives: Mapping[str, Direction] | None = None,
    constraints: Sequence[str] | None = None,
    trials: int | None = None,
    replications: int | None = None,
    seed: int | None = None,
    sampler: Sampler | None = None,
    batch: int | None = None,
    prune_at: float | None = None,
    out: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, object] | None = None,
    name: str | None = None,
    jobs: int = 0,
    engine: Engine = "local",
    address: str | None = None,
    keep_old: bool = False,
    memory_bytes: float | None = None,
    check: bool = False,
    allow_import: bool = False,
    progress: Told = lambda *_: None,
    command: Sequence[str] = (),
) -> Optimised:
    """Search for the best trade-offs between figures of a scenario's runs.

    The same call goes on where an interrupted one stopped, and finds what an uninterrupted one would have found; so does one with
    more trials.

    Parameters
    ----------
    scenario : path, mapping, Scenario or LoadedScenario
        A scenario; or a search's file, or what would stand in one.
    axes : mapping, optional
        What may vary: paths, each with a list to choose from, ``{"range": [low, high]}`` or ``{"log-range": [low, high]}``.
    objectives : mapping, optional
        Figures of the summary, each ``minimise`` or ``maximise``; default: cost, energy, p99 of the time to first token, goodput.
    constraints : sequence of str, optional
        What must hold, such as ``slo_attainment_ratio >= 0.99``; default: the scenario's SLO.
    trials : int, optional
        Combinations that are tried, earlier ones of the same study included.
    replications : int, optional
        Runs of each; objectives are their means.
    seed : int, optional
        Of the search.
    sampler : ``tpe``, ``nsga2`` or ``random``, optional
        Who proposes.
    batch : int, optional
        Trials proposed before the first of them is known.
    prune_at : float, optional
        Share of the requests after which an overloaded trial is given up; 0: never.
    out : path, optional
        Folder of the study; default ``fleetsim-out/<name>``.
    overrides : mapping, optional
        Values laid over the scenario in all trials.
    name : str, optional
        Of the study.
    jobs, engine, address, memory_bytes, check, allow_import
        As for `fleetsim.sweep`.
    keep_old : bool
        Go on with a study of another version of fleetsim.
    progress : callable, optional
        Told after each batch.
    command : sequence of str
        What `study.json` says it was made by.

    Returns
    -------
    Optimised

    Raises
    ------
    InputError
        If the search cannot be read, an axis has no value that is valid, or the folder holds another search.
    """
    given = {
        "axes": axes,
        "objectives": objectives,
        "constraints": constraints,
        "trials": trials,
        "replications": replications,
        "seed": seed,
        "sampler": sampler,
        "batch": batch,
        "prune_at": prune_at,
        "set": overrides,
        "name": name,
    }
    options = Options(
        jobs=jobs,
        engine=engine,
        address=address,
        keep_old=keep_old,
        memory_bytes=memory_bytes,
        check=check,
        allow_import=allow_import,
    )
    search = _stated(scenario, {key: value for key, value in given.items() if value is not None})
    with allowing_imports(allow_import):
        _check_axes(search)
        store = store_of(out if out is not None else default_out(search.asked.name))
        if not isinstance(store, LocalStore):
            raise InputError(Finding("a search keeps its memory in SQLite: it needs a folder", file=str(store)))
        return _Searching(search, options, store, list(command)).carry_out(progress)


def _stated(scenario: Where, given: Mapping[str, Any]) -> Search:
    file = study_file(scenario) if isinstance(scenario, str | os.PathLike) else None
    if file is not None:
        return read_search(file, given)
    if isinstance(scenario, Mapping) and "axes" in scenario and "scenario" in scenario:
        return search_of({**scenario, **given})
    if "axes" not in given:
        hint = "name what may vary, e.g. --axis 'pools[0].replicas={range: [2, 8]}'; or give a search's file (docs/sweeps.md)"
        raise InputError(Finding("a search needs axes", hint=hint))
    base = base_of(scenario, dict(given.get("set", {})))
    return search_of({"name": name_of(base, "search"), "scenario": {}, **given}, base=base)


def _check_axes(search: Search) -> None:
    """Refuse an axis none of whose values makes a valid scenario, the others at their first."""
    values = {path: _ends(axis) for path, axis in search.axes.items()}
    first = {path: own[0] for path, own in values.items()}
    for path, own in values.items():
        findings: list[Finding] = []
        for value in own:
            try:
                require_valid(search.base.loaded({**first, path: value}))
                findings = []
                break
            except ScenarioError as error:
                findings = findings or [f for f in error.findings if f.severity == "error"]
        if findings:
            raise ScenarioError(findings)


def _ends(axis: Choices | Span) -> list[Located]:
    return list(axis.values) if isinstance(axis, Choices) else [axis.at(0.0), axis.at(1.0)]


def shortened(loaded: LoadedScenario, share: float) -> LoadedScenario | None:
    """The first part of a run: so many of its requests; None where that is not known, or too few to tell anything."""
    count = math.ceil(share * expected_requests(loaded))
    workload = loaded.scenario.workload
    if count < LEAST_PROBE or share <= 0 or isinstance(workload, TreeSearchWorkload):
        return None
    shorter: Any
    if isinstance(workload, MixWorkload):
        shorter = workload.model_copy(
            update={"parts": {n: _shorter(p, share, loaded) for n, p in workload.parts.items()}}
        )
    else:
        shorter = _shorter(workload, share, loaded)
    scenario = loaded.scenario.model_copy(update={"workload": shorter})
    return replace(loaded, scenario=scenario)


def _shorter(part: TraceWorkload | SyntheticWorkload, share: float, loaded: LoadedScenario) -> Any:
    if isinstance(part, TraceWorkload):
        alone = replace(loaded, scenario=loaded.scenario.model_copy(update={"workload": part}))
        return part.model_copy(update={"limit": max(1, math.ceil(share * expected_requests(alone)))})
    changes: dict[str, Any] = {}
    if part.requests is not None:
        changes["requests"] = max(1, math.ceil(share * part.requests))
    if part.duration is not None:
        changes["duration"] = share * part.duration
    return part.model_copy(update=changes)


# --- the search ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Candidate:
    """A trial on its way."""

    trial: Any
    combination: Combination
    loaded: LoadedScenario | None = None
    runs: list[PlannedRun] = field(default_factory=list)
    given_up: str = ""
    """Why it is not run, or not to its end."""
    failed: str = ""


class _Searching:
    """A search under way."""

    def __init__(self, search: Search, options: Options, store: LocalStore, command: list[str]) -> None:
        self.search, self.options, self.store, self.command = search, options, store, command
        self.probes = LocalStore(store.folder / PROBES)
        self.constraints: Sequence[Constraint] = search.constraints
        self.replications = Replications(count=search.asked.replications)
        self._loaded: dict[int, tuple[Combination, LoadedScenario]] = {}

    def carry_out(self, progress: Told) -> Optimised:
        """Ask, run, tell, until there are as many trials as are wanted."""
        self.store.prepare()
        refuse_other(self.store, {"name": self.search.asked.name})
        self._write_study([], {})
        study = self._open()
        asked, interrupted = self.search.asked, False
        try:
            with crew(self.options) as carried_out:
                while (batch := self._batch(study)) and not interrupted:
                    self._one_batch(study, batch, carried_out)
                    self._write(study)
                    ended = _ended(study)
                    progress(len(ended), asked.trials, sum(trial.state.name == "PRUNED" for trial in ended))
        except KeyboardInterrupt:
            interrupted = True
        finally:
            for store in (self.store, self.probes):
                remove_leftovers(store.folder)
        rows = self._write(study)
        best = [row for row in rows if row["pareto"]]
        words = [str(constraint) for constraint in self.constraints]
        return Optimised(collect(self.store), rows, best, asked.objectives, words, interrupted)

    # --- Optuna's side

    def _open(self) -> Any:
        """Optuna's study, new or as it was left."""
        optuna = _optuna()
        asked = self.search.asked
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{self.store.folder / STORAGE}", engine_kwargs={"connect_args": {"timeout": 60}}
        )
        directions = ["minimize" if d == "minimise" else "maximize" for d in asked.objectives.values()]
        try:
            study = optuna.create_study(
                storage=storage,
                study_name=asked.name,
                directions=directions,
                load_if_exists=True,
                sampler=self._sampler(0),
            )
        except ValueError as error:  # other directions, or how many
            raise self._another("objectives") from error
        for key, value in self._identity().items():
            before = study.user_attrs.get(key)
            if before is None:
                study.set_user_attr(key, value)
            elif before != value and not (key == "code" and self.options.keep_old):
                raise self._another(key)
        return study

    def _identity(self) -> dict[str, str]:
        """What must be the same for trials to belong together."""
        asked = self.search.asked
        whole = asked.model_dump(mode="json", exclude={"trials", "description", "axes", "scenario", "overrides"})
        parts = {
            "axes": self.search.plain,
            "scenario": self.search.base.plain(),
            "objectives": asked.objectives,
            "settings": {key: value for key, value in whole.items() if key != "objectives"},
        }
        return {key: _digest(value) for key, value in parts.items()} | {"code": code_digest()[:16]}

    def _another(self, what: str) -> InputError:
        words = {
            "code": "version of fleetsim",
            "settings": "constraints, replications, seed, sampler, batch or prune_at",
        }
        hint = "choose another --out" + (", or --keep-old to go on" if what == "code" else "")
        return InputError(
            Finding(f"holds a search with another {words.get(what, what)}", file=str(self.store), hint=hint)
        )

    def _sampler(self, number: int) -> Any:
        """Who proposes trial `number`: seeded by the number, so that a search that was interrupted proposes the same."""
        samplers = _optuna().samplers
        seed = self.search.asked.seed + number
        if self.search.asked.sampler == "random":
            return samplers.RandomSampler(seed=seed)
        if self.search.asked.sampler == "nsga2":
            return samplers.NSGAIISampler(population_size=POPULATION, seed=seed)
        return samplers.TPESampler(seed=seed)

    def _batch(self, study: Any) -> list[int]:
        """Numbers of the trials that come next: a batch begun is ended first."""
        ended = {trial.number for trial in _ended(study)}
        size, most = self.search.asked.batch, self.search.asked.trials
        first = next((number for number in range(most) if number not in ended), most)
        start = first // size * size
        return [number for number in range(start, min(start + size, most)) if number not in ended]

    def _ask(self, study: Any, number: int) -> _Candidate:
        """Trial `number`, as Optuna proposes it or has proposed it."""
        study.sampler = self._sampler(number)
        begun = {trial.number: trial for trial in study.get_trials(deepcopy=False)}.get(number)
        trial = study.ask() if begun is None else _optuna().trial.Trial(study, begun._trial_id)
        combination = {path: self._value(trial, path, axis) for path, axis in self.search.axes.items()}
        return _Candidate(trial, combination)

    def _value(self, trial: Any, path: str, axis: Choices | Span) -> Located:
        if isinstance(axis, Choices):
            names = _names(axis, path)
            return axis.values[names.index(trial.suggest_categorical(path, names))]
        suggest = trial.suggest_int if axis.whole else trial.suggest_float
        low, high = (int(axis.low), int(axis.high)) if axis.whole else (axis.low, axis.high)
        return axis.located(suggest(path, low, high, log=axis.log))

    # --- our side

    def _one_batch(self, study: Any, numbers: Sequence[int], carried_out: CarryOut) -> None:
        candidates = [self._ask(study, number) for number in numbers]
        for candidate in candidates:
            self._load(candidate)
        self._probe(candidates, carried_out)
        alive = [one for one in candidates if not (one.given_up or one.failed)]
        self._run([run for one in alive for run in one.runs], self.store, carried_out)
        for candidate in candidates:
            self._tell(study, candidate)

    def _load(self, candidate: _Candidate) -> None:
        try:
            candidate.loaded = self.search.base.loaded(candidate.combination)
            require_valid(candidate.loaded)
            if self.options.processes > 1:
                require_portable(candidate.loaded, self.options.engine)
        except ScenarioError as error:
            finding = next(f for f in error.findings if f.severity == "error")
            candidate.given_up = f"not valid: {finding.path}: {finding.message}"
            return
        cells, _ = cells_of([candidate.combination], [candidate.loaded])
        candidate.runs = runs_of(candidate.loaded, self.replications, cells[0])

    def _probe(self, candidates: Sequence[_Candidate], carried_out: CarryOut) -> None:
        """Give up those that are overloaded by the first part of their requests."""
        probes: dict[str, _Candidate] = {}
        runs = []
        for candidate in candidates:
            first = candidate.runs[0].loaded if candidate.runs else None
            short = None if first is None else shortened(first, self.search.asked.prune_at)
            if short is not None:
                run = runs_of(short, Replications(), {})[0]
                probes[run.id] = candidate
                runs.append(run)
        self._run(runs, self.probes, carried_out)
        for run in runs:
            candidate = probes[run.id]
            manifest, error = _outcome(self.probes, run.id)
            if error:
                candidate.failed = error
            elif manifest is not None and manifest["verdict"] == OVERLOADED:
                share = self.search.asked.prune_at
                candidate.given_up = (
                    f"{OVERLOADED} by the first {share:.0%} of its requests: {manifest['verdict_reason']}"
                )

    def _run(self, runs: Sequence[PlannedRun], store: Store, carried_out: CarryOut) -> None:
        """Do those that are not finished."""
        left = []
        for run in {run.id: run for run in runs}.values():
            made = made_with(run.loaded)
            manifest = manifest_of(store, run.id)
            failed = read_json(store, failure_name(run.id)) is not None
            if manifest is None or failed or differences(manifest.get("made_with"), made):
                left.append(Assignment(run.id, run.loaded, store, made, self.options.check))
        for _ in carried_out(left):
            pass

    def _tell(self, study: Any, candidate: _Candidate) -> None:
        states = _optuna().trial.TrialState
        trial = candidate.trial
        summaries: list[Mapping[str, Any]] = []
        for run in candidate.runs if not (candidate.given_up or candidate.failed) else ():
            manifest, error = _outcome(self.store, run.id)
            candidate.failed = candidate.failed or error
            summaries += [] if manifest is None else [manifest["summary"]]
        figures = self._figures(summaries) if summaries and not candidate.failed else {}
        wanted = [*self.search.asked.objectives, *(constraint.figure for constraint in self.constraints)]
        missing = [figure for figure in wanted if figures.get(figure) is None]
        if summaries and missing and not candidate.failed:
            candidate.failed = f"no value of {', '.join(missing)}"
        trial.set_user_attr("reason", candidate.given_up or candidate.failed)
        trial.set_user_attr("figures", figures)
        trial.set_user_attr("verdict", _words(summaries))
        trial.set_user_attr("runs", [run.id for run in candidate.runs] if figures else [])
        if candidate.failed or candidate.given_up:
            study.tell(trial, state=states.FAIL if candidate.failed else states.PRUNED)
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # set before by a process that was killed then
            for constraint in self.constraints:
                trial.set_constraint(str(constraint), constraint.violation(figures[constraint.figure]))
        study.tell(trial, [figures[figure] for figure in self.search.asked.objectives])

    def _figures(self, summaries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Means over the replications."""
        wanted = dict.fromkeys([*self.search.asked.objectives, *(c.figure for c in self.constraints)])
        for figure in wanted:
            if figure not in summaries[0]:
                hint = nearest(figure, summaries[0], "figures")
                raise InputError(Finding(f'the summary of a run has no figure "{figure}"', "objectives", hint=hint))
        found = {}
        for figure in self._shown():
            values = [summary.get(figure) for summary in summaries]
            if all(isinstance(value, int | float) for value in values):
                found[figure] = math.fsum(map(float, values)) / len(values)  # type: ignore[arg-type]
        return found

    # --- what is written

    def _write(self, study: Any) -> list[dict[str, Any]]:
        """Tables of trials and of the best of them, and the study's own files; rows of the trials."""
        trials = _ended(study)
        done = [(trial, *self._made(trial)) for trial in trials]
        known = [(trial, combination, loaded) for trial, combination, loaded in done if loaded is not None]
        cells, units = cells_of([c for _, c, _ in known], [loaded for _, _, loaded in known])
        by_number = {trial.number: cell for (trial, _, _), cell in zip(known, cells, strict=True)}
        best = _firsts(_best(study))
        rows = [self._row(trial, combination, by_number.get(trial.number), best) for trial, combination, _ in done]
        if rows:
            _write_table(self.store, TRIALS, rows, units)
            _write_table(self.store, PARETO, [row for row in rows if row["pareto"]] or rows[:0], units, rows)
        runs: dict[str, PlannedRun] = {}
        for (trial, _, loaded), cell in zip(known, cells, strict=True):
            if trial.user_attrs.get("runs"):
                runs |= {run.id: run for run in runs_of(loaded, self.replications, cell)}
        self._write_study(list(runs.values()), units)
        collect(self.store)
        return rows

    def _made(self, trial: Any) -> tuple[Combination, LoadedScenario | None]:
        """A trial's combination, and its scenario if it is one."""
        if trial.number not in self._loaded:
            combination = {path: _stored(trial, path, axis) for path, axis in self.search.axes.items()}
            try:
                self._loaded[trial.number] = (combination, self.search.base.loaded(combination))
            except ScenarioError:
                return combination, None
        return self._loaded[trial.number]

    def _row(
        self, trial: Any, combination: Combination, cells: Mapping[str, Any] | None, best: set[int]
    ) -> dict[str, Any]:
        figures = trial.user_attrs.get("figures", {})
        shown = cells or {path: value_text(value.plain()) for path, value in combination.items()}
        violation = max([0.0, *(c.violation(figures[c.figure]) for c in self.constraints)]) if figures else None
        state = {"COMPLETE": "finished", "PRUNED": "pruned"}.get(trial.state.name, "failed")
        return {
            "trial": trial.number,
            "state": state,
            "pareto": trial.number in best,
            "feasible": None if violation is None else violation <= 0.0,
            "violation": violation,
            "reason": trial.user_attrs.get("reason") or None,
            **{f"axis.{path}": value for path, value in shown.items()},
            "verdict": trial.user_attrs.get("verdict") or None,
            **{figure: figures.get(figure) for figure in self._shown()},
            "runs": " ".join(trial.user_attrs.get("runs", [])) or None,
        }

    def _shown(self) -> list[str]:
        """Figures in the table of trials."""
        bounded = (constraint.figure for constraint in self.constraints)
        return list(dict.fromkeys([*self.search.asked.objectives, *bounded, *REPORTED]))

    def _write_study(self, runs: Sequence[PlannedRun], units: Mapping[str, str]) -> None:
        asked = self.search.asked
        content = study_json(asked.name, self.search.base, dict(self.search.plain), units, runs, self.command)
        wanted = {"objectives": dict(asked.objectives), "constraints": [str(c) for c in self.constraints]}
        settings = asked.model_dump(
            mode="json", include={"trials", "replications", "seed", "sampler", "batch", "prune_at"}
        )
        if runs or read_json(self.store, STUDY) is None:
            write_json(self.store, STUDY, content | {"search": wanted | settings})


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise InputError(Finding("Optuna is not installed", hint="pip install 'fleetsim[optimise]'")) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _ended(study: Any) -> list[Any]:
    """Trials that were told of, by number."""
    return sorted((t for t in study.get_trials(deepcopy=False) if t.state.is_finished()), key=lambda t: t.number)


def _best(study: Any) -> Sequence[Any]:
    """Trials that no other beats in everything, among those that keep the constraints."""
    best: Sequence[Any] = study.best_trials
    return best


def _firsts(trials: Sequence[Any]) -> set[int]:
    """Numbers of trials, of those that tried the same the first."""
    tried: dict[str, int] = {}
    for trial in sorted(trials, key=lambda t: t.number):
        tried.setdefault(json.dumps(trial.params, sort_keys=True), trial.number)
    return set(tried.values())


def _names(axis: Choices, path: str) -> list[str]:
    """What Optuna calls the choices."""
    names = [value_text(value.plain()) for value in axis.values]
    if len(set(names)) < len(names):
        raise ScenarioError(Finding("a value is given twice", f"axes.{path}", axis.values[0].file, axis.values[0].line))
    return names


def _stored(trial: Any, path: str, axis: Choices | Span) -> Located:
    value = trial.params[path]
    return axis.values[_names(axis, path).index(value)] if isinstance(axis, Choices) else axis.located(value)


def _outcome(store: Store, run: str) -> tuple[dict[str, Any] | None, str]:
    """Manifest of a run, or why it failed."""
    failure = read_json(store, failure_name(run))
    if failure is not None:
        return None, str(failure.get("error") or "failed")
    manifest = manifest_of(store, run)
    return manifest, "" if manifest is not None else "it did not end"


def _words(summaries: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(dict.fromkeys(str(summary["verdict"]) for summary in summaries))


def _write_table(
    store: Store,
    name: str,
    rows: Sequence[Mapping[str, Any]],
    units: Mapping[str, str],
    like: Sequence[Mapping[str, Any]] = (),
) -> None:
    """A table; with the types of another where it has no rows to tell them."""
    table = summary_table(rows or like, units)
    buffer = pa.BufferOutputStream()
    pq.write_table(table if rows else table.slice(0, 0), buffer, compression="zstd")
    store.write(name, buffer.getvalue().to_pybytes())
