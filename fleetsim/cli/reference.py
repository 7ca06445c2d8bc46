"""The reference: fields of scenarios, columns of tables, metrics, the catalogue and the commands, written from the code."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any, Literal, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fleetsim.cli.fields import cell, default_of, marks_of, plain, range_of, types_of
from fleetsim.metrics.definitions import METRICS
from fleetsim.output.tables import TABLES
from fleetsim.plugins import PolicyField
from fleetsim.scenario.schema import Scenario

INDEX = "README.md"


def reference_pages() -> dict[str, str]:
    """Markdown by file name."""
    return {
        INDEX: _INDEX,
        "scenario.md": _scenario(),
        "tables.md": _tables(),
        "metrics.md": _metrics(),
        "catalogue.md": _catalogue(),
        "commands.md": _commands(),
    }


_INDEX = """# Reference

Written from the code by `fleetsim docs reference`.

- [Fields of a scenario](scenario.md)
- [Tables and their columns](tables.md)
- [Metrics: formulas, and other tools' names](metrics.md)
- [Catalogue: accelerators, LLMs, links](catalogue.md)
- [Commands](commands.md)
"""


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    names = list(head)
    return [
        f"| {' | '.join(names)} |",
        f"|{'---|' * len(names)}",
        *(f"| {' | '.join(map(cell, row))} |" for row in rows),
        "",
    ]


# --- scenario ---------------------------------------------------------------------------------------------------------


def _scenario() -> str:
    """A section for each block of a scenario, in the order in which they are met."""
    lines = [
        "# Fields of a scenario",
        "",
        "A scenario is YAML; quantities are text with a unit (`200 ms`, `80 GiB`). `fleetsim schema` writes the same as",
        "JSON Schema for editors, and `fleetsim init` a commented file to start from.",
        "",
    ]
    blocks = dict(_blocks(Scenario, ""))
    titles = {model: f"{path or 'the scenario'}" for model, path in blocks.items()}
    for model, path in blocks.items():
        lines += [
            f"({_anchor(model)})=",
            "",
            f"## {f'`{path}`' if path else 'The scenario'}",
            "",
            plain(inspect.cleandoc(model.__doc__ or "")),
            "",
        ]
        lines += _table(("field", "default", "range", "meaning"), _fields(model, titles))
    return "\n".join(lines)


def _anchor(model: type[BaseModel]) -> str:
    module = model.__module__.rpartition(".")[2]  # there are prices of power and of tokens
    return f"block-{module}-{model.__name__}".lower().replace("_", "-")


def _blocks(model: type[BaseModel], path: str) -> Iterator[tuple[type[BaseModel], str]]:
    """Blocks by their path, each before those inside it and once only."""
    met: set[type[BaseModel]] = set()
    waiting = [(model, path)]
    while waiting:
        block, place = waiting.pop(0)
        if block in met:
            continue
        met.add(block)
        yield block, place
        inside = [
            (inner, _below(place, field.alias or name, inner, steps))
            for name, field in block.model_fields.items()
            for inner, steps in _inner(field.annotation)
        ]
        waiting = [*inside, *waiting]


def _below(place: str, name: str, inner: type[BaseModel], steps: str) -> str:
    key, values = _chosen_by(inner)
    chosen = f" ({key}: {', '.join(values)})" if key else ""
    return f"{place.split(' (')[0]}{'.' if place else ''}{name}{steps}{chosen}"


def _chosen_by(block: type[BaseModel]) -> tuple[str, list[str]]:
    """The key that chooses this block among its alternatives, and its values there; empty where there is no choice."""
    for name, field in block.model_fields.items():
        if get_origin(field.annotation) is Literal and (field.is_required() or name == "kind"):
            return field.alias or name, [str(value) for value in get_args(field.annotation)]
    return "", []


def _inner(annotation: Any, steps: str = "") -> Iterator[tuple[type[BaseModel], str]]:
    """Blocks that a value may be or hold, and how they are reached."""
    for kind in types_of(annotation):
        origin = get_origin(kind)
        if origin in (tuple, list):
            yield from _inner(get_args(kind)[0], f"{steps}[]")
        elif origin in (dict, Mapping):
            yield from _inner(get_args(kind)[1], f"{steps}.NAME")
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            yield kind, steps


def _fields(model: type[BaseModel], titles: Mapping[type[BaseModel], str]) -> Iterator[tuple[str, str, str, str]]:
    for name, field in model.model_fields.items():
        marks = [*field.metadata, *marks_of(field.annotation)]
        meaning = plain(field.description or "")
        yield f"`{field.alias or name}`", default_of(field, marks), _value(field, marks, titles), meaning


def _value(field: FieldInfo, marks: list[Any], titles: Mapping[type[BaseModel], str]) -> str:
    """What a value may be; blocks and policies are linked."""
    items = [mark for kind in types_of(field.annotation) for item in get_args(kind) for mark in marks_of(item)]
    for mark in [*marks, *items]:
        if isinstance(mark, PolicyField):
            kind = mark.kind.replace("_", " ")
            return f"one of the [{kind}](../policies/README.md#{kind.replace(' ', '-')})"
    inner = [block for block, _ in _inner(field.annotation) if block in titles]
    if inner:
        return "block: " + ", ".join(f"[{_tag(block)}](#{_anchor(block)})" for block in dict.fromkeys(inner))
    return range_of(field, marks)


def _tag(block: type[BaseModel]) -> str:
    return " or ".join(_chosen_by(block)[1]) or "fields"


# --- tables, metrics, catalogue ---------------------------------------------------------------------------------------


def _tables() -> str:
    lines = [
        "# Tables",
        "",
        "Every run writes these as Parquet, with units, meanings and formulas in the schema of each file. `summary` has one row",
        "per run and `groups` the main figures by pool, class, tenant and model: see [metrics](metrics.md).",
        "",
    ]
    for name, columns in TABLES.items():
        lines += [f"## {name}", ""]
        rows = ((f"`{c.name}`", c.kind, c.unit, c.description, f"`{c.formula}`" if c.formula else "") for c in columns)
        lines += _table(("column", "type", "unit", "meaning", "formula"), rows)
    return "\n".join(lines)


def _metrics() -> str:
    lines = [
        "# Metrics",
        "",
        "One formula per name, and what other tools call the same thing. The words differ: vLLM's ITL is every single gap,",
        "AIPerf's and GuideLLM's the mean per request, which is vLLM's TPOT. In the summary, latencies come as `ttft_mean_s`,",
        "`ttft_p50_s`, `ttft_p90_s`, `ttft_p99_s` and so on.",
        "",
    ]
    rows = (
        (f"`{m.name}`", m.unit, m.formula, ", ".join(f"{tool}: `{name}`" for tool, name in m.aliases.items()))
        for m in METRICS
    )
    return "\n".join([*lines, *_table(("name", "unit", "formula", "elsewhere"), rows)])


def _catalogue() -> str:
    from fleetsim.cli.list import KINDS

    lines = [
        "# Catalogue",
        "",
        "What `fleetsim list` shows. Every value stands in `models/` with its unit and source; what nobody published is marked "
        "`assumed` and listed with each result.",
        "",
    ]
    for what in ("accelerators", "llms", "links", "profiles"):
        rows = list(KINDS[what]())
        lines += [f"## {what.upper() if what == 'llms' else what.capitalize()}", ""]
        lines += _table(rows[0], (row.values() for row in rows))
    return "\n".join(lines)


# --- commands ---------------------------------------------------------------------------------------------------------


def _commands() -> str:
    from fleetsim.cli.main import COMMANDS

    lines = [
        "# Commands",
        "",
        "Exit codes: 0 done, 1 failed, 2 bad input, 3 objective missed with `--fail-on-slo`, 130 interrupted.",
        "",
    ]
    for name, summary in COMMANDS.items():
        found = import_module(f"fleetsim.cli.{name.replace('-', '_')}").command
        lines += [f"## fleetsim {name}", "", summary, ""]
        for title, command in _flat(f"fleetsim {name}", found):
            with click.Context(command, info_name=title, max_content_width=100, terminal_width=100) as context:
                lines += ["```text", command.get_help(context), "```", ""]
    return "\n".join(lines)


def _flat(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        for below, inner in command.commands.items():
            yield from _flat(f"{name} {below}", inner)
