"""``fleetsim find-rate``."""

from __future__ import annotations

import click

from fleetsim.cli.console import json_option, print_json, print_table, set_option
from fleetsim.cli.planning import confidence_of, confidence_option
from fleetsim.units import show


@click.command()
@click.argument("scenario", required=False)
@click.option(
    "--tolerance", type=click.FloatRange(1e-4, 1), default=0.02, show_default=True, help="Relative width to end at."
)
@click.option("--requests", type=click.IntRange(100), help="Requests of each run [as the scenario says].")
@confidence_option
@set_option
@json_option
def command(
    scenario: str | None,
    tolerance: float,
    requests: int | None,
    confidence: float,
    max_seeds: int,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """The highest Poisson rate at which SCENARIO's fleet keeps its SLO (MLPerf's rule for servers).

    Bisection; each rate gets seeds until the interval of its attainment is on one side of the target. A trace keeps its pattern
    and is replayed faster or slower.
    """
    from dataclasses import asdict

    from fleetsim.planning import api
    from fleetsim.scenario.load import load_scenario
    from fleetsim.scenario.template import scenario_path

    found = api.find_rate(
        load_scenario(scenario_path(scenario), overrides),
        tolerance=tolerance,
        confidence=confidence_of(confidence, max_seeds),
        requests=requests,
        notice=lambda text: click.echo(text, err=True),
    )
    if as_json:
        print_json(asdict(found))
        return
    low, high = show(found.rate_per_s, "requests/s"), show(found.above_per_s, "requests/s")
    click.echo(f"{low} keep the SLO; {high} were not shown to")
    click.echo(f"rule: {found.rule}")
    click.echo()
    rows = []
    for probe in sorted(found.probes, key=lambda p: p.rate_per_s):
        mean, least, most = probe.judgement.attainment
        cells = [f"{mean:.2%}", f"{least:.2%}", f"{most:.2%}", str(probe.judgement.seeds), probe.judgement.verdict]
        rows.append([show(probe.rate_per_s), *cells])
    print_table(("requests/s", "within SLO", "at least", "at most", "seeds", "verdict"), rows, right=range(5))
