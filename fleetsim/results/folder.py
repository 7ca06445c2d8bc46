"""Result and study folders, read: which runs there are, what tells them apart, and their tables as streams."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fleetsim.errors import Finding, InputError, nearest
from fleetsim.output.parquet import MANIFEST, STUDY
from fleetsim.output.tables import TABLES, with_meanings
from fleetsim.results.labels import labelled
from fleetsim.results.versions import current_batch, current_figures, current_manifest, current_schema

PARTITION = "run="
"""Begin of the name of a run's folder within a study."""
AXIS = "axis."
"""Begin of the name of a column that holds an axis of a study."""
SMALL = ("summary", "groups")
"""Tables of a run whose columns are not fixed."""
BATCH_ROWS = 1 << 16

Axes = Mapping[str, Any]
"""Value by path into the scenario."""


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run."""

    id: str
    """Begin of the digest of its scenario, which covers the seed; unique among the runs that were opened together."""
    name: str
    """Name of the scenario."""
    path: Path
    manifest: Mapping[str, Any] = field(repr=False)
    axes: Axes = field(default_factory=dict)
    """What the study varied, by path into the scenario; empty outside studies."""
    label: str = ""
    """What tells it from the others, in a few words; unique among the runs that were opened together."""
    replication: int = 0
    """Which of the runs that differ only in their seeds, from 0."""
    seed: int | None = None
    """None if it was measured, not simulated."""
    study: str = ""
    """Name of its study; empty outside studies."""

    @property
    def figures(self) -> Mapping[str, Any]:
        """Its row of the table ``summary``."""
        return dict(self.manifest.get("summary") or {})

    @property
    def is_measured(self) -> bool:
        """Whether it was imported from another tool."""
        return self.manifest.get("kind") == "measured"


class Results:
    """Runs that were opened together. Made by `open_results`."""

    def __init__(self, runs: Sequence[Run], missing: Sequence[Mapping[str, Any]] = ()) -> None:
        self.runs: Sequence[Run] = tuple(runs)
        self.missing: Sequence[Mapping[str, Any]] = tuple(missing)
        """Rows of studies' summaries whose run failed, was interrupted or is not there."""

    def __repr__(self) -> str:
        """One line."""
        return f"Results({len(self.runs)} runs: {', '.join(run.label for run in self.runs[:4])}{', …' * (len(self.runs) > 4)})"

    def run(self, run: Run | str) -> Run:
        """A run by its id or its label.

        Raises
        ------
        InputError
            If there is none.
        """
        if isinstance(run, Run):
            return run
        for candidate in self.runs:
            if run in (candidate.id, candidate.label):
                return candidate
        raise InputError(f'no run "{run}". {nearest(run, [known.label for known in self.runs], "runs")}')

    def summary(self) -> pa.Table:
        """One row per run: ``run``, ``label``, ``replication``, ``axis.<path>`` for every axis, then the figures."""
        told = ("run", "label", "replication")
        names = dict.fromkeys((*told, *(name for run in self.runs for name in run.figures)))
        rows = [{**run.figures, "run": run.id, "label": run.label, "replication": run.replication} for run in self.runs]
        whole = pa.table({name: _figures([row.get(name) for row in rows]) for name in names})
        whole = with_meanings("summary", whole).replace_schema_metadata(None)
        for place, (path, values) in enumerate(self.axes().items()):
            whole = whole.add_column(3 + place, f"{AXIS}{path}", values)
        return whole

    def axes(self) -> dict[str, pa.Array]:
        """What studies varied: by path, the value in each run, null where a run has no such axis."""
        paths = dict.fromkeys(path for run in self.runs for path in run.axes)
        return {path: _axis([run.axes.get(path) for run in self.runs]) for path in paths}

    def scan(
        self, table: str, columns: Sequence[str] | None = None, run: Run | str | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Rows of a table in batches, so that a table of any length takes little memory; an empty table is one empty batch.

        Parameters
        ----------
        table : str
            ``requests``, ``replicas``, ``fleet``, ``events`` or ``gaps``.
        columns : sequence of str, optional
            Those that are read; all of them if left out.
        run : Run or str, optional
            Of this run only. Without it the batches of all runs come one after the other, and their first column ``run`` tells
            whose they are.

        Raises
        ------
        InputError
            If there is no such table, column or run, or a file cannot be read.
        """
        names = _columns(table, columns)
        if run is not None:
            yield from _batches(self.run(run), table, names)
            return
        for each in self.runs:
            for batch in _batches(each, table, names):
                yield _beside(each.id, batch)

    def table(self, name: str, run: Run | str | None = None) -> pa.Table:
        """A small table as a whole: summary, groups, fleet, replicas, gaps or events; use `scan` for requests.

        Without a run, those of all runs, told apart by their first column ``run``.
        """
        if name not in SMALL:
            return pa.Table.from_batches(self.scan(name, None, run)).unify_dictionaries()
        if run is not None:
            return _read(self.run(run), name)
        parts = []
        for each in self.runs:
            part = _read(each, name)
            if "run" in part.column_names:
                part = part.drop_columns("run")
            parts.append(part.add_column(0, "run", pa.array([each.id] * len(part), pa.string())))
        return pa.concat_tables(parts, promote_options="permissive")


def open_results(*paths: str | os.PathLike[str]) -> Results:
    """Open what `fleetsim run` and `fleetsim sweep` wrote.

    Parameters
    ----------
    *paths : path
        Each a result folder, a study folder, or a folder that holds several of them.

    Raises
    ------
    InputError
        If one of them is none of these, or was written by a later version than this one.
    """
    if not paths:
        raise InputError("name a folder that fleetsim run or fleetsim sweep wrote")
    runs: dict[Path, Run] = {}
    missing: list[Mapping[str, Any]] = []
    for address in [os.fspath(path) for path in paths]:
        if "://" in address:
            raise InputError(
                Finding("is an address: results are read from folders", file=address, hint="copy it to this machine")
            )
        path = Path(address)
        for folder in _folders(path):
            found, absent = _open_study(folder) if _is_study(folder) else ([_open_run(folder)], [])
            for run in found:
                runs.setdefault(run.path.resolve(), run)
            missing += absent
    return Results(labelled(_with_unique_ids(list(runs.values()))), missing)


def _folders(path: Path) -> list[Path]:
    """Result and study folders at a path: itself, or those directly within."""
    if not path.exists():
        raise InputError(Finding("there is nothing", file=str(path), hint=_there(path.parent)))
    if not path.is_dir():
        hint = f"name its folder: {path.parent}" if path.suffix in (".parquet", ".json") else ""
        raise InputError(Finding("is a file, not a result folder", file=str(path), hint=hint))
    if _is_result(path):
        return [path]
    within = [
        child for child in sorted(path.iterdir()) if child.is_dir() and child.name[0] != "." and _is_result(child)
    ]
    if within:
        return within
    names = sorted(child.name for child in path.iterdir())
    found = f"it holds {', '.join(names[:6])}{', …' * (len(names) > 6)}" if names else "it is empty"
    hint = "fleetsim run and fleetsim sweep write result folders, with a file manifest.json"
    raise InputError(Finding(f"holds no results: {found}", file=str(path), hint=hint))


def _there(folder: Path) -> str:
    """Which results lie beside the one that was asked for."""
    if not folder.is_dir():
        return ""
    names = [child.name for child in sorted(folder.iterdir()) if child.is_dir() and _is_result(child)]
    return f"results there: {', '.join(names[:6])}{', …' * (len(names) > 6)}" if names else ""


def _is_result(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() or _is_study(folder)


def _is_study(folder: Path) -> bool:
    return (folder / STUDY).is_file()


def _json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(Finding(f"cannot be read: {error.strerror}", file=str(path))) from error
    except ValueError as error:
        line = getattr(error, "lineno", None)
        raise InputError(Finding(f"is not JSON: {error}", file=str(path), line=line)) from error
    if not isinstance(content, dict):
        raise InputError(Finding("is not a JSON object", file=str(path)))
    return content


def _open_run(folder: Path) -> Run:
    manifest = current_manifest(_json(folder / MANIFEST), folder / MANIFEST)
    scenario = manifest.get("scenario") or {}
    name = str(scenario.get("name") or manifest.get("name") or folder.name)
    seed = manifest.get("seed")
    return Run(
        id=str(manifest.get("scenario_digest") or folder.name)[:12],
        name=name,
        path=folder,
        manifest=manifest,
        seed=seed if isinstance(seed, int) else None,
    )


def _open_study(folder: Path) -> tuple[list[Run], list[Mapping[str, Any]]]:
    """Finished runs of a study in the order of its plan, and the rows of the others."""
    study = _json(folder / STUDY)
    current_manifest(study, folder / STUDY)
    name = str(study.get("name") or folder.name)
    there = {
        child.name.removeprefix(PARTITION): child
        for child in sorted(folder.glob(f"{PARTITION}*"))
        if (child / MANIFEST).is_file()
    }
    runs: list[Run] = []
    missing: list[Mapping[str, Any]] = []
    for row in _plan(folder, study):
        child = there.pop(str(row["run"]), None)
        if child is None:
            missing.append(row)
            continue
        axes = {key.removeprefix(AXIS): value for key, value in row.items() if key.startswith(AXIS)}
        run = replace(_open_run(child), axes=axes, replication=int(row.get("replication") or 0), study=name)
        runs.append(run)
    if "runs" not in study:  # what an earlier plan left is no part of the study, unless there is no plan to tell
        runs += [replace(_open_run(child), study=name) for child in there.values()]
    return runs, missing


def _plan(folder: Path, study: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the planned runs: what they have on the axes, and how they ended; a killed study may lack the summary that tells."""
    ended: dict[str, dict[str, Any]] = {}
    path = folder / "summary.parquet"
    if path.is_file():
        with _parquet(path) as file:
            names = [name for name in ("run", "status", "error") if name in file.schema_arrow.names]
            ended = {str(row["run"]): row for row in file.read(names).to_pylist()}
    rows = []
    for planned in study.get("runs") or ():
        axes = {f"{AXIS}{path}": value for path, value in (planned.get("axes") or {}).items()}
        told = ended.get(str(planned["run"]), {"status": "interrupted", "error": None})
        rows.append({**told, **{key: value for key, value in planned.items() if key != "axes"}, **axes})
    return rows


def _with_unique_ids(runs: list[Run]) -> list[Run]:
    """Runs of one scenario that lie in several folders get a number behind their id."""
    seen: dict[str, int] = {}
    unique = []
    for run in runs:
        seen[run.id] = seen.get(run.id, 0) + 1
        unique.append(run if seen[run.id] == 1 else replace(run, id=f"{run.id}-{seen[run.id]}"))
    return unique


def _columns(table: str, columns: Sequence[str] | None) -> list[str]:
    if table not in TABLES:
        raise InputError(f'no table "{table}" to scan. {nearest(table, TABLES, "tables")}')
    known = current_schema(table).names
    for name in columns or ():
        if name not in known:
            raise InputError(f'no column "{name}" in {table}. {nearest(name, known, "columns")}')
    return known if columns is None else list(columns)


def _parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, memory_map=True)
    except FileNotFoundError as error:
        raise InputError(Finding("is missing", file=str(path), hint="run the scenario again")) from error
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(Finding(f"is not a Parquet file that can be read: {error}", file=str(path))) from error


