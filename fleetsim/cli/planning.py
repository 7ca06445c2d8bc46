"""What the planning commands share: options, and how a plan is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fleetsim.cli.console import print_table
from fleetsim.errors import Finding, InputError
from fleetsim.units import show

if TYPE_CHECKING:
    from fleetsim.planning.judge import Confidence
    from fleetsim.planning.plan import Options
    from fleetsim.planning.racks import Racks
    from fleetsim.planning.result import Plan, Proof
    from fleetsim.planning.solve import Effort
    from fleetsim.scenario.load import LoadedScenario

F = TypeVar("F", bound=Callable[..., Any])


def candidates_option(command: F) -> F:
    """``--candidates``, ``--limit``, ``--price``, ``--power-limit``, ``--racks`` and ``--carbon-limit``."""
    for option in (
        click.option(
            "--carbon-limit",
            type=click.FloatRange(0),
            metavar="KG/H",
            help="Of all accelerators at work, CO2 per hour.",
        ),
        click.option("--racks", metavar="N=POWER", help="Racks and the power of each, e.g. `4=40 kW`."),
        click.option("--power-limit", metavar="POWER", help="Of all accelerators at work, e.g. `40 kW`."),
        click.option(
            "--price", "prices", multiple=True, metavar="NAME=USD/H", help="Price of an accelerator; repeatable."
        ),
        click.option("--limit", "limits", multiple=True, metavar="NAME=N", help="Accelerators to be had; repeatable."),
        click.option(
            "--candidates", default="", metavar="A,B,…", help="Accelerators to choose from [those of the scenario]."
        ),
    ):
        command = option(command)
    return command


def confidence_option(command: F) -> F:
    """``--confidence`` and ``--max-seeds``."""
    level = click.FloatRange(0.5, 0.9999)
    command = click.option(
        "--max-seeds", type=click.IntRange(3, 200), default=8, show_default=True, help="Runs of each."
    )(command)
    return click.option(
        "--confidence", type=level, default=0.95, show_default=True, help="That the SLO holds, from several seeds."
    )(command)


def solver_option(command: F) -> F:
    """``--time-limit`` and ``--gap``."""
    command = click.option(
        "--gap", type=click.FloatRange(0, 1), default=1e-4, show_default=True, help="Relative gap that will do."
    )(command)
    return click.option(
        "--time-limit", type=click.FloatRange(0.1), default=60.0, show_default=True, help="Of the solver [s]."
    )(command)


def options_of(
    candidates: str,
    limits: tuple[str, ...],
    prices: tuple[str, ...],
    power_limit: str | None,
    racks: str | None,
    **more: Any,
) -> Options:
    """What the command line says, as the planner's options.

    Raises
    ------
    InputError
        If a limit or a price is no number.
    """
    from fleetsim.planning.plan import Options
    from fleetsim.units import parse

    watts = None
    if power_limit is not None:
        try:
            watts = parse(power_limit, "power")
        except ValueError as error:
            raise InputError(Finding(str(error), "--power-limit")) from None
    return Options(
        candidates=tuple(part.strip() for part in candidates.split(",") if part.strip()),
        limits={name: int(value) for name, value in _numbers(limits, "--limit").items()},
        prices=_numbers(prices, "--price"),
        power_limit_w=watts,
        racks=_racks(racks),
        **more,
    )


def _racks(text: str | None) -> Racks | None:
    from pydantic import ValidationError

    from fleetsim.planning.racks import Racks

    if text is None:
        return None
    count, _, power = text.partition("=")
    try:
        return Racks.model_validate({"count": int(count), "power": power.strip()})
    except (ValueError, ValidationError):
        raise InputError(
            Finding(f'"{text}": expected N=POWER such as 4=40 kW, neither of them zero', "--racks")
        ) from None


def _numbers(texts: tuple[str, ...], option: str) -> dict[str, float]:
    found = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if number < 0 or not name or number != number or (option == "--limit" and number != int(number)):
            what = "a whole number" if option == "--limit" else "a number"
            raise InputError(Finding(f'"{text}": expected NAME={what}, not negative', option))
        found[name.strip()] = number
    return found


def effort_of(time_limit: float, gap: float) -> Effort:
    """How long and how exactly to solve."""
    from fleetsim.planning.solve import Effort

    return Effort(time_limit, gap)


def confidence_of(level: float, max_seeds: int) -> Confidence:
    """How sure to be."""
    from fleetsim.planning.judge import Confidence

    return Confidence(level, min(3, max_seeds), max_seeds)


def tell(plan: Plan) -> None:
    """Print a plan for people."""
    head = f"{show(plan.objective)} {plan.unit}"
    if plan.gap_ratio > 5e-5:
        head += f", at most {plan.gap_ratio:.1%} from the bound of {show(plan.bound)} {plan.unit}"
    click.echo(f"{plan.status}: {head}")
    if plan.proof is not None:
        _tell_proof(plan.proof)
    if plan.table:
        click.echo()
        keys = list(plan.table[0])
        rows = [[_cell(row.get(key, "")) for key in keys] for row in plan.table]
        numbers = [i for i, key in enumerate(keys) if all(not isinstance(row.get(key, 0), str) for row in plan.table)]
        print_table(keys, rows, right=numbers)
    if plan.figures:
        click.echo()
        print_table(("figure", "value"), [[name, _cell(value)] for name, value in plan.figures.items()], right=(1,))
    if plan.prices:
        click.echo()
        for price in plan.prices[:10]:
            click.echo(f"{price} ({price.method})")
    if plan.notes:
        click.echo()
        for note in plan.notes:
            click.echo(f"note: {note}")
    click.echo(f"built in {plan.build_s:.2f} s, solved in {plan.solve_s:.2f} s", err=True)


def _cell(value: Any) -> str:
    if isinstance(value, bool | str):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else show(float(value))


def _tell_proof(proof: Proof) -> None:
    word = "proved" if proof.proved else "NOT proved"
    low, high = proof.attainment_low_ratio, proof.attainment_high_ratio
    click.echo(
        f"{word}: {proof.attainment_mean_ratio:.2%} of requests within the SLO in {proof.seeds} runs "
        f"({proof.confidence:.0%} interval {low:.2%} to {high:.2%}, {proof.target_ratio:.2%} wanted)"
    )
    if proof.reason:
        click.echo(proof.reason)
    click.echo()
    names = [*proof.predicted, *(name for name in proof.simulated if name not in proof.predicted)]
    rows = [[name, _of(proof.predicted, name), _of(proof.simulated, name)] for name in names]
    print_table(("figure", "predicted", "simulated"), rows, right=(1, 2))


def _of(figures: Mapping[str, float], name: str) -> str:
    return show(figures[name]) if name in figures else "–"


def as_mapping(plan: Plan) -> dict[str, Any]:
    """What ``--json`` prints."""
    from dataclasses import asdict

    content = asdict(plan)
    content["gap_ratio"] = plan.gap_ratio
    content["prices"] = [{**asdict(price), "words": str(price)} for price in plan.prices]
    return content


def write_scenario(plan: Plan, scenario: str | None, overrides: tuple[str, ...], out: Path) -> None:
    """Write the scenario with the plan's fleet, ready for `fleetsim run`."""
    from ruamel.yaml import YAML

    if not plan.fleet:
        raise InputError(Finding(f"a plan of kind {plan.kind} is no single fleet that a scenario could have", "--out"))
    planned = _with_fleet(plan, scenario, overrides)
    mapping = planned.resolved
    for part in (mapping["workload"], *mapping["workload"].get("parts", {}).values()):
        path = part.get("path")
        if path is not None and not str(path).startswith("embedded:"):
            part["path"] = str((planned.base_dir / path).absolute())
    yaml = YAML()
    yaml.default_flow_style = False
    with out.open("w", encoding="utf-8") as file:
        yaml.dump(mapping, file)


def _with_fleet(plan: Plan, scenario: str | None, overrides: tuple[str, ...]) -> LoadedScenario:
    from fleetsim.planning.plan import laid_over
    from fleetsim.planning.problems import is_problem, load_problem
    from fleetsim.planning.procurement import StatedProcurement, fleet_of
    from fleetsim.scenario.load import load_scenario
    from fleetsim.scenario.template import scenario_path

    if scenario is None or not is_problem(scenario):
        return laid_over(load_scenario(scenario_path(scenario), overrides), plan.fleet)
    problem = load_problem(scenario).problem
    if not isinstance(problem, StatedProcurement):
        raise InputError(Finding(f"a problem of kind {plan.kind} states no scenario to write", "--out"))
    return fleet_of(problem.loaded(), plan)
