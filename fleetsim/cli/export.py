"""``fleetsim export``."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from fleetsim.cli.console import json_option, print_json, print_table
from fleetsim.errors import Finding, InputError

_EPILOG = """\b
Examples:
  fleetsim export fleetsim-out/quickstart --format perfetto --window 10:20
  fleetsim export fleetsim-out/quickstart --format vllm-bench --out result.json
  fleetsim export STUDY --format llm-d --out reports
  fleetsim export --list
"""


@click.command(epilog=_EPILOG)
@click.argument("folder", required=False, metavar="DIR")
@click.option("--format", "to_format", metavar="FORMAT", help="One of --list.")
@click.option("--out", "-o", type=click.Path(path_type=Path), help="File, or folder for several [named after the run].")
@click.option("--run", metavar="LABEL", help="This run of a study only.")
@click.option("--start", metavar="TIME", help="Time of day of second 0, for formats that have one [2026-01-01T00:00Z].")
@click.option("--window", metavar="FROM:TO", help="Part of the run in traces for viewers, in seconds [all].")
@click.option("--max-mb", type=click.FloatRange(1), default=50, show_default=True, help="Size of traces for viewers.")
@click.option("--list", "list_them", is_flag=True, help="List the formats.")
@json_option
def command(
    folder: str | None,
    to_format: str | None,
    out: Path | None,
    run: str | None,
    start: str | None,
    window: str | None,
    max_mb: float,
    list_them: bool,
    as_json: bool,
) -> None:
    """Write the runs of DIR as other tools write theirs.

    Formats: llm-d, vllm-bench and aiperf (results), mooncake (the requests as a trace), prometheus (time series with vLLM's
    metric names), perfetto (a trace for ui.perfetto.dev). Requests of the warm-up are left out of the results.
    """
    from fleetsim.results.export import FORMATS, export
    from fleetsim.results.exports.options import START, Options

    if list_them:
        if as_json:
            print_json({"formats": [{"name": name, "title": told.title} for name, told in FORMATS.items()]})
        else:
            print_table(("name", "what"), ((name, told.title) for name, told in FORMATS.items()))
        return
    if folder is None or to_format is None:
        raise InputError(Finding("name a result folder and a --format", hint=f"formats: {', '.join(FORMATS)}"))
    options = Options(START if start is None else _time(start), _window(window), int(max_mb * 1e6))
    written = export(folder, to_format, out, run=run, options=options)
    for note in written.notes:
        click.echo(f"note: {note}", err=True)
    if as_json:
        print_json({"files": [str(file) for file in written.files], "notes": list(written.notes)})
        return
    for file in written.files:
        click.echo(str(file))


def _time(text: str) -> datetime:
    try:
        told = datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(Finding(f'--start "{text}" is no time', hint="e.g. 2026-03-01T08:00:00+01:00")) from error
    return told if told.tzinfo is not None else told.replace(tzinfo=UTC)


def _window(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    low, colon, high = text.partition(":")
    try:
        window = float(low or 0), float(high or "inf")
    except ValueError:
        window = (0.0, 0.0)
    if not colon or not window[0] < window[1]:
        raise InputError(Finding(f'--window "{text}" is no part of a run', hint="seconds, e.g. --window 10:20"))
    return window
