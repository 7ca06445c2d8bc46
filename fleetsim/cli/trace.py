"""``fleetsim trace``: what is in a trace file, and from one format to another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from fleetsim.cli.console import json_option, print_json, print_table, set_option
from fleetsim.units import show
from fleetsim.workload.formats import FORMATS
from fleetsim.workload.writers import WRITERS

_path = click.Path(path_type=Path)
_from_option = click.option("--from", "from_format", type=click.Choice(list(FORMATS)), help="Format [found out].")
_to_option = click.option("--to", "to_format", type=click.Choice(list(WRITERS)), help="Format [by the name's ending].")


@click.group()
def command() -> None:
    """Describe, convert, generate and fetch request traces."""


@command.command(short_help="What is in a trace: rates, lengths, prefix reuse.")
@click.argument("file", type=_path)
@_from_option
@json_option
def describe(file: Path, from_format: str | None, as_json: bool) -> None:
    """Counts, rates, lengths, burstiness, sessions and prefix reuse of a trace FILE."""
    from fleetsim.workload.describe import describe_trace

    figures = describe_trace(file, from_format)
    if as_json:
        print_json(figures)
        return
    rate = figures["rate_per_s"]
    pace = f" over {show(figures['span_s'], 's')}, {show(rate, 'requests/s')}" if rate else ""
    click.echo(f"{file}: {figures['format']}, {figures['requests']:,} requests{pace}")
    if figures["bad_rows"]:
        click.echo(f"{figures['bad_rows']:,} rows cannot be read, such as", err=True)
        for bad in figures["bad_rows_first"]:
            click.echo(f"  row {bad['row']}: {bad['message']}", err=True)
    print_table(("figure", "value"), _flat(figures), right=(1,))


def _flat(figures: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in figures.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            rows += _flat(value, f"{name}.")
        elif key not in ("path", "format", "bad_rows_first"):
            rows.append((name, _shown(value)))
    return rows


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_shown(item) for item in value)
    if isinstance(value, int):
        return f"{value:,}"
    return show(value) if isinstance(value, float) else "–" if value is None else str(value)


@command.command(short_help="Write a trace in another format.")
@click.argument("source", type=_path)
@click.argument("target", type=_path)
@_from_option
@_to_option
@click.option("--skip-bad-rows", is_flag=True, help="Leave out rows that cannot be read, and say how many.")
@json_option
def convert(
    source: Path, target: Path, from_format: str | None, to_format: str | None, skip_bad_rows: bool, as_json: bool
) -> None:
    """Write the trace SOURCE in another format: parquet keeps all, mooncake block ids, azure times and lengths."""
    from fleetsim.workload.convert import convert_trace

    report = convert_trace(source, target, from_format, to_format, skip_bad_rows)
    if as_json:
        print_json({**report, "path": target})
        return
    click.echo(f"{target}: {report['requests']:,} requests as {report['to_format']}")
    if report["skipped_rows"]:
        click.echo(f"{report['skipped_rows']:,} bad rows left out", err=True)
    if report["lost"]:
        click.echo(f"no room in {report['to_format']} for: {', '.join(report['lost'])}", err=True)


@command.command(short_help="Write the requests that a scenario would send.")
@click.argument("scenario")
@click.argument("target", type=_path)
@_to_option
@set_option
@json_option
def export(scenario: str, target: Path, to_format: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Write the requests that SCENARIO would send to TARGET, for other tools to replay."""
    from fleetsim.experiment.check import require_valid
    from fleetsim.experiment.export import export_workload
    from fleetsim.scenario.load import load_scenario
    from fleetsim.scenario.template import scenario_path

    loaded = load_scenario(scenario_path(scenario), overrides)
    require_valid(loaded)
    report = export_workload(loaded, target, to_format)
    if as_json:
        print_json(report)
    else:
        click.echo(f"{target}: {report['requests']:,} requests as {report['to_format']}")


@command.command(short_help="Download a public trace.")
@click.argument("name")
@click.option("--dest", type=_path, default=Path(), help="Folder to save it in [the current one].")
@json_option
def fetch(name: str, dest: Path, as_json: bool) -> None:
    """Download the public trace NAME (`fleetsim list traces`), going on where an earlier attempt stopped."""
    from fleetsim.workload.fetch import fetch_trace

    report = fetch_trace(name, dest)
    if as_json:
        print_json(report)
        return
    click.echo(f"{report['path']}: {report['bytes']:,} bytes, sha256 {report['sha256']}")
    if not report["verified"]:
        click.echo("its checksum is not known: what came cannot be verified", err=True)


@command.command(short_help="Draw a trace like a public one.")
@click.argument("profile")
@click.argument("target", type=_path)
@click.option("--requests", type=click.IntRange(1), default=1000, show_default=True, help="How many to draw.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="The same seed, the same trace.")
@click.option("--rate", type=float, help="Mean requests per second [as recorded].")
@_to_option
@json_option
def synth(
    profile: str,
    target: Path,
    requests: int,
    seed: int,
    rate: float | None,
    to_format: str | None,
    as_json: bool,
) -> None:
    """Draw a trace from the PROFILE of a public one (`fleetsim list profiles`) and write it to TARGET."""
    from fleetsim.workload.convert import synthesise

    report = synthesise(profile, requests, seed, target, to_format, rate)
    if as_json:
        print_json({**report, "path": target})
    else:
        click.echo(f"{target}: {report['requests']:,} requests as {report['to_format']}")
