"""``fleetsim accuracy``."""

from __future__ import annotations

from pathlib import Path

import click

from fleetsim.cli.console import print_table
from fleetsim.errors import Finding, InputError


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("docs"), show_default=True, help="Folder of the page."
)
@click.option("--blind", is_flag=True, help="Predict the runs whose results are kept apart, into OUT/blind, instead.")
def command(out: Path, blind: bool) -> None:
    """Compare the physics with published measurements and write the page that shows the errors.

    The measurements are read in the folder that FLEETSIM_DATA names (else ../shared/data): operators, collectives, served
    models, whole runs, power. Takes a few minutes. Needs the extra `accuracy`.
    """
    try:
        from fleetsim.calibration.tables import require_data
    except ModuleNotFoundError as error:
        if error.name != "pandas":
            raise
        hint = "pip install 'fleetsim[accuracy]'"
        raise InputError(
            Finding("comparisons with measurements need pandas, which is not installed", hint=hint)
        ) from None

    require_data()
    if blind:
        from fleetsim.accuracy.blind import write as predict

        files = predict(out / "blind", _notice)
        click.echo(f"{len(files)} tables of predictions")
    else:
        from fleetsim.accuracy.report import measure, percent, write

        report = measure(_notice)
        files = write(report, out / "accuracy.md")
        met = sum(mark.met for mark in report.marks)
        click.echo(f"{met} of {len(report.marks)} aims are reached")
        rows = [(m.target, percent(m.aim), percent(m.reached), "yes" if m.met else "no") for m in report.marks]
        print_table(("target", "aim", "reached", "met"), rows, right=(1, 2))
    for file in files:
        click.echo(str(file))


def _notice(what: str) -> None:
    click.echo(f"{what} ...", err=True)
