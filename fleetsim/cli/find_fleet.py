"""``fleetsim find-fleet``."""

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
@confidence_option
@solver_option
@click.option("--rounds", type=click.IntRange(1, 10_000), default=40, show_default=True, help="Fleets to try at most.")
@set_option
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Write the scenario with the fleet here.")
@json_option
def command(
    scenario: str | None,
    candidates: str,
    limits: tuple[str, ...],
    prices: tuple[str, ...],
    power_limit: str | None,
    racks: str | None,
    carbon_limit: float | None,
    confidence: float,
    max_seeds: int,
    time_limit: float,
    gap: float,
    rounds: int,
    overrides: tuple[str, ...],
    out: Path | None,
    as_json: bool,
) -> int:
    """The cheapest fleet whose simulation keeps SCENARIO's SLO.

    Fleets are tried from the cheapest that could carry the load upwards; one that fails is cut off with all that have no more of
    anything. Exit codes: 0 found, 2 bad input, 3 none among the rounds.
    """
    from fleetsim.planning import api
    from fleetsim.scenario.load import load_scenario
    from fleetsim.scenario.template import scenario_path

    plan = api.find_fleet(
        load_scenario(scenario_path(scenario), overrides),
        options=options_of(candidates, limits, prices, power_limit, racks, carbon_limit_kg_per_h=carbon_limit),
        effort=effort_of(time_limit, gap),
        confidence=confidence_of(confidence, max_seeds),
        rounds=rounds,
        notice=lambda text: click.echo(text, err=True),
    )
    if out is not None:
        write_scenario(plan, scenario, overrides, out)
    if as_json:
        print_json(as_mapping(plan))
    else:
        tell(plan)
    return SLO_MISSED if plan.proof is None or not plan.proof.proved else 0
