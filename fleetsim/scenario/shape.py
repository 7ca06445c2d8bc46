"""What the schema says at a path: which block, which keys, which key chooses between variants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fleetsim import plugins
from fleetsim.plugins import PolicyField
from fleetsim.scenario.schema import Scenario
from fleetsim.scenario.source import Located
from fleetsim.scenario.timed import Timed


@dataclass(frozen=True, slots=True)
class Shape:
    """Type of a value in the scenario, with variants resolved on demand."""

    annotation: Any
    discriminator: str | None = None
    """Key that chooses between variants."""
    policy: PolicyField | None = None
    """Set where the variants are plug-ins."""

    @property
    def model(self) -> type[BaseModel] | None:
        """The block's model, if there is just one."""
        return self.annotation if isinstance(self.annotation, type) and issubclass(self.annotation, BaseModel) else None

    def variant_of(self, block: Located) -> object:
        """Name of the variant that a block in the file chooses."""
        if isinstance(block.value, str) and self.policy is not None:
            return block.value
        named = block.child(self.discriminator) if self.discriminator else None
        return named.value if named else self.policy.default if self.policy else None

    def variants(self) -> dict[str, type[BaseModel]]:
        """Models by the value of the discriminator; empty where there is no choice. Plug-ins are not imported here."""
        found: dict[str, type[BaseModel]] = {}
        for member in get_args(self.annotation) if self.discriminator and self.policy is None else ():
            literal = member.model_fields[self.discriminator].annotation
            if get_origin(literal) is Literal:
                found.update(dict.fromkeys(get_args(literal), member))
        return found

    def chosen(self, tag: object) -> Shape:
        """The variant that `tag` names, or this shape again."""
        if self.policy is not None and isinstance(tag, str):
            try:
                return Shape(plugins.load(self.policy.kind, tag).Config)
            except LookupError:
                return self
        variant = self.variants().get(tag) if isinstance(tag, str) else None
        return Shape(variant) if variant else self

    def below(self, step: str | int) -> Shape | None:
        """Shape of a field, an item or a mapping's value."""
        if self.model is not None:
            field = _field(self.model, step)
            return None if field is None else _of_field(field)
        origin, arguments = get_origin(self.annotation), get_args(self.annotation)
        if origin in (tuple, list) and isinstance(step, int) and arguments:
            return shape_of(arguments[0])
        if origin in (dict, Mapping) and isinstance(step, str):
            return shape_of(arguments[1])
        return None

    def keys(self) -> list[str]:
        """Keys that a block of this shape may have; none if it is no block."""
        if self.model is None:
            return [self.discriminator] if self.discriminator else []
        return [field.alias or name for name, field in self.model.model_fields.items()]


ROOT = Shape(Scenario)


def shape_of(annotation: Any, metadata: tuple[Any, ...] = ()) -> Shape:
    """Shape of a type annotation: ``Annotated`` and ``| None`` taken off."""
    discriminator: str | None = None
    policy: PolicyField | None = None
    while True:
        for mark in metadata:
            if isinstance(mark, PolicyField):
                policy, discriminator = mark, mark.key
            elif isinstance(mark, FieldInfo) and isinstance(mark.discriminator, str):
                discriminator = mark.discriminator
            elif isinstance(mark, Timed):
                annotation = mark.block
        if get_origin(annotation) is Annotated:
            annotation, *rest = get_args(annotation)
            metadata = tuple(rest)
            continue
        members = [m for m in get_args(annotation) if m is not NoneType]
        if get_origin(annotation) in (Union, UnionType) and len(members) == 1:
            annotation, metadata = members[0], ()
            continue
        return Shape(annotation, discriminator, policy)


def _of_field(field: FieldInfo) -> Shape:
    shape = shape_of(field.annotation, tuple(field.metadata))
    if isinstance(field.discriminator, str):
        return Shape(shape.annotation, field.discriminator)
    return shape


def _field(model: type[BaseModel], step: str | int) -> FieldInfo | None:
    for name, field in model.model_fields.items():
        if step in (name, field.alias):
            return field
    return None
