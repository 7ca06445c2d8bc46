"""``fleetsim docs``: pages about what is installed, written from the code itself."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import click
from pydantic import BaseModel

from fleetsim import plugins
from fleetsim.cli.fields import cell, marks_of, parameters, plain, types_of
from fleetsim.plugins import Listing, PolicyField

INDEX = "README.md"


@click.command()
@click.argument("what", type=click.Choice(["policies", "reference"]), metavar="WHAT")
@click.option("-o", "--out", type=click.Path(file_okay=False, path_type=Path), help="Default: docs/WHAT.")
@click.option("--package", help="Only policies that this package brings; default: all that are installed.")
def command(what: str, out: Path | None, package: str | None) -> None:
    """Write pages about what is installed here, from the code itself.

    WHAT is policies (a page about every policy, third parties' like fleetsim's own, and an index) or reference
    (fields of scenarios, columns of tables, metrics, the catalogue and the commands).

    Example: fleetsim docs policies --package my-policies -o pages
    """
    if what == "reference":
        from fleetsim.cli.reference import reference_pages

        pages = reference_pages()
    else:
        pages = policy_pages(package)
    out = out or Path("docs") / what
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
            lines.append(f"| {link} | {cell(plain(row.summary))} |")
    return "\n".join(lines) + "\n"


def _where(kind: str, places: Mapping[str, tuple[str, str]]) -> str:
    return f" In a scenario: `{places[kind][0]}`." if kind in places else ""


def _page(row: Listing, places: Mapping[str, tuple[str, str]]) -> str:
    policy = plugins.load(row.kind, row.name)
    lines = [f"# {row.name}", ""]
    if row.kind in places:
        path, key = places[row.kind]
        lines += [f"One of the [{row.kind.replace('_', ' ')}](../{INDEX}): `{path}: {{{key}: {row.name}}}`.", ""]
    lines += [_markdown(inspect.cleandoc(policy.__doc__ or "")), ""]
    if row.tags:
        lines += [f"**Tags:** {row.tags}.", ""]
    lines += ["## Parameters", ""]
    rows = list(parameters(policy.Config))
    if rows:
        lines += ["| name | default | range | meaning |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(map(cell, cells))} |" for cells in rows]
    else:
        lines.append("None.")
    lines += ["", f"From the package {row.package}." if row.package else "", ""]
    return "\n".join(lines).rstrip() + "\n"


def _markdown(text: str) -> str:
    """A docstring as Markdown: underlined headings and marked paragraphs."""
    text = re.sub(r"^(\S[^\n]*)\n-{3,}$\n?", r"## \1\n\n", text, flags=re.MULTILINE)
    text = re.sub(r"^(Rule|Charged|Not modelled|Scope):", r"**\1:**", text, flags=re.MULTILINE)
    return plain(text)


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
        for mark in [*field.metadata, *marks_of(field.annotation)]:
            if isinstance(mark, PolicyField):
                yield mark.kind, path, mark.key
        yield from _inside(field.annotation, path)


def _inside(annotation: Any, path: str) -> Iterator[tuple[str, str, str]]:
    for kind in types_of(annotation):
        if get_origin(kind) in (tuple, list):
            yield from _inside(get_args(kind)[0], f"{path}[]")
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _places(kind, f"{path}.")
