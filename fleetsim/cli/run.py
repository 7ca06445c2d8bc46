"""``fleetsim run``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from fleetsim import plugins
from fleetsim.cli.console import import_option, json_option, print_json, print_table, set_option
from fleetsim.cli.explain import explained, tell
from fleetsim.cli.live import looking_on
from fleetsim.cli.progress import watching
from fleetsim.errors import InputError
from fleetsim.experiment.run import Result, run
from fleetsim.scenario.load import load_scenario
from fleetsim.scenario.template import scenario_path
from fleetsim.units import show

SLO_MISSED, INTERRUPTED = 3, 130


@click.command()
@click.argument("scenario", required=False)
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Folder of the results [fleetsim-out/NAME].")
@set_option
@json_option
@click.option("--check", is_flag=True, help="Verify the laws of the simulation while it runs.")
@click.option("--fail-on-slo", is_flag=True, help="End with exit code 3 if the SLO is missed.")
@import_option
@click.option(
    "--explain", multiple=True, type=int, metavar="REQUEST", help="Tell why a request went where it went; repeatable."
)
@click.option("--what-if", is_flag=True, help="With --explain: run again with each other replica, and compare.")
@click.option("--force", is_flag=True, help="Run although the SLO is below what physics allows.")
@click.option("--live", is_flag=True, help="Show what each pool is doing while it runs.")
@click.option("--report", "with_report", is_flag=True, help="Write report.html into the folder of the results.")
@click.option("--quiet", "-q", is_flag=True, help="No progress, warnings or files; the answer only.")
def command(
    scenario: str | None,
    out: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
    check: bool,
    fail_on_slo: bool,
    allow_import: bool,
    explain: tuple[int, ...],
    what_if: bool,
    force: bool,
    live: bool,
    with_report: bool,
    quiet: bool,
) -> int:
    """Simulate SCENARIO (a file, `embedded:NAME`, or a small example if left out).

    Says whether the fleet keeps up and by which rule, then the figures, then where the tables are.
    Exit codes: 0 done, 1 failed, 2 bad input, 3 SLO missed with --fail-on-slo, 130 interrupted.
    """
    with plugins.allowing_imports(allow_import):
        loaded = load_scenario(scenario_path(scenario), overrides)
        if fail_on_slo and loaded.scenario.slo is None:
            raise InputError("--fail-on-slo: the scenario has no `slo`")
        if what_if and not explain:
            raise InputError("--what-if: name a request with --explain")
        with looking_on(live) as watch, watching(not quiet and not live) as progress:
            result = run(
                loaded,
                out,
                check=check,
                allow_import=allow_import,
                progress=progress,
                watch=watch,
                force=force,
                explain=explain,
            )
        decisions = explained(result, explain, lambda **steer: run(loaded, **steer, force=force), what_if)
    if not quiet:
        for warning in result.warnings:
            click.echo(f"warning: {warning}", err=True)
    page = _report(result) if with_report else None
    if as_json:
        print_json(
            {**contract(result), **({"decisions": decisions} if explain else {}), **({"report": page} if page else {})}
        )
    else:
        _tell(result, quiet)
        for decision in decisions:
            tell(decision)
        if page is not None:
            click.echo(f"{page}: opens in any browser")
        if scenario is None and not quiet:
            click.echo(
                f"\nnext: fleetsim report {result.out}; fleetsim init, edit scenario.yaml, fleetsim run scenario.yaml",
                err=True,
            )
    if result.interrupted:
        return INTERRUPTED
    return SLO_MISSED if fail_on_slo and not result.slo_met else 0


def _report(result: Result) -> Path:
    from fleetsim.reporting.build import report

    return report(result.out)


def contract(result: Result) -> dict[str, Any]:
    """What ``--json`` prints."""
    return {
        "verdict": result.verdict,
        "verdict_reason": result.verdict_reason,
        "slo_met": result.slo_met,
        "out": str(result.out),
        "wall_s": result.wall_s,
        "events": result.events,
        "requests_per_wall_s": _per_wall_s(result),
        "summary": result.summary,
        "warnings": result.warnings,
        "assumptions": result.assumptions,
        "extrapolated": result.extrapolated,
        "files": [str(file) for file in result.files],
    }


def _per_wall_s(result: Result) -> float:
    return float(result.summary["requests"]) / result.wall_s if result.wall_s > 0 else 0.0


def _tell(result: Result, quiet: bool) -> None:
    summary = result.summary
    click.echo(f"{result.verdict}: {result.verdict_reason}")
    if result.slo_met is not None:
        word = "met" if result.slo_met else "missed"
        click.echo(f"SLO {word}: {summary['slo_attainment_ratio']:.2%} of requests within all limits")
    click.echo()
    print_table(("latency", "mean", "± 95 %", "p50", "p90", "p95", "p99"), _latencies(summary), right=range(1, 7))
    click.echo()
    by_pool = [group for group in result.groups if group["by"] == "pool"]
    if len(by_pool) > 1:
        print_table(
            ("pool", "finished", "ttft p50", "ttft p99", "tpot p50", "within SLO"),
            map(_pool, by_pool),
            right=range(1, 6),
        )
        click.echo()
    print_table(("figure", "value"), _figures(summary), right=(1,))
    if quiet:
        return
    click.echo()
    if result.assumptions:
        click.echo(f"assumed, not published: {'; '.join(result.assumptions)}")
    if result.extrapolated:
        click.echo(f"beyond what was measured: {'; '.join(result.extrapolated)}")
    click.echo(f"{result.out}: {', '.join(file.name for file in result.files)}")
    speed = show(_per_wall_s(result), "requests/s")
    click.echo(f"{result.events:,} events in {result.wall_s:.2f} s, {speed}", err=True)


_LATENCIES = {
    "time to first token": "ttft",
    "time per output token": "tpot",
    "between tokens": "itl",
    "end to end": "e2el",
    "queue wait": "queue_wait",
}


def _latencies(summary: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for title, name in _LATENCIES.items():
        mean, *quantiles = (_seconds(summary.get(f"{name}_{stat}_s")) for stat in ("mean", "p50", "p90", "p95", "p99"))
        low, high = summary.get(f"{name}_mean_ci_low_s"), summary.get(f"{name}_mean_ci_high_s")
        half = "" if low is None or high is None else _seconds((high - low) / 2, 2)
        if mean:
            rows.append([title, mean, half, *quantiles])
    return rows


def _pool(group: Mapping[str, Any]) -> list[str]:
    """A pool's row in the table of pools."""
    times = [_seconds(group[key]) for key in ("ttft_p50_s", "ttft_p99_s", "tpot_p50_s")]
    met = group["slo_attainment_ratio"]
    return [group["value"], f"{group['finished']:,}", *times, "" if met is None else f"{met:.2%}"]


