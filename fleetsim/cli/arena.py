"""``fleetsim arena``."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fleetsim.cli.console import import_option, json_option, print_json, print_table

if TYPE_CHECKING:
    from fleetsim.arena.contest import Contest


def cores() -> int:
    """Processors that this process may use: runs are independent, so that each of them has its own."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _split(context: click.Context, parameter: click.Parameter, text: str) -> list[str]:  # noqa: ARG001
    return [part.strip() for part in text.split(",") if part.strip()]


@click.command()
@click.option("--routers", default="", callback=_split, metavar="A,B,…", help="Routers to compare.")
@click.option("--schedulers", default="", callback=_split, metavar="A,B,…", help="Schedulers to compare.")
@click.option("--orders", default="", callback=_split, metavar="A,B,…", help="Orders of the queue to compare.")
@click.option("--admissions", default="", callback=_split, metavar="A,B,…", help="Admission policies to compare.")
@click.option(
    "--evictions", default="", callback=_split, metavar="A,B,…", help="Evictions of cached blocks to compare."
)
@click.option("--rebalancers", default="", callback=_split, metavar="A,B,…", help="Rebalancers to compare.")
@click.option("--model-routers", default="", callback=_split, metavar="A,B,…", help="Model routers to compare.")
@click.option(
    "--suite",
    type=click.Choice(["fleet", "models"]),
    default="fleet",
    show_default=True,
    help="What is compared: what a fleet does with requests, or which model answers them.",
)
@click.option("--kind", "kinds", default="", callback=_split, metavar="A,B,…", help="All policies of these kinds.")
@click.option("--scenarios", default="", callback=_split, metavar="A,B,…", help="Scenarios of the suite, or files.")
@click.option("--seeds", type=click.IntRange(1, 1000), default=5, show_default=True, help="Runs of each.")
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Folder in which to write the page.")
@click.option("--timing/--no-timing", default=True, show_default=True, help="Measure what decisions cost.")
@click.option("--fresh", is_flag=True, help="Run everything anew: use no runs that an earlier command finished.")
@click.option(
    "-j", "--jobs", type=click.IntRange(1, 256), default=cores, show_default="one per core", help="Processes."
)
@import_option
@json_option
def command(
    routers: list[str],
    schedulers: list[str],
    orders: list[str],
    admissions: list[str],
    evictions: list[str],
    rebalancers: list[str],
    model_routers: list[str],
    suite: str,
    kinds: list[str],
    scenarios: list[str],
    seeds: int,
    out: Path | None,
    timing: bool,
    fresh: bool,
    jobs: int,
    allow_import: bool,
    as_json: bool,
) -> None:
    """Let policies compete on a fixed suite of scenarios and rank them.

    Without names, all installed routers, schedulers, orders of the queue, admissions, evictions and rebalancers compete, each kind
    for itself; `--kind evictions` is all of one kind. A policy of your own enters as `module:Class` with --allow-import. The
    baseline of a kind always takes part. Kinds meet where the suite says, and in all scenarios that are named here.

    `--suite models` compares model routers by the quality of answers, its price, energy and latency; the page is arena-models.md,
    with pictures where Chrome or Chromium and `fleetsim[png]` are installed.
    """
    from fleetsim.arena.contest import contest, decision_us
    from fleetsim.arena.page import as_mapping, overall_head, overall_rows, page
    from fleetsim.arena.suite import KINDS, entries, meeting_places, scenario_names, version
    from fleetsim.experiment.replicate import Kept
    from fleetsim.plugins import allowing_imports

    wanted = {
        "routers": routers,
        "schedulers": schedulers,
        "orders": orders,
        "admissions": admissions,
        "evictions": evictions,
        "rebalancers": rebalancers,
        "model_routers": model_routers,
    }
    if model_routers and not any(given for kind, given in wanted.items() if KINDS[kind].suite != "models"):
        suite = "models"
    with allowing_imports(allow_import):
        taking_part = entries(wanted, kinds, suite)
    only = None if scenarios else meeting_places(suite)
    met = {entry.kind for entry in taking_part}
    names = scenarios or [
        n for n in scenario_names(suite) if only is None or any(n in only.get(kind, [n]) for kind in met)
    ]
    started = time.perf_counter()
    result = contest(taking_part, names, seeds, jobs, None if fresh else Kept(), _notice, allow_import, only)
    if timing:
        spent = {}
        for entry in taking_part:
            ran = [name for name in names if (entry, name) in result.figures]
            if ran:
                _notice(f"cost of a decision: {entry.name}")
                spent[entry] = decision_us(entry, ran[0], allow_import)
        result = replace(result, decision_us={entry: us for entry, us in spent.items() if us is not None})
    click.echo(
        f"{len(taking_part)} policies, {len(names)} scenarios in {time.perf_counter() - started:.0f} s", err=True
    )
    if out is not None:
        told = ["fleetsim arena", *([f"--suite {suite}"] if suite != "fleet" else [])]
        told += [f"--{kind.replace('_', '-')} {','.join(given)}" for kind, given in wanted.items() if given]
        told += [f"--kind {','.join(kinds)}"] if kinds else []
        told += [f"--scenarios {','.join(scenarios)}"] if scenarios else []
        told += [f"--seeds {seeds}"] if seeds != 5 else []
        out.mkdir(parents=True, exist_ok=True)
        with allowing_imports(allow_import):
            shown = _draw(result, out) if suite == "models" else {}
        name = "arena.md" if suite == "fleet" else f"arena-{suite}.md"
        (out / name).write_text(page(result, " ".join([*told, f"--out {out}"]), shown), encoding="utf-8")
    if as_json:
        print_json(as_mapping(result))
        return
    click.echo(f"suite {version(suite)}, {seeds} seeds")
    for kind in dict.fromkeys(entry.kind for entry in taking_part):
        head = overall_head(result, kind)
        click.echo(f"\n{kind}")
        print_table(head, overall_rows(result, kind), right=(0, *range(2, len(head))))
    for (entry, name), why in result.excluded.items():
        click.echo(f"{entry.name} in {name}: {why}", err=True)


def _draw(result: Contest, out: Path) -> dict[str, str]:
    """Pictures beside the page: titles by file; none where there is nothing to draw them with."""
    from fleetsim.arena.pictures import pictures
    from fleetsim.errors import InputError
    from fleetsim.plots.export import save

    figures = pictures(result, "model_routers")
    try:
        save(figures, out, "svg")
    except InputError as error:
        _notice(f"no pictures: {error.findings[0].message}")
        return {}
    return {f"{name}.svg": str(fig.layout.title.text) for name, fig in figures.items()}


def _notice(what: str) -> None:
    click.echo(f"{what} ...", err=True)
