"""``fleetsim init``."""

from __future__ import annotations

from pathlib import Path

import click

from fleetsim.errors import Finding, InputError
from fleetsim.scenario.template import template


@click.command()
@click.argument("path", type=click.Path(path_type=Path), default=Path("scenario.yaml"))
def command(path: Path) -> None:
    """Write a commented scenario to PATH (scenario.yaml by default); an existing file is left alone."""
    if path.is_dir():
        path = path / "scenario.yaml"
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(template())
    except FileExistsError:
        raise InputError(Finding("exists already: choose another name", file=str(path))) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(Finding(f"cannot be written: {reason}", file=str(path))) from None
    click.echo(str(path))
    click.echo(f"next: edit it, then `fleetsim run {path}`; `fleetsim list policies` shows what can be named", err=True)
