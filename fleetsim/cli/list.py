"""``fleetsim list``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click

from fleetsim.cli.console import json_option, print_json, print_table
from fleetsim.units import show, show_bytes

if TYPE_CHECKING:
    from fleetsim.catalog.accelerator import Accelerator

Rows = Iterable[dict[str, str]]


def _policies(of: str | None = None) -> Rows:
    from fleetsim import plugins

    listed = [row for row in plugins.listing() if of is None or row.kind == of]
    tagged = of is not None and any(row.tags for row in listed)
    for row in listed:
        yield {
            "kind": row.kind,
            "name": row.name,
            "summary": row.summary,
            **({"tags": row.tags} if tagged else {}),
            "package": f"{row.package} {row.version}".strip(),
        }


def _accelerators() -> Rows:
    from fleetsim.catalog.accelerator import load_accelerator
    from fleetsim.catalog.data import names

    for name in names("accelerator"):
        chip = load_accelerator(name)
        price = "–" if chip.price_usd_per_h is None else show(chip.price_usd_per_h)
        yield {
            "name": name,
            "memory": show_bytes(chip.memory_bytes),
            "bandwidth": show(chip.bandwidth_bytes_per_s / 1e9, "GB/s"),
            "bf16": _peak(chip, "bf16") if chip.half == "bf16" else f"{_peak(chip, chip.half)} ({chip.half})",
            "fp8": _peak(chip, "fp8"),
            "link": chip.link,
            "power": show(chip.power.limit_w, "W"),
            "USD/h": price,
            "status": chip.status,
        }


def _peak(chip: Accelerator, dtype: str) -> str:
    return show(chip.peak_flop_per_s[dtype] / 1e12, "TFLOPS") if dtype in chip.peak_flop_per_s else "–"


def _llms() -> Rows:
    from fleetsim.catalog.data import names
    from fleetsim.catalog.llm import load_llm

    for name in names("llm"):
        llm = load_llm(name)
        yield {
            "name": name,
            "parameters": show(llm.parameters_total / 1e9, "B", 3),
            "active": show(llm.parameters_active / 1e9, "B", 3),
            "layers": str(llm.layers),
            "attention": llm.attention,
            "weights": f"{show_bytes(llm.weight_bytes())} ({llm.native_dtype})",
            "KV per token": show(llm.kv_bytes_per_token() / 1024, "KiB"),
            "context": f"{llm.context_tokens:,}",
        }


def _encoders() -> Rows:
    from fleetsim.catalog.data import names
    from fleetsim.catalog.encoder import load_encoder

    for name in names("encoder"):
        encoder = load_encoder(name)
        yield {
            "name": name,
            "title": encoder.title,
            "parameters": show(encoder.parameters / 1e6, "M", 3),
            "layers": str(encoder.layers),
            "patches per token": str(encoder.patches_per_token),
        }


def _links() -> Rows:
    from fleetsim.catalog.data import names
    from fleetsim.catalog.link import load_link

    for name in names("link"):
        link = load_link(name)
        yield {
            "name": name,
            "title": link.title,
            "bandwidth": show(link.bandwidth_bytes_per_s / 1e9, "GB/s"),
            "reached": show(link.effective_bytes_per_s(2) / 1e9, "GB/s"),
            "latency": show(link.start_s(2) * 1e6, "µs"),
        }


def _grids() -> Rows:
    from fleetsim.catalog.data import names
    from fleetsim.catalog.grid import load_grid

    for name in names("grid"):
        grid = load_grid(name)
        for dimension, seasons in grid.days.items():
            day = seasons["year"]
            scale, unit = (1.0, "g/kWh") if dimension == "carbon intensity" else (1e3, "USD/MWh")
            yield {
                "name": name,
                "title": grid.title,
                "what": dimension,
                "mean": show(sum(day) / 24 * scale, unit),
                "lowest hour": f"{day.index(min(day))}: {show(min(day) * scale, unit)}",
                "highest hour": f"{day.index(max(day))}: {show(max(day) * scale, unit)}",
                "source": grid.sources[dimension],
            }


def _prices() -> Rows:
    from fleetsim.catalog.data import names
    from fleetsim.catalog.price import load_prices

    for name in names("price"):
        for offer in load_prices(name):
            yield {
                "name": name,
                "provider": offer.provider,
                "region": offer.region,
                "term": offer.term,
                "USD/h": show(offer.usd_per_h),
                "source": offer.sourced.source,
                "note": offer.sourced.note,
            }


def _qualities() -> Rows:
    from fleetsim.catalog.data import names
    from fleetsim.quality.profile import load_quality

    for name in names("quality"):
        profile = load_quality(name)
        for model, fitted in profile.models.items():
            yield {
                "name": name,
                "model": model,
                "ability": show(fitted.ability),
                "domains": ", ".join(profile.domains),
                "log-loss held out": show(profile.fit.log_loss),
                "of means": show(profile.fit.log_loss_domain_mean),
                "source": profile.source,
            }


def _traces() -> Rows:
    from fleetsim.workload.traces import list_traces

    for trace in list_traces():
        yield trace.row()


def _profiles() -> Rows:
    from fleetsim.workload.profiles import list_profiles

    for profile in list_profiles():
        yield {
            "name": profile.name,
            "requests": f"{profile.requests:,}",
            "rate": "–" if profile.rate is None else show(profile.rate, "req/s"),
            "source": str(profile.figures.get("source", "")),
        }


def _metrics() -> Rows:
    from fleetsim.metrics.definitions import METRICS

    for metric in METRICS:
        aliases = ", ".join(f"{tool}: {name}" for tool, name in metric.aliases.items())
        yield {"name": metric.name, "unit": metric.unit, "formula": metric.formula, "elsewhere": aliases}


def _scenarios() -> Rows:
    from fleetsim.scenario.template import embedded_scenarios

    for name, summary in embedded_scenarios().items():
        yield {"name": f"embedded:{name}", "summary": summary}


def _sweeps() -> Rows:
    from fleetsim.sweeping.sweep_file import embedded_sweeps

    for name, summary in embedded_sweeps().items():
        yield {"name": name, "summary": summary}


def _plans() -> Rows:
    from fleetsim.planning.problems import embedded_problems

    for name, summary in embedded_problems().items():
        yield {"name": name, "summary": summary}


def _papers() -> Rows:
    from fleetsim.reproduce.paper import load_paper, paper_names, paper_path
    from fleetsim.reproduce.reproduce import recorded

    for name in paper_names():
        file = load_paper(paper_path(name))
        yield {
            "name": name,
            "title": file.paper.paper.title,
            "speed": file.paper.speed,
            "recorded": recorded(file).verdict,
        }


KINDS: dict[str, Callable[[], Rows]] = {
    "policies": _policies,
    "accelerators": _accelerators,
    "llms": _llms,
    "encoders": _encoders,
    "links": _links,
    "grids": _grids,
    "prices": _prices,
    "qualities": _qualities,
    "traces": _traces,
    "profiles": _profiles,
    "metrics": _metrics,
    "scenarios": _scenarios,
    "sweeps": _sweeps,
    "plans": _plans,
    "papers": _papers,
}


def _of(kind: str, of: str) -> Rows:
    """Only policies of one kind."""
    from fleetsim.errors import InputError, nearest
    from fleetsim.plugins import GROUPS

    if kind != "policies":
        raise InputError(f"{kind} have no kinds: only `fleetsim list policies` takes one")
    if of not in GROUPS:
        raise InputError(f'no kind of policies "{of[:60]}". {nearest(of, GROUPS, "kinds")}')
    return _policies(of)


@click.command()
@click.argument("kind", type=click.Choice(list(KINDS)), metavar="KIND")
@click.argument("of", required=False, metavar="[POLICIES]")
@json_option
def command(kind: str, of: str | None, as_json: bool) -> None:
    """What can be named in a scenario.

    KIND is policies, accelerators, llms, encoders, links, grids, prices, qualities, traces, profiles, metrics,
    scenarios, sweeps, plans or papers.
    POLICIES is a kind of policies, such as routers or schedulers: `fleetsim list policies routers`.
    """
    rows = list(KINDS[kind]() if of is None else _of(kind, of))
    if as_json:
        print_json({"kind": kind, "items": rows})
    elif rows:
        numbers = [i for i, key in enumerate(rows[0]) if all(row[key][:1].isdigit() or row[key] == "–" for row in rows)]
        print_table(list(rows[0]), ([*row.values()] for row in rows), right=numbers)
    else:
        click.echo(f"no {kind}", err=True)
