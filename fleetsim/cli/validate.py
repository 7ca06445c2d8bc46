"""``fleetsim validate``."""

from __future__ import annotations

import click

from fleetsim import plugins
from fleetsim.cli.console import as_json as finding_json
from fleetsim.cli.console import import_option, json_option, print_findings, print_json, set_option
from fleetsim.errors import Finding, InputError
from fleetsim.experiment.check import check_scenario, check_workload
from fleetsim.scenario.load import load_scenario
from fleetsim.scenario.template import scenario_path


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@set_option
@import_option
@json_option
def command(files: tuple[str, ...], overrides: tuple[str, ...], allow_import: bool, as_json: bool) -> int:
    """Check scenario FILEs, what they name and every row of their traces, without running them.

    Ends with exit code 2 if a file has errors.
    """
    with plugins.allowing_imports(allow_import):
        found = {file: _findings(file, overrides) for file in files}
    invalid = [file for file, findings in found.items() if any(f.severity == "error" for f in findings)]
    if as_json:
        results = [
            {"file": file, "valid": file not in invalid, "findings": [finding_json(f) for f in findings]}
            for file, findings in found.items()
        ]
        print_json({"valid": not invalid, "files": results})
    else:
        for file, findings in found.items():
            print_findings(findings)
            if file not in invalid:
                click.echo(f"{file}: valid")
    return 2 if invalid else 0


def _findings(file: str, overrides: tuple[str, ...]) -> list[Finding]:
    try:
        loaded = load_scenario(scenario_path(file), overrides)
        findings = check_scenario(loaded)
        return findings if any(f.severity == "error" for f in findings) else [*findings, *check_workload(loaded)]
    except InputError as error:
        return list(error.findings)
