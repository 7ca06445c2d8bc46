"""``fleetsim sweep``."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from fleetsim.cli.console import import_option, json_option, print_json, print_table, set_option
from fleetsim.units import show

if TYPE_CHECKING:
    from fleetsim.sweeping.study import Prepared, Progress, Study, Timing

FAILED, INTERRUPTED = 1, 130
MOST_ROWS = 60
"""Combinations that are shown; all of them are in the summary."""


def _shard(context: click.Context, parameter: click.Parameter, text: str) -> tuple[int, int]:  # noqa: ARG001
    index, slash, shards = text.partition("/")
    if not slash or not index.isdigit() or not shards.isdigit():
        raise click.BadParameter(f"{text}: expected I/N such as 1/4")
    return int(index), int(shards)


def _memory(context: click.Context, parameter: click.Parameter, text: str | None) -> float | None:  # noqa: ARG001
    from fleetsim.units import parse

    try:
        return None if text is None else parse(text, "bytes")
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


memory_option = click.option(
    "--memory", callback=_memory, metavar="BYTES", help="What all processes may use, e.g. 16GB [what is free]."
)


@click.command(
    epilog="Example: fleetsim sweep embedded:quickstart --set workload.requests=1000 "
    "--axis gateway.router=round-robin,least-outstanding --axis workload.arrivals.rate=40,60,80req/s --replications 3"
)
@click.argument("scenario", required=False)
@click.option(
    "--axis",
    "axes",
    multiple=True,
    metavar="PATH=A,B,…",
    help="Values of a path, or {range: [low, high], points: n}, {log-range: …}; repeatable.",
)
@click.option("--replications", "-r", type=click.IntRange(1, 100_000), help="Runs of each combination [1].")
@click.option(
    "--seeds",
    type=click.Choice(["common", "own"]),
    help="Whether combinations share their seeds, so that differences are not luck [common].",
)
@set_option
@click.option("--out", "-o", help="Folder of the study, or an address such as s3://bucket/study [fleetsim-out/NAME].")
@click.option("--name", help="Name of the study [the scenario's, and -sweep].")
@click.option("-j", "--jobs", type=click.IntRange(0, 1024), default=0, help="Processes [one per core].")
@click.option("--shard", default="1/1", callback=_shard, metavar="I/N", help="Only every N-th run, from the I-th.")
@click.option("--resume/--fresh", default=True, show_default=True, help="Skip what is finished, or do all of it again.")
@click.option("--keep-old", is_flag=True, help="Keep finished runs that other code or other trace files made.")
@memory_option
@click.option(
    "--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True, help="Where runs go."
)
@click.option("--address", help="Of a Ray cluster, with --engine ray [one is started here].")
@click.option("--dry-run", is_flag=True, help="Check everything and list the runs.")
@click.option(
    "--collect", is_flag=True, help="Run nothing: write the summary of the study in --out from what is there."
)
@click.option("--check", is_flag=True, help="Verify the laws of the simulation in every run.")
@import_option
@json_option
@click.option("--quiet", "-q", is_flag=True, help="No progress and no warnings.")
def command(scenario: str | None, axes: tuple[str, ...], overrides: tuple[str, ...], **given: Any) -> int:
    """Run SCENARIO with every combination of values on some axes; or do what a sweep's file says.

    A file with `scenario` and `axes` is a sweep (docs/sweeps.md); any other scenario needs --axis. All combinations are checked
    before the first run. Finished runs are skipped when the command is given again, so that an interrupted study goes on.
    Exit codes: 0 done, 1 some runs failed (each is a row with its error), 2 bad input, 130 interrupted.
    """
    from fleetsim.sweeping.axes import axis_of
    from fleetsim.sweeping.crew import Options
    from fleetsim.sweeping.store import store_of
    from fleetsim.sweeping.study import Study, carry_out, default_out, prepare, stated

    quiet, as_json = given["quiet"], given["as_json"]
    if given["collect"]:
        return _tell(Study.open(_needed(given["out"] or scenario)), as_json, None)
    options = Options(
        jobs=given["jobs"],
        engine=given["engine"],
        address=given["address"],
        shard=given["shard"],
        fresh=not given["resume"],
        keep_old=given["keep_old"],
        memory_bytes=given["memory"],
        check=given["check"],
        allow_import=given["allow_import"],
    )
    asked = stated(
        scenario if scenario is not None else "embedded:quickstart",
        _axes(axis_of(text) for text in axes),
        overrides=dict(override_of(text) for text in overrides),
        replications=given["replications"],
        seeds=given["seeds"],
        name=given["name"],
    )
    ready = prepare(asked, options, lambda text: None if quiet else click.echo(text, err=True))
    store = store_of(given["out"] or default_out(asked.name))
    if given["dry_run"]:
        return _list_runs(ready, store, as_json)
    started = time.perf_counter()
    with watching(not quiet) as progress:
        study = carry_out(ready, store, progress, ["fleetsim", *(shlex.quote(word) for word in sys.argv[1:])])
    for warning in () if quiet else study.warnings:
        click.echo(f"warning: {warning}", err=True)
    return _tell(study, as_json, time.perf_counter() - started, quiet)


def _needed(out: str | None) -> str:
    if out is None:
        raise click.UsageError("--collect: name the study's folder with --out")
    return out


def _axes(axes: Iterator[tuple[str, Any]]) -> Any:
    from fleetsim.scenario.source import Located

    listed = dict(axes)
    return Located(listed, "--axis") if listed else None


def override_of(text: str) -> tuple[str, str]:
    """Path and value of ``--set PATH=VALUE``."""
    from fleetsim.errors import Finding, InputError

    path, equals, value = text.partition("=")
    if not equals:
        raise InputError(Finding("expected path=value, such as pools[0].replicas=3", file=f"--set {text}"[:120]))
    return path.strip(), value


# --- progress ---------------------------------------------------------------------------------------------------------


@contextmanager
def watching(enabled: bool) -> Iterator[Callable[[Progress], None]]:
    """A bar on stderr where that is a terminal; otherwise a line now and then."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not enabled:
        yield lambda _: None
    elif not console.is_terminal:
        yield _Lines()
    else:
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Bar(*columns, console=console, transient=True, refresh_per_second=2) as bar:
            task = bar.add_task("runs")

            def update(progress: Progress) -> None:
                failed = f"runs, {progress.failed} failed" if progress.failed else "runs"
                bar.update(task, total=progress.total, completed=progress.done, description=failed)

            yield update


