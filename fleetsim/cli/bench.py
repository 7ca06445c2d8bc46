"""``fleetsim bench``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from fleetsim.cli.console import json_option, print_json, print_table
from fleetsim.experiment.bench import GROUPS, bench, cases


@click.command()
@click.option("--quick", is_flag=True, help="A tenth of the requests.")
@json_option
@click.option("--only", multiple=True, type=click.Choice(GROUPS), help="These cases only; repeatable.")
@click.option(
    "--repeat", type=click.IntRange(1, 1000), default=1, show_default=True, help="Runs of each case; the median counts."
)
def command(quick: bool, as_json: bool, only: tuple[str, ...], repeat: int) -> None:
    """Time the simulator on this machine, each case in a fresh process, and beside it what bare events cost.

    \b
    trace     a public trace (in the folder FLEETSIM_DATA, else the embedded one) on 4 replicas of a 70 B model
    million   1 M requests on 64 replicas
    requests  10 k, 100 k and 1 M requests on 64 replicas
    replicas  100 k requests on 10, 100 and 1,000 replicas, each as busy as in the million
    floor     as many events as the million has, in which nothing happens: bare SimPy, and fleetsim's clock
    week      5 M requests in a week of days and nights, on up to 16 autoscaled replicas of a 70 B model (only if asked for)
    routers   100 k requests on 64 replicas with each of many routers, against power-of-two-choices; xllm, which computes prompts
              and answers apart, against power-of-two-choices on both sides of such a fleet (only if asked for)
    orders    20 k requests at twice the rate with each order of the engines' queues, against fcfs (only if asked for)
    model-routers  decisions and feedback of 5 k requests with each model router, among 3 and 16 models, and with each budget
              controller behind `single`: without a fleet, so that events are calls (only if asked for)

    Events and requests depend on the scenario alone; times depend on the machine and on what else it does.
    """  # noqa: D301 - click's mark for lines that stay as they are
    report = bench(cases(quick, only), repeat, lambda line: click.echo(line, err=True))
    if as_json:
        print_json(report)
        return
    print_table(list(_COLUMNS), [_cells(row) for row in report["cases"]], right=range(1, len(_COLUMNS)))
    click.echo()
    click.echo(_conditions(report))


_COLUMNS = {
    "case": ("case", "{}"),
    "requests": ("requests", "{:,}"),
    "replicas": ("replicas", "{:,}"),
    "wall s": ("wall_s", "{:.2f}"),
    "CPU s": ("cpu_s", "{:.2f}"),
    "requests/s": ("requests_per_wall_s", "{:,.0f}"),
    "output tokens/s": ("output_tokens_per_wall_s", "{:,.0f}"),
    "events": ("events", "{:,}"),
    "events/s": ("events_per_wall_s", "{:,.0f}"),
    "events per request": ("events_per_request", "{:.2f}"),
    "CPU µs per request": ("cpu_us_per_request", "{:.1f}"),
    "peak RSS MB": ("peak_rss_bytes", "{:,.0f}"),
    "CPU / plain": ("times_plain", "{:.2f}"),
    "events / plain": ("events_times_plain", "{:.2f}"),
}
"""Key and format of each column by its title."""


def _cells(row: Mapping[str, Any]) -> list[str]:
    scaled = {**row, "peak_rss_bytes": None if row["peak_rss_bytes"] is None else row["peak_rss_bytes"] / 1e6}
    return ["" if scaled.get(key) is None else form.format(scaled[key]) for key, form in _COLUMNS.values()]


def _conditions(report: Mapping[str, Any]) -> str:
    modules = "compiled" if report["compiled"] else "not compiled"
    load = report["load_average"]
    busy = "" if load is None else f", load average {load:.1f} at the start"
    runs = f"; median of {report['repeat']} runs" if report["repeat"] > 1 else ""
    machine = f"{report['machine']}, {report['processors']} processors{busy}"
    return f"hot modules {modules}; {report['python']} on one core; {machine}{runs}"
