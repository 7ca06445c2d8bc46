"""``fleetsim compare``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fleetsim.cli.console import json_option, print_json, print_table
from fleetsim.units import show

if TYPE_CHECKING:
    from fleetsim.results.compare import Against, Block, Difference

_EPILOG = """\b
Examples:
  fleetsim run scenario.yaml --out a
  fleetsim run scenario.yaml --set gateway.router.policy=least-kv --out b
  fleetsim compare a b
  fleetsim compare STUDY --by router
"""


@click.command(epilog=_EPILOG)
@click.argument("folders", nargs=-1, required=True, metavar="DIR...")
@click.option("--by", metavar="AXIS", help="Axis of a study whose values are compared at each setting of the others.")
@click.option("--base", metavar="LABEL", help="The baseline [the first].")
@click.option(
    "--figure", "figures", multiple=True, metavar="NAME", help="Column of the summary to compare; repeatable."
)
@click.option(
    "--level", type=click.FloatRange(0.5, 0.9999), default=0.95, show_default=True, help="Of the confidence intervals."
)
@json_option
@click.option("--quiet", "-q", is_flag=True, help="The verdicts only.")
def command(
    folders: tuple[str, ...],
    by: str | None,
    base: str | None,
    figures: tuple[str, ...],
    level: float,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compare systems: what differs, how surely, and which settings differ.

    Each DIR is a result folder, a study, or a folder of several. Runs that differ in the seed only are one system; the first
    system is the baseline. Differences are paired by seed where there are several, else by request; a difference is
    significant if it is so after Holm's adjustment for the number of figures. Exit codes: 0 done, 2 bad input.
    """
    from fleetsim.results.compare import compare

    found = compare(*folders, by=by, base=base, figures=figures, level=level)
    if as_json:
        print_json(found.to_dict())
        return
    click.echo(str(found))
    if quiet:
        return
    for block in found.blocks:
        for against in block.others:
            click.echo()
            _tell(block, against, found.level)


def _tell(block: Block, against: Against, level: float) -> None:
    if block.at:
        click.echo("at " + ", ".join(f"{name}={value}" for name, value in block.at.items()))
    rows = [_row(difference) for difference in against.differences]
    unsure = [place for place, difference in enumerate(against.differences) if not difference.significant]
    headers = ("figure", block.base, against.label, "difference", f"{level:.0%} interval", "")
    print_table(headers, rows, right=range(1, 5), grey=unsure)
    click.echo(f"{against.method}; p-values adjusted for {len(rows)} figures and all systems (Holm)")
    click.echo(
        "changed: "
        + ("; ".join(map(str, against.changes)) if against.changes else "nothing but the seeds and the name")
    )


def _row(difference: Difference) -> list[str]:
    word = "" if difference.significant else ("not significant" if difference.p is not None else "no interval")
    if difference.significant and difference.better is not None:
        word = "better" if difference.better else "worse"
    values = [_value(difference, value) for value in (difference.base, difference.other)]
    return [difference.title, *values, _gap(difference, difference.difference), _interval(difference), word]


def _value(difference: Difference, value: float) -> str:
    if difference.figure.endswith("_ratio"):
        return f"{value:.2%}"
    if difference.unit == "s":
        return show(value, "s") if abs(value) >= 1 else show(value * 1e3, "ms")
    return show(value, difference.unit)


def _gap(difference: Difference, value: float) -> str:
    """A difference: points of ratios, percent of the baseline of everything else."""
    if difference.figure.endswith("_ratio"):
        return f"{value * 100:+.2f} points"
    if not difference.base:
        return f"{value:+.4g} {difference.unit}"
    return f"{value / abs(difference.base):+.1%}"


def _interval(difference: Difference) -> str:
    if difference.low is None or difference.high is None:
        return ""
    return f"{_gap(difference, difference.low)} to {_gap(difference, difference.high)}"
