"""``fleetsim docs``: pages about what is installed, written from the code itself."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from fleetsim import plugins
from fleetsim.plugins import Choice, FileName, Listing, PolicyField
from fleetsim.units import Quantity

INDEX = "README.md"


@click.command()
@click.argument("what", type=click.Choice(["policies"]), metavar="WHAT")
@click.option(
    "-o", "--out", type=click.Path(file_okay=False, path_type=Path), default=Path("docs/policies"), show_default=True
)
@click.option("--package", help="Only policies that this package brings; default: all that are installed.")
def command(what: str, out: Path, package: str | None) -> None:  # noqa: ARG001
    """Write a page about every policy that is installed here, and an index.

    WHAT is policies. Pages come from the policies' docstrings and parameters, third parties' like fleetsim's own.
    """
    pages = policy_pages(package)
    for name, text in pages.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    click.echo(f"{out / INDEX} and {len(pages) - 1} pages", err=True)


def policy_pages(package: str | None = None) -> dict[str, str]:
    """Markdown by file name: the index, and one page for each policy.

    Parameters
    ----------
    package : str, optional
        Name of the distribution whose policies are meant; default all.
    """
    rows = [row for row in plugins.listing() if package is None or row.package == package]
    places = dict(policy_places())
    pages = {INDEX: _index(rows, places)}
    for row in rows:
        if row.loaded:
            pages[_file(row)] = _page(row, places)
    return pages


def _file(row: Listing) -> str:
    return f"{row.kind}/{re.sub(r'[^A-Za-z0-9._-]', '-', row.name)}.md"


def _index(rows: list[Listing], places: Mapping[str, tuple[str, str]]) -> str:
    lines = ["# Policies", "", "Written by `fleetsim docs policies`; `fleetsim list policies` shows the same lines."]
    for kind, decides in plugins.GROUPS.items():
        own = [row for row in rows if row.kind == kind]
        if not own:
            continue
        lines += [
            "",
            f"## {kind.replace('_', ' ').capitalize()}",
            "",
            f"{decides[0].upper()}{decides[1:]}.{_where(kind, places)}",
            "",
        ]
        lines += ["| name | rule |", "|---|---|"]
        for row in own:
            link = f"[{row.name}]({_file(row)})" if row.loaded else row.name
            lines.append(f"| {link} | {_cell(_plain(row.summary))} |")
    return "\n".join(lines) + "\n"


def _where(kind: str, places: Mapping[str, tuple[str, str]]) -> str:
    return f" In a scenario: `{places[kind][0]}`." if kind in places else ""


def _page(row: Listing, places: Mapping[str, tuple[str, str]]) -> str:
    policy = plugins.load(row.kind, row.name)
    lines = [f"# {row.name}", ""]
    if row.kind in places:
        path, key = places[row.kind]
        lines += [f"One of the [{row.kind.replace('_', ' ')}](../{INDEX}): `{path}: {{{key}: {row.name}}}`.", ""]
    lines += [_markdown(inspect.cleandoc(policy.__doc__ or "")), "", "## Parameters", ""]
    parameters = list(_parameters(policy.Config))
    if parameters:
        lines += ["| name | default | range | meaning |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(map(_cell, cells))} |" for cells in parameters]
    else:
        lines.append("None.")
    lines += ["", f"From the package {row.package}." if row.package else "", ""]
    return "\n".join(lines).rstrip() + "\n"


def _markdown(text: str) -> str:
    """A docstring as Markdown: underlined headings and marked paragraphs."""
    text = re.sub(r"^(\S[^\n]*)\n-{3,}$\n?", r"## \1\n\n", text, flags=re.MULTILINE)
    text = re.sub(r"^(Rule|Charged|Not modelled|Scope):", r"**\1:**", text, flags=re.MULTILINE)
    return _plain(text)


def _plain(text: str) -> str:
    return text.replace("``", "`")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# --- parameters -------------------------------------------------------------------------------------------------------


def _parameters(config: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Name, default, range and meaning of each parameter, those of blocks inside blocks by their path."""
    for name, field in config.model_fields.items():
        marks = [*field.metadata, *_marks(field.annotation)]
        shown = f"`{prefix}{field.alias or name}`"
        yield shown, _default(field, marks), _range(field, marks), _plain(field.description or "")
        for inner in _types(field.annotation):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from _parameters(inner, f"{prefix}{name}.")


def _default(field: FieldInfo, marks: list[Any]) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return "required"
    return "" if value is None else f"`{_text(value, marks)}`"


def _text(value: Any, marks: list[Any]) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Choice):
        return value.name
    if isinstance(value, BaseModel):
        return "{…}"
    quantity = next((mark for mark in marks if isinstance(mark, Quantity)), None)
    if quantity is not None and isinstance(value, float):
        return f"{value:g} {quantity.unit}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_text(item, []) for item in value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _range(field: FieldInfo, marks: list[Any]) -> str:
    """Limits and unit, or what else a value may be."""
    for mark in marks:
        if isinstance(mark, PolicyField):
            return f"one of the {mark.kind.replace('_', ' ')}"
        if isinstance(mark, FileName):
            return "file, relative to the scenario"
    limits = []
    for word, name in (("above", "gt"), ("from", "ge"), ("below", "lt"), ("to", "le")):
        bound = next((getattr(mark, name) for mark in marks if getattr(mark, name, None) is not None), None)
        if bound is not None:
            limits.append(f"{word} {bound:g}" if isinstance(bound, int | float) else f"{word} {bound}")
    choices = [
        str(value) for kind in _types(field.annotation) if get_origin(kind) is Literal for value in get_args(kind)
    ]
    if choices:
        return ", ".join(choices)
    if bool in _types(field.annotation):
        return "true or false"
    units: list[Any] = [field.json_schema_extra, *(getattr(mark, "json_schema_extra", None) for mark in marks)]
    unit = next((str(found["unit"]) for found in units if isinstance(found, dict) and "unit" in found), "")
    unit = next((mark.unit for mark in marks if isinstance(mark, Quantity)), unit)
    return f"{' '.join(limits)} {unit}".strip()


def _types(annotation: Any) -> list[Any]:
    """The types that an annotation allows, without None."""
    if get_origin(annotation) is Annotated:
        return _types(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for part in get_args(annotation) for kind in _types(part)]
    return [] if annotation is type(None) else [annotation]


def _marks(annotation: Any) -> Iterator[Any]:
    """What is annotated anywhere inside, limits unpacked."""
    if get_origin(annotation) is Annotated:
        inner, *marks = get_args(annotation)
        for mark in marks:
            yield mark
            yield from getattr(mark, "metadata", ())
        yield from _marks(inner)
    elif get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from _marks(part)


# --- places -----------------------------------------------------------------------------------------------------------


def policy_places() -> Iterator[tuple[str, tuple[str, str]]]:
    """Kinds of policies that scenarios name: their path in a scenario, and the key that names the policy."""
    from fleetsim.scenario.schema import Scenario

    found: dict[str, None] = {}
    for kind, path, key in _places(Scenario, ""):
        if kind not in found:
            found[kind] = None
            yield kind, (path, key)


def _places(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in model.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        for mark in [*field.metadata, *_marks(field.annotation)]:
            if isinstance(mark, PolicyField):
                yield mark.kind, path, mark.key
        yield from _inside(field.annotation, path)


def _inside(annotation: Any, path: str) -> Iterator[tuple[str, str, str]]:
    for kind in _types(annotation):
        if get_origin(kind) in (tuple, list):
            yield from _inside(get_args(kind)[0], f"{path}[]")
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _places(kind, f"{path}.")