class _Lines:
    """Ten lines at most, whatever the number of runs."""

    def __init__(self) -> None:
        self._told = -1

    def __call__(self, progress: Progress) -> None:
        if progress.done == progress.kept:
            kept = f", {progress.kept} of them finished before" if progress.kept else ""
            click.echo(f"{progress.total} runs{kept}", err=True)
        tenth = 10 * progress.done // max(progress.total, 1)
        if tenth > self._told and progress.done > progress.kept:
            failed = f", {progress.failed} failed" if progress.failed else ""
            click.echo(f"{progress.done} of {progress.total} runs{failed}", err=True)
        self._told = max(tenth, self._told)


# --- telling ----------------------------------------------------------------------------------------------------------


def _list_runs(ready: Prepared, store: Any, as_json: bool) -> int:
    from fleetsim.sweeping.memory import expected_requests, need_bytes
    from fleetsim.sweeping.study import to_do

    left, notes = to_do(ready, store)
    waiting = {run.id for run in left}
    if as_json:
        runs = [{**run.row(), "to_do": run.id in waiting} for run in ready.chosen]
        print_json({"out": str(store), "runs": runs, "warnings": [*ready.warnings, *notes]})
        return 0
    click.echo(f"{len(ready.chosen)} runs, {len(left)} to do, in {store}")
    click.echo()
    paths = list(ready.chosen[0].axes) if ready.chosen else []
    rows = []
    for run in ready.chosen:
        requests = expected_requests(run.loaded)
        memory = f"{need_bytes(run.loaded) / 1e9:.2f} GB"
        about = [f"{requests:,.0f}" if requests else "", memory, "" if run.id in waiting else "finished"]
        rows.append([run.id, *(_cell(run.axes.get(path)) for path in paths), str(run.seed), *about])
    print_table(["run", *paths, "seed", "requests", "memory", ""], rows, right=range(len(paths) + 1, len(paths) + 4))
    for text in (*ready.warnings, *notes):
        click.echo(f"warning: {text}", err=True)
    return 0


