"""``fleetsim schema``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from fleetsim.scenario.export import json_schema


@click.command()
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write here instead of stdout.")
def command(output: Path | None) -> None:
    """JSON Schema (draft 7) of scenario files, with every policy installed here.

    Editors complete and check scenarios whose first line is

    # yaml-language-server: $schema=scenario.schema.json
    """
    text = json.dumps(json_schema(), indent=2, ensure_ascii=False)
    if output is None:
        click.echo(text)
    else:
        output.write_text(f"{text}\n", encoding="utf-8")
        click.echo(f"{output}", err=True)
