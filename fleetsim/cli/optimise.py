"""``fleetsim optimise``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fleetsim.cli.console import import_option, json_option, print_json, print_table, set_option
from fleetsim.cli.sweep import memory_option, override_of
from fleetsim.units import show

if TYPE_CHECKING:
    from fleetsim.sweep.optimise import Optimised

INTERRUPTED = 130


@click.command(
    epilog="Example: fleetsim optimise embedded:quickstart --set workload.requests=1000 "
    "--axis 'pools[0].replicas={range: [2, 6]}' --axis gateway.router=least-outstanding,power-of-two-choices "
    "--minimise cost_usd --minimise ttft_p99_s --trials 12"
)
@click.argument("scenario", required=False)
@click.option(
    "--axis",
    "axes",
    multiple=True,
    metavar="PATH=A,B,…",
    help="What may vary: values to choose from, {range: [low, high]} or {log-range: [low, high]}; repeatable.",
)
@click.option("--minimise", multiple=True, metavar="FIGURE", help="A figure of the summary; repeatable.")
@click.option(
    "--maximise",
    multiple=True,
    metavar="FIGURE",
    help="The same; without either: cost, energy and p99 time to first token against goodput.",
)
@click.option(
    "--constraint",
    "constraints",
    multiple=True,
    metavar="FIGURE>=N",
    help="What must hold [the scenario's SLO]; repeatable.",
)
@click.option("--trials", "-n", type=click.IntRange(1), help="Combinations to try, earlier ones included [40].")
@click.option("--replications", "-r", type=click.IntRange(1, 1000), help="Runs of each; objectives are means [1].")
@click.option("--sampler", type=click.Choice(["tpe", "nsga2", "random"]), help="Who proposes [tpe].")
@click.option("--batch", type=click.IntRange(1, 1000), help="Trials proposed before the first is known [4].")
@click.option(
    "--prune-at",
    type=click.FloatRange(0, 0.99),
    help="Give up what is overloaded by this share of its requests; 0: never [0.2].",
)
@click.option("--seed", type=click.IntRange(0), help="Of the search [0].")
@set_option
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Folder of the study [fleetsim-out/NAME].")
@click.option("--name", help="Name of the study [the scenario's, and -search].")
@click.option("-j", "--jobs", type=click.IntRange(0, 1024), default=0, help="Processes [one per core].")
@memory_option
@click.option(
    "--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True, help="Where runs go."
)
@click.option("--address", help="Of a Ray cluster, with --engine ray [one is started here].")
@click.option("--keep-old", is_flag=True, help="Go on with a study of another version of fleetsim.")
@click.option("--check", is_flag=True, help="Verify the laws of the simulation in every run.")
@import_option
@json_option
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
def command(scenario: str | None, overrides: tuple[str, ...], quiet: bool, as_json: bool, **given: Any) -> int:
    """Search over values of SCENARIO (or as a search's file says) for the best trade-offs between figures of its runs.

    Tells the trials that no other beats in everything and that keep the constraints. The same command goes on where it was
    interrupted, and with more --trials goes further. Exit codes: 0 done, 1 no trial keeps the constraints, 2 bad input,
    130 interrupted.
    """
    from fleetsim.sweep.axes import axis_of
    from fleetsim.sweep.optimise import optimise

    axes = dict(axis_of(text) for text in given.pop("axes"))
    objectives = dict.fromkeys(given.pop("minimise"), "minimise") | dict.fromkeys(given.pop("maximise"), "maximise")
    constraints = given.pop("constraints")
    found = optimise(
        scenario if scenario is not None else "embedded:quickstart",
        _located(axes),
        objectives=objectives or None,  # type: ignore[arg-type]
        constraints=list(constraints) or None,
        overrides=dict(override_of(text) for text in overrides) or None,
        memory_bytes=given.pop("memory"),
        progress=(lambda *_: None) if quiet else _progress,
        command=["fleetsim", *(shlex.quote(word) for word in sys.argv[1:])],
        **given,
    )
    if as_json:
        print_json(_as_mapping(found))
    else:
        _tell(found)
    return INTERRUPTED if found.interrupted else 0 if found.pareto else 1


def _located(axes: Mapping[str, Any]) -> Any:
    from fleetsim.scenario.source import Located

    return Located(dict(axes), "--axis") if axes else None


def _progress(ended: int, trials: int, given_up: int) -> None:
    early = f", {given_up} given up early or not valid" if given_up else ""
    click.echo(f"{ended} of {trials} trials{early}", err=True)


def _as_mapping(found: Optimised) -> dict[str, Any]:
    return {
        "study": found.study.name,
        "out": found.study.path,
        "objectives": found.objectives,
        "constraints": found.constraints,
        "pareto": found.pareto,
        "trials": found.trials,
        "interrupted": found.interrupted,
    }


def _tell(found: Optimised) -> None:
    wanted = ", ".join(f"{figure} ({direction}d)" for figure, direction in found.objectives.items())
    holds = f" that keep {', '.join(found.constraints)}" if found.constraints else ""
    word = "trade-offs" if len(found.pareto) != 1 else "trade-off"
    click.echo(f"{len(found.pareto)} best {word} of {len(found.trials)} trials{holds}: {wanted}")
    click.echo(_states(found.trials))
    shown = found.pareto or _nearest(found.trials)
    if shown:
        click.echo()
        if not found.pareto:
            click.echo("nearest to what must hold:")
        axes = [key for key in shown[0] if key.startswith("axis.")]
        figures = [
            key for key in shown[0] if key in {*found.objectives, *(c.split()[0] for c in found.constraints), *_ALSO}
        ]
        if found.pareto:
            first = next(iter(found.objectives))
            shown = sorted(shown, key=lambda row: row[first], reverse=found.objectives[first] == "maximise")
        titles = ["trial", *(key.removeprefix("axis.") for key in axes), *figures]
        cells = [[_cell(row[key]) for key in ("trial", *axes, *figures)] for row in shown]
        print_table(titles, cells, right=[0, *range(1 + len(axes), len(titles))])
    click.echo()
    click.echo(f"{found.study.path}: pareto.parquet, trials.parquet, summary.parquet, optuna.db, run=*/")
    if found.interrupted:
        click.echo("interrupted: the same command goes on where it stopped", err=True)


def _nearest(trials: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The three that break the constraints least."""
    ran = [row for row in trials if row["state"] == "finished"]
    return sorted(ran, key=lambda row: (row["violation"], row["trial"]))[:3]


_ALSO = ("cost_usd", "energy_j", "ttft_p99_s", "goodput_requests_per_s", "slo_attainment_ratio")


def _states(trials: Sequence[Mapping[str, Any]]) -> str:
    """How many ended how, and why most of the others did not."""
    counts = {state: sum(row["state"] == state for row in trials) for state in ("finished", "pruned", "failed")}
    broken = sum(row["feasible"] is False for row in trials)
    parts = [f"{counts['finished']} run to their end" + (f" ({broken} break a constraint)" if broken else "")]
    parts += [f"{counts['pruned']} given up early or not valid"] if counts["pruned"] else []
    parts += [f"{counts['failed']} failed"] if counts["failed"] else []
    return ", ".join(parts)


def _cell(value: Any) -> str:
    return "" if value is None else show(value) if isinstance(value, float) else str(value)
