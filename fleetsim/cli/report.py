"""``fleetsim report``."""

from __future__ import annotations

from pathlib import Path

import click

from fleetsim.cli.console import json_option, print_json


@click.command(
    epilog="Example: `fleetsim run -o results && fleetsim report results`, then open results/report.html in a browser."
)
@click.argument("folders", nargs=-1, required=True, metavar="DIR...", type=click.Path(path_type=Path))
@click.option("--out", "-o", type=click.Path(path_type=Path), help="File to write [report.html in the first DIR].")
@click.option("--title", help="Head line [name of the scenario or study].")
@click.option(
    "--figures",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write the figures as images too (fleetsim[png]).",
)
@click.option(
    "--format", "figure_format", type=click.Choice(["svg", "png", "pdf"]), default="svg", help="Of images [svg]."
)
@json_option
def command(
    folders: tuple[Path, ...],
    out: Path | None,
    title: str | None,
    figures: Path | None,
    figure_format: str,
    as_json: bool,
) -> int:
    """Write one HTML page that shows the results in DIR, of a run, several runs or a study.

    The page needs no other file and no network. It answers first, then shows the figures, says what was assumed and how to run
    it again.
    """
    from fleetsim.reporting.build import report

    path = report(*folders, out=out, title=title, figures=figures, figure_format=figure_format)
    size_bytes = path.stat().st_size
    if as_json:
        print_json({"report": path, "bytes": size_bytes})
    else:
        click.echo(f"{path}: {size_bytes / 1e6:.1f} MB, opens in any browser")
    return 0
