"""``fleetsim import``."""

from __future__ import annotations

from pathlib import Path

import click
from pydantic import ValidationError

from fleetsim.cli.console import json_option, print_json
from fleetsim.errors import Finding, InputError

_EPILOG = """\b
Examples:
  fleetsim import result.json --out measured --slo ttft=500ms --slo tpot=50ms
  fleetsim import artifacts/my-run --name "h100, tp 2"
  fleetsim compare measured fleetsim-out/simulated
"""


@click.command(epilog=_EPILOG)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Folder to write [fleetsim-out/NAME].")
@click.option("--name", help="What the run is called [what the file calls it].")
@click.option(
    "--slo", multiple=True, metavar="LIMIT=TIME", help="Hold requests against ttft, tpot or e2el; repeatable."
)
@json_option
def command(file: Path, out: Path | None, name: str | None, slo: tuple[str, ...], as_json: bool) -> None:
    """Make a result folder of a run that another tool measured, to compare with simulated ones.

    FILE is a result of `vllm bench serve` (best with --save-detailed), of AIPerf (a folder, or either of its
    profile_export files), or a benchmark report of llm-d. What was not measured is null in the tables.
    """
    from fleetsim.results.folder import open_results
    from fleetsim.results.importing import import_results

    limits = dict(_limit(text) for text in slo)
    try:
        folder = import_results(file, out, name=name, slo=limits or None)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"--slo {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    (run,) = open_results(folder).runs
    summary, warnings = run.manifest["summary"], run.manifest["warnings"]
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        print_json({"out": str(folder), "tool": run.manifest["tool"], "summary": summary, "warnings": warnings})
        return
    requests = "" if summary["requests"] is None else f"{summary['requests']:,} requests, "
    click.echo(f"{run.name}: {requests}measured with {run.manifest['tool']}")
    click.echo(str(folder))


def _limit(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign or key not in ("ttft", "tpot", "e2el"):
        raise InputError(Finding(f'--slo "{text}" is no limit', hint="e.g. --slo ttft=500ms --slo tpot=50ms"))
    return key, value
