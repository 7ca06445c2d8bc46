"""``fleetsim calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fleetsim.cli.console import json_option, print_json, print_table, set_option

if TYPE_CHECKING:
    from fleetsim.calibration.calibrate import Calibrated

_path = click.Path(path_type=Path)


@click.command()
@click.argument("files", type=_path, nargs=-1, required=True, metavar="FILE...")
@click.option("--scenario", metavar="FILE", help="Scenario whose one pool is the server that was measured.")
@click.option("--accelerator", metavar="NAME", help="What a kernel table measured [that of the scenario].")
@click.option("--link", metavar="NAME", help="Link that its all-reduces went over [that of the accelerator].")
@click.option(
    "--concurrency", type=click.IntRange(1), help="The client kept so many requests in flight [the file says]."
)
@click.option(
    "--rate", type=click.FloatRange(0, min_open=True), help="The client sent so many per second [the file says]."
)
@click.option("--out", type=_path, default=Path("calibration.yaml"), show_default=True, help="File to write.")
@click.option("--force", is_flag=True, help="Replace that file if it exists.")
@set_option
@json_option
def command(
    files: tuple[Path, ...],
    scenario: str | None,
    accelerator: str | None,
    link: str | None,
    concurrency: int | None,
    rate: float | None,
    out: Path,
    force: bool,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Fit the few constants of the physics to measurements of one's own, and write them as a calibration file.

    \b
    Kernel tables of `fleetsim profile`      efficiencies of the accelerator, link, power
    vllm bench serve --save-result JSON      host time per step, front end, scale of the engine
    GuideLLM JSON                            (with --scenario; results at several loads together
    AIPerf JSON or JSON lines                 tell more of them apart than one)
    log of requests, CSV, Parquet or JSONL   arrival_s, prompt_tokens, output_tokens, ttft_ms, tpot_ms or e2e_ms

    A scenario then says `engine: {calibration: FILE}`.
    """  # noqa: D301 - click's mark for lines that stay as they are
    from fleetsim.calibration.calibrate import calibrate, write
    from fleetsim.errors import Finding, InputError
    from fleetsim.scenario.load import load_scenario
    from fleetsim.scenario.template import scenario_path

    if out.exists() and not force:
        raise InputError(Finding("exists already: choose another --out, or --force", file=str(out)))
    if concurrency and rate:
        raise InputError("--concurrency and --rate: a client keeps a number in flight or a rate, give one")
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise InputError(
            [Finding("is a folder" if file.is_dir() else "no such file", file=str(file)) for file in missing]
        )
    loaded = load_scenario(scenario_path(scenario), overrides) if scenario is not None else None
    result = calibrate(files, loaded, accelerator, link, concurrency, rate)
    write(result, out, force)
    if as_json:
        print_json({**result.content, "path": out})
        return
    _tell(result, out)


def _tell(result: Calibrated, out: Path) -> None:
    """The answer, then the tables, then the file."""
    if result.engine is not None:
        _tell_engine(result)
    if result.groups:
        _tell_groups(result)
    if result.link is not None:
        found = result.link
        click.echo(
            f"all-reduce: {found.bandwidth_ratio:.1%} of the link's bandwidth, {found.latency_s * 1e6:.3g} us to start; "
            f"median error {found.median_error:.1%} (catalogue {found.before:.1%}), {found.rows} rows to {found.ranks_max} ranks"
        )
    if result.power:
        click.echo("power: " + ", ".join(f"{key} {watts:.0f} W" for key, watts in result.power.items()))
    for line in result.skipped:
        click.echo(f"left out: {line}", err=True)
    click.echo(str(out))
    click.echo(f"next: `engine: {{calibration: {out}}}` in the pool of a scenario", err=True)


def _tell_engine(result: Calibrated) -> None:
    from fleetsim.calibration.calibrate import shown, why_not

    fit = result.engine
    assert fit is not None
    found = ", ".join(f"{c.name} {shown(c.name, c.value)}" for c in fit.constants if c.fitted)
    better = ", ".join(f"{n.upper()} {fit.before[n].median:.1%} -> {e.median:.1%}" for n, e in fit.after.items())
    click.echo(f"{found}; median error {better}\n")
    rows = []
    for constant in fit.constants:
        note = f"± {shown(constant.name, constant.error)}" if constant.fitted else why_not(constant, fit)
        rows.append((constant.name, shown(constant.name, constant.before), shown(constant.name, constant.value), note))
    print_table(("constant", "before", "after", ""), rows, right=(1, 2))
    click.echo()
    errors: list[tuple[Any, ...]] = []
    for name, after in fit.after.items():
        before = fit.before[name]
        cells = (
            f"{before.median:.1%}",
            f"{before.p90:.1%}",
            f"{after.median:.1%}",
            f"{after.p90:.1%}",
            f"{after.count:,}",
        )
        errors.append((name.upper(), *cells))
    heads = ("error", "median before", "p90 before", "median after", "p90 after", "of")
    print_table(heads, errors, right=range(1, 6))
    click.echo()
    print_table(
        ("run", "requests", "sent"),
        [(run.name, f"{len(run.prompt_tokens):,}", run.how) for run in result.runs],
        right=(1,),
    )
    click.echo(
        f"\nseen: up to {fit.batch_max} sequences in a batch, prompts of {fit.prompt_tokens_max:,} tokens, contexts of "
        f"{fit.context_tokens_max:,}; condition number {fit.condition:.0f}, {fit.simulations:,} simulations"
    )


def _tell_groups(result: Calibrated) -> None:
    rows = []
    for one in result.groups:
        constants = one.found.constants
        rows.append(
            (
                f"{one.group} {one.form}",
                f"{constants['compute_ratio']:.3f}",
                f"{constants['memory_ratio']:.3f}",
                f"{constants['overhead_s'] * 1e6:.2f}",
                "–" if one.before != one.before else f"{one.before:.1%}",
                f"{one.found.median_error:.1%}",
                f"{one.found.rows:,}",
            )
        )
    heads = ("operators", "of peak", "of bandwidth", "overhead us", "median error before", "after", "rows")
    print_table(heads, rows, right=range(1, 7))
