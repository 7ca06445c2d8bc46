"""What people and programs see: findings, tables, one JSON object."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import click

from fleetsim.errors import Finding

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="PATH=VALUE",
    help="Override a value, e.g. pools[0].replicas=3; repeatable.",
)
import_option = click.option(
    "--allow-import",
    is_flag=True,
    help="Let the scenario name policies by import path (module:Class): this runs their code.",
)


def print_findings(findings: Iterable[Finding]) -> None:
    """Findings on stderr, each with its place first and the hint below."""
    for finding in findings:
        head = "warning: " if finding.severity == "warning" else ""
        click.echo(f"{head}{finding}", err=True)


def print_json(content: Mapping[str, Any]) -> None:
    """One JSON object on stdout; numbers that JSON lacks become null."""
    click.echo(json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(child) for child in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def as_json(finding: Finding) -> dict[str, Any]:
    """A finding as JSON."""
    keys = ("severity", "file", "line", "column", "path", "message", "hint")
    return {key: getattr(finding, key) for key in keys}


def print_table(
    headers: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = (), grey: Collection[int] = ()
) -> None:
    """A plain table on stdout, columns padded, those in `right` aligned to the right; nothing is cut when piped.

    Rows whose numbers are in `grey` are grey in a terminal.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    aligned = set(right)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, header in enumerate(headers):
        justify: Literal["left", "right"] = "right" if i in aligned else "left"
        table.add_column(header, justify=justify, overflow="fold", no_wrap=header == "name")
    listed = [list(row) for row in rows]
    for place, row in enumerate(listed):
        table.add_row(*(Text(cell) for cell in row), style="bright_black" if place in grey else None)
    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console.width = 4000
    console.print(table)