def _read(run: Run, name: str) -> pa.Table:
    with _parquet(run.path / f"{name}.parquet") as file:
        return current_figures(name, file.read(), str(run.manifest["schema_version"]))


def _batches(run: Run, table: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    with _parquet(run.path / f"{table}.parquet") as file:
        there = [name for name in columns if name in file.schema_arrow.names]
        if not file.metadata.num_rows:
            kinds = current_schema(table)
            yield pa.RecordBatch.from_pydict(
                {name: [] for name in columns}, pa.schema([kinds.field(n) for n in columns])
            )
        for batch in file.iter_batches(BATCH_ROWS, columns=there):
            yield current_batch(table, batch, columns)


def _beside(run: str, batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with a first column that names its run."""
    codes = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), len(batch)), pa.array([run]))
    return batch.add_column(0, "run", codes)


def _figures(values: Sequence[Any]) -> pa.Array:
    """A column of figures; of floats where there is nothing."""
    return pa.array(values, pa.float64() if all(value is None for value in values) else None)


def _axis(values: Sequence[Any]) -> pa.Array:
    """Values of an axis: numbers where all are, else text."""
    present = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in present):
        return pa.array(values, pa.bool_())
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in present):
        whole = all(isinstance(value, int) for value in present)
        return pa.array(values, pa.int64() if whole else pa.float64())
    return pa.array([None if value is None else str(value) for value in values], pa.string())
