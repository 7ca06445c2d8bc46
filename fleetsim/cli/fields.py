"""Fields of scenario blocks and of policies as rows of a Markdown table."""

from __future__ import annotations

from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from fleetsim.plugins import Choice, FileName, PolicyField
from fleetsim.units import Quantity


def plain(text: str) -> str:
    """A docstring's text as Markdown."""
    return text.replace("``", "`")


def cell(text: str) -> str:
    """Text in a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def parameters(config: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Name, default, range and meaning of each parameter, those of blocks inside blocks by their path."""
    for name, field in config.model_fields.items():
        marks = [*field.metadata, *marks_of(field.annotation)]
        shown = f"`{prefix}{field.alias or name}`"
        yield shown, default_of(field, marks), range_of(field, marks), plain(field.description or "")
        for inner in types_of(field.annotation):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from parameters(inner, f"{prefix}{name}.")


def default_of(field: FieldInfo, marks: list[Any]) -> str:
    """What a field is when nobody says, as code; empty if that is nothing."""
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


def range_of(field: FieldInfo, marks: list[Any]) -> str:
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
        str(value) for kind in types_of(field.annotation) if get_origin(kind) is Literal for value in get_args(kind)
    ]
    if choices:
        return ", ".join(choices)
    if bool in types_of(field.annotation):
        return "true or false"
    units: list[Any] = [field.json_schema_extra, *(getattr(mark, "json_schema_extra", None) for mark in marks)]
    unit = next((str(found["unit"]) for found in units if isinstance(found, dict) and "unit" in found), "")
    unit = next((mark.unit for mark in marks if isinstance(mark, Quantity)), unit)
    return f"{' '.join(limits)} {unit}".strip()


def types_of(annotation: Any) -> list[Any]:
    """The types that an annotation allows, without None."""
    if get_origin(annotation) is Annotated:
        return types_of(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for part in get_args(annotation) for kind in types_of(part)]
    return [] if annotation is type(None) else [annotation]


def marks_of(annotation: Any) -> Iterator[Any]:
    """What is annotated anywhere inside, limits unpacked."""
    if get_origin(annotation) is Annotated:
        inner, *marks = get_args(annotation)
        for mark in marks:
            yield mark
            yield from getattr(mark, "metadata", ())
        yield from marks_of(inner)
    elif get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from marks_of(part)