_FIGURES = {
    "within SLO": ("slo_attainment_ratio", "{:.2%}"),
    "goodput/s": ("goodput_requests_per_s", None),
    "ttft p99 s": ("ttft_p99_s", None),
    "tpot p99 s": ("tpot_p99_s", None),
    "energy J": ("energy_j", None),
    "cost USD": ("cost_usd", None),
}
"""Key and format of each figure by its title."""


def _tell(study: Study, as_json: bool, wall_s: float | None, quiet: bool = False) -> int:
    code = INTERRUPTED if study.interrupted else FAILED if study.failed else 0
    if as_json:
        counts = {"finished": len(study.finished), "failed": len(study.failed), "interrupted": len(study.unfinished)}
        print_json(
            {
                "study": study.name,
                "out": study.path,
                **counts,
                "wall_s": wall_s,
                "timing": None if study.timing is None else asdict(study.timing),
                "runs": study.runs,
                "warnings": study.warnings,
            }
        )
        return code
    click.echo(_answer(study, wall_s))
    rows = list(_by_combination(study))
    if rows:
        click.echo()
        paths = _paths(study)
        print_table(
            [*paths, "runs", "verdict", *_FIGURES],
            rows[:MOST_ROWS],
            right=range(len(paths), len(paths) + 2 + len(_FIGURES)),
        )
        if len(rows) > MOST_ROWS:
            click.echo(f"… and {len(rows) - MOST_ROWS} more combinations in summary.parquet")
    click.echo()
    click.echo(f"{study.path}: study.json, summary.parquet, run=*/")
    if study.timing is not None and not quiet:
        click.echo(_spent(study.timing), err=True)
    for row in study.failed[:20]:
        click.echo(f"failed: {row['run']}: {str(row['error']).splitlines()[0]}", err=True)
    if study.interrupted:
        click.echo("interrupted: the same command goes on where it stopped", err=True)
    return code


def _answer(study: Study, wall_s: float | None) -> str:
    parts = [f"{len(study.finished)} of {len(study.runs)} runs finished"]
    parts += [f"{len(study.failed)} failed"] if study.failed else []
    parts += [f"{len(study.unfinished)} not done"] if study.unfinished else []
    spent = "" if wall_s is None else f" after {show(wall_s, 's', 3)}"
    return ", ".join(parts) + spent


def _spent(timing: Timing) -> str:
    processes = "1 process" if timing.processes == 1 else f"{timing.processes} processes"
    return (
        f"{processes} busy {timing.busy_ratio:.1%} of {show(timing.wall_s, 's', 3)} ({timing.cpu_ratio:.1%} of as many cores), "
        f"{show(timing.overhead_s, 's', 2)} for each run besides running it"
    )


def _paths(study: Study) -> list[str]:
    keys = dict.fromkeys(key for row in study.runs for key in row if key.startswith("axis."))
    return [key.removeprefix("axis.") for key in keys]


def _by_combination(study: Study) -> Iterator[Sequence[str]]:
    """A row for every combination that has results: means over its runs."""
    paths = _paths(study)
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in study.finished:
        groups.setdefault(tuple(row.get(f"axis.{path}") for path in paths), []).append(row)
    for values, rows in groups.items():
        verdicts = ", ".join(dict.fromkeys(str(row["verdict"]) for row in rows))
        yield [*map(_cell, values), str(len(rows)), verdicts, *(_mean(rows, *figure) for figure in _FIGURES.values())]


def _mean(rows: Sequence[Mapping[str, Any]], key: str, form: str | None) -> str:
    known = [float(row[key]) for row in rows if row.get(key) is not None]
    if not known:
        return ""
    mean = sum(known) / len(known)
    return form.format(mean) if form else show(mean)


def _cell(value: Any) -> str:
    return "" if value is None else show(value, digits=6) if isinstance(value, float) else str(value)