def _seconds(value: float | None, digits: int = 4) -> str:
    if value is None:
        return ""
    return show(value, "s", digits) if value >= 1 else show(value * 1e3, "ms", digits)


_FIGURES = (
    ("requests finished", "finished", ""),
    ("requests rejected", "rejected", ""),
    ("requests failed", "failed", ""),
    ("requests unfinished", "unfinished", ""),
    ("bad rows skipped", "skipped_rows", ""),
    ("goodput", "goodput_requests_per_s", "requests/s"),
    ("output", "output_tokens_per_s", "tokens/s"),
    ("computed tokens", "compute_bound_ratio", "of what peak arithmetic allows"),
    ("prefix cache hits", "prefix_hit_ratio", "of prompt tokens"),
    ("loaded from the host", "kv_host_ratio", "of prompt tokens"),
    ("loaded from drives", "kv_ssd_ratio", "of prompt tokens"),
    ("fetched from the store", "kv_store_ratio", "of prompt tokens"),
    ("preemptions", "preemptions", ""),
    ("simulated time", "makespan_s", "s"),
    ("mean power", "power_mean_w", "W"),
    ("largest power of a row", "power_budget_peak_ratio", "of its budget"),
    ("brakes pulled", "power_brakes", ""),
    ("below the usual clock or cap", "power_capped_s", "s of all replicas"),
    ("throttled by heat", "throttled_s", "s of all replicas"),
    ("asleep", "asleep_s", "s of all replicas"),
    ("energy", "energy_j", "J"),
    ("energy per output token", "energy_per_output_token_j", "J"),
    ("carbon", "carbon_g", "g"),
    ("cost", "cost_usd", "USD"),
    ("cost per million output tokens", "cost_per_million_output_tokens_usd", "USD"),
)
_ONLY_IF_ANY = {"rejected", "failed", "unfinished", "skipped_rows", "preemptions"} | {
    "power_brakes",
    "power_capped_s",
    "throttled_s",
    "asleep_s",
}


def _figures(summary: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for title, key, unit in _FIGURES:
        value = summary.get(key)
        if value is None or (key in _ONLY_IF_ANY and not value):
            continue
        if unit.startswith("of "):
            rows.append([title, f"{value:.2%} {unit}"])
        else:
            rows.append([title, f"{value:,}" if isinstance(value, int) else show(value, unit)])
    return rows
