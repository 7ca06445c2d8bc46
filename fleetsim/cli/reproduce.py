"""``fleetsim reproduce``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fleetsim.cli.console import import_option, json_option, print_json, print_table

if TYPE_CHECKING:
    from fleetsim.reproduce.reproduce import Outcome


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, help="Write the page of all papers there (Markdown)."
)
@click.option("--recorded", "from_files", is_flag=True, help="Run nothing: show the figures that the files record.")
@click.option("--write", is_flag=True, help="Write what we got into the paper files.")
@click.option("--fast", is_flag=True, help="Only papers that take some seconds.")
@click.option("--strict", is_flag=True, help="End with exit code 1 if a verdict is not the recorded one.")
@click.option("--fresh", is_flag=True, help="Run everything anew: use no runs that an earlier command finished.")
@click.option("-j", "--jobs", type=click.IntRange(1, 256), default=1, show_default=True, help="Processes.")
@import_option
@json_option
def command(
    names: tuple[str, ...],
    out: Path | None,
    from_files: bool,
    write: bool,
    fast: bool,
    strict: bool,
    fresh: bool,
    jobs: int,
    allow_import: bool,
    as_json: bool,
) -> int:
    """Run published papers' settings and compare their figures with ours.

    NAME is a paper of `fleetsim list papers`, or a paper file of your own; all papers if none is given. Papers whose traces are
    not in the folder that FLEETSIM_DATA names (else ../shared/data) are skipped. Finished runs are kept in a temporary folder,
    so that a command that was stopped goes on where it was.
    """
    from fleetsim.experiment.replicate import Kept
    from fleetsim.reproduce.page import write_back
    from fleetsim.reproduce.paper import load_paper, paper_names, paper_path
    from fleetsim.reproduce.reproduce import recorded, reproduce

    files = [load_paper(paper_path(name)) for name in names or paper_names()]
    chosen = [file for file in files if not fast or file.paper.speed == "fast"]
    started = time.perf_counter()
    if from_files:
        outcomes = [recorded(file) for file in chosen]
    else:
        outcomes = reproduce(chosen, jobs, None if fresh else Kept(), _notice, allow_import)
        click.echo(f"{len(chosen)} papers in {time.perf_counter() - started:.1f} s", err=True)
    if write:
        for outcome in outcomes:
            if not outcome.skipped:
                write_back(outcome)
    if out is not None:
        from fleetsim.reproduce.page import page

        ran = {outcome.file.path.resolve(): outcome for outcome in outcomes if not outcome.skipped}
        paths = {path.resolve(): None for path in (*map(paper_path, paper_names()), *(file.path for file in files))}
        every = [ran.get(path) or recorded(load_paper(path)) for path in sorted(paths, key=lambda path: path.stem)]
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page(every), encoding="utf-8")
    if as_json:
        print_json({"papers": [_as_mapping(outcome) for outcome in outcomes]})
    else:
        _print(outcomes)
    changed = [outcome.file.name for outcome in outcomes if outcome.differs]
    if changed and not write:
        click.echo(f"verdicts that are not the recorded ones: {', '.join(changed)}", err=True)
    return 1 if strict and changed else 0


def _notice(what: str) -> None:
    click.echo(f"{what} ...", err=True)


def _print(outcomes: list[Outcome]) -> None:
    from fleetsim.reproduce.page import accepted, published, told

    rows = [
        (
            outcome.file.name,
            figure.name,
            published(figure),
            accepted(figure),
            told(ours),
            outcome.skipped or ours.verdict,
        )
        for outcome in outcomes
        for figure, ours in zip(outcome.file.paper.figures, outcome.ours, strict=True)
    ]
    print_table(("paper", "figure", "published", "accepted", "ours", "verdict"), rows, right=(2, 3, 4))


def _as_mapping(outcome: Outcome) -> dict[str, Any]:
    pairs = zip(outcome.file.paper.figures, outcome.ours, strict=True)
    figures = [
        {"name": f.name, "published": f.published, "unit": f.unit, "band": f.band, **o.model_dump()} for f, o in pairs
    ]
    return {
        "name": outcome.file.name,
        "verdict": outcome.verdict,
        "skipped": outcome.skipped or None,
        "figures": figures,
    }
