"""``fleetsim plan``."""

from __future__ import annotations

from pathlib import Path

import click

from fleetsim.cli.console import json_option, print_json, set_option
from fleetsim.cli.planning import (
    as_mapping,
    candidates_option,
    confidence_of,
    confidence_option,
    effort_of,
    options_of,
    solver_option,
    tell,
    write_scenario,
)

SLO_MISSED = 3


@click.command()
@click.argument("scenario", required=False)
@candidates_option
@click.option(
    "--utilisation",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.85,
    show_default=True,
    help="Share of a replica's throughput to plan with; the rest absorbs bursts.",
)
@click.option("--slices", type=click.IntRange(1, 1000), default=4, show_default=True, help="Parts of a bucket.")
@click.option("--buckets", default="10x6", show_default=True, metavar="RxC", help="By prompt and by answer length.")
@click.option(
    "--window", type=float, metavar="SECONDS", help="Plan for busy windows of this length, not the mean rate."
)
@click.option("--verify", is_flag=True, help="Simulate the plan; tighten it until the SLO holds.")
@confidence_option
@solver_option
@set_option
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Write the scenario with the planned fleet here.")
@json_option
def command(
    scenario: str | None,
    candidates: str,
    limits: tuple[str, ...],
    prices: tuple[str, ...],
    power_limit: str | None,
    racks: str | None,
    carbon_limit: float | None,
    utilisation: float,
    slices: int,
    buckets: str,
    window: float | None,
    verify: bool,
    confidence: float,
    max_seeds: int,
    time_limit: float,
    gap: float,
    overrides: tuple[str, ...],
    out: Path | None,
    as_json: bool,
) -> int:
    """The cheapest fleet for SCENARIO's workload within its SLO, or the answer to a stated planning problem.

    Engine and LLM are those of the scenario's first pool. Throughputs of the candidates come from step times within the SLO; an
    integer program (Mélange) buys replicas, and --verify lets the simulation judge. SCENARIO may also be a file with a `problem`
    (`fleetsim list plans`).

    Exit codes: 0 done, 2 bad input or no plan possible, 3 with --verify where the SLO could not be proved.
    """
    from fleetsim.errors import Finding, InputError
    from fleetsim.planning import api
    from fleetsim.planning.problems import is_problem
    from fleetsim.scenario.load import load_scenario
    from fleetsim.scenario.template import scenario_path

    rows, _, columns = buckets.partition("x")
    if not (rows.isdigit() and columns.isdigit() and int(rows) and int(columns)):
        raise InputError(Finding(f'"{buckets}": expected ROWSxCOLUMNS such as 10x6', "--buckets"))
    effort = effort_of(time_limit, gap)
    if scenario is not None and is_problem(scenario):
        if overrides or candidates or limits or prices or power_limit or racks or carbon_limit is not None:
            raise InputError("a stated problem takes no --set, --candidates, --price or limits: change the file")
        plan = api.plan(
            scenario,
            effort=effort,
            verify=verify,
            confidence=confidence_of(confidence, max_seeds),
            notice=lambda text: click.echo(text, err=True),
        )
    else:
        options = options_of(
            candidates,
            limits,
            prices,
            power_limit,
            racks,
            carbon_limit_kg_per_h=carbon_limit,
            utilisation_limit=utilisation,
            slices=slices,
            rows=int(rows),
            columns=int(columns),
            window_s=window,
        )
        plan = api.plan(
            load_scenario(scenario_path(scenario), overrides),
            options=options,
            effort=effort,
            verify=verify,
            confidence=confidence_of(confidence, max_seeds),
            notice=lambda text: click.echo(text, err=True),
        )
    if out is not None:
        write_scenario(plan, scenario, overrides, out)
    if as_json:
        print_json(as_mapping(plan))
    else:
        tell(plan)
    return SLO_MISSED if plan.proof is not None and not plan.proof.proved else 0
