"""Policies and models by name: entry points, ours and third parties' alike.

A policy class carries a frozen pydantic ``Config``; the scenario's block ``{policy: NAME, ...}`` is validated by it.
Nothing is imported before a scenario names it. A policy given as ``module:Class`` is imported only where the caller
allowed it; in Python the class itself may stand where a scenario has its name.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import PydanticCustomError, core_schema

from fleetsim.errors import nearest

GROUPS = {
    "admissions": "who is let in, put off or turned away",
    "predictors": "output length that the gateway expects",
    "faults": "what breaks, and when",
    "autoscalers": "how many replicas are wanted",
    "fleet_autoscalers": "how many replicas of each pool are wanted, and which turn into those of another",
    "forecasters": "what demand an autoscaler expects",
    "power_managers": "clocks, caps, batch sizes and sleep states",
    "model_routers": "which LLM answers, with which reasoning budget, and whether others are asked too",
    "budgets": "how many samples, rounds and tokens an answer may take",
    "placements": "which LLM a replica holds, and who runs there next",
    "rebalancers": "who moves to which other replica",
    "reuses": "which keys and values are reused that stand behind another start",
    "routers": "replica choice for an admitted request",
    "searches": "which leaves of a search tree go on (workload kind tree-search)",
    "compressions": "how many keys and values a request holds",
    "evictions": "which cached keys and values go first",
    "schedulers": "which requests run in the next step",
    "orders": "who is next in an engine's queue, and who gives way to whom",
    "step_time_models": "duration and energy of a step",
}
"""Plug-in kinds (entry-point group ``fleetsim.<kind>``) and what each decides."""

imports_allowed: ContextVar[bool] = ContextVar("imports_allowed", default=False)
"""Whether ``module:Class`` names may be imported (``--allow-import``)."""


_given: dict[str, type] = {}


def given(policy: type) -> str:
    """Name by which scenarios of this process mean a class that was handed over in Python; of equal names the last counts."""
    name = f"{policy.__module__}:{policy.__qualname__}"
    _given[name] = policy
    return name


@contextmanager
def allowing_imports(allowed: bool) -> Iterator[None]:
    """Let scenario files name policies by import path inside this block."""
    token = imports_allowed.set(allowed)
    try:
        yield
    finally:
        imports_allowed.reset(token)


class PolicyConfig(BaseModel):
    """Base of every policy's parameters: frozen, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class FileName:
    """Marks a policy's parameter as the name of a file, relative to the scenario that says it."""


ScenarioFile = Annotated[str, FileName()]
"""Type of such a parameter; a policy is built with the whole path."""


@dataclass(frozen=True, slots=True)
class Listing:
    """One line of ``fleetsim list policies``."""

    kind: str
    name: str
    summary: str
    package: str
    version: str
    loaded: bool = True
    """Whether its code could be imported."""
    tags: str = ""
    """What kind of policy it is, where its class says so."""


@cache
def _installed() -> Any:
    """Entry points of all packages (`EntryPoints` or what came before it): their files are read once, not once a kind."""
    return entry_points()


@cache
def _entries(kind: str) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in _installed().select(group=f"fleetsim.{kind}")}


def names(kind: str) -> list[str]:
    """Registered names of one kind, sorted."""
    return sorted(_entries(kind))


def load(kind: str, name: str) -> Any:
    """Class registered under `name`, handed over in Python, or imported from ``module:Class`` where that is allowed.

    Raises
    ------
    LookupError
        With a hint, if there is no such name or an import path is not allowed here.
    """
    entry = _entries(kind).get(name)
    if entry is not None:
        return _loaded(entry)
    if name in _given:
        return _given[name]
    if ":" in name:
        if not imports_allowed.get():
            raise LookupError(f'"{name}" is an import path: scenario files cannot run code (--allow-import permits it)')
        module, _, attribute = name.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except Exception as error:
            raise LookupError(f'cannot import "{name}": {error}') from error
    raise LookupError(f'unknown policy "{name}". {nearest(name, _entries(kind), kind)}')


def _loaded(entry: EntryPoint) -> Any:
    try:
        return entry.load()
    except Exception as error:
        package = entry.dist.name if entry.dist else entry.value
        raise LookupError(
            f'the plug-in "{entry.name}" of {package} cannot be loaded: {type(error).__name__}: {error}'
        ) from error


def listing() -> list[Listing]:
    """All registered policies and models."""
    rows = []
    for kind in GROUPS:
        for name, entry in sorted(_entries(kind).items()):
            tags = ""
            try:
                policy = _loaded(entry)
                summary, loaded = (policy.__doc__ or "").strip().split("\n")[0], True
                tags = str(getattr(policy, "tags", ""))
            except LookupError as error:
                summary, loaded = str(error), False
            dist = entry.dist
            package, version = (dist.name, dist.version) if dist else ("", "")
            rows.append(Listing(kind, name, summary, package, version, loaded, tags))
    return rows


@dataclass(frozen=True, slots=True)
class Choice:
    """A validated policy block: the name, and the policy's own config."""

    kind: str
    name: str
    config: BaseModel

    def located(self, base_dir: Path) -> Choice:
        """The same policy with the files that its parameters name found from `base_dir`, the scenario's folder."""
        fields = type(self.config).model_fields
        named = [name for name, field in fields.items() if any(isinstance(mark, FileName) for mark in field.metadata)]
        if not named:
            return self
        files = {name: str(base_dir / getattr(self.config, name)) for name in named}
        return replace(self, config=self.config.model_copy(update=files))

    def create(self, *args: Any) -> Any:
        """The policy object, built from its config and what its kind is given at construction."""
        return load(self.kind, self.name)(self.config, *args)

    def says(self, trait: str) -> bool:
        """Whether the policy's class has a true attribute of this name."""
        return bool(getattr(load(self.kind, self.name), trait, False))

    def as_mapping(self, key: str = "policy") -> dict[str, Any]:
        """The block as it would stand in a scenario file, defaults filled in."""
        return {key: self.name, **self.config.model_dump(mode="json", exclude_none=True)}


def _inlined(node: Any, definitions: dict[str, Any]) -> Any:
    """A JSON schema with each reference replaced by what it stands for: a policy's parts are nobody else's."""
    if isinstance(node, list):
        return [_inlined(child, definitions) for child in node]
    if not isinstance(node, dict):
        return node
    if isinstance(node.get("$ref"), str):
        return _inlined(definitions[node["$ref"].removeprefix("#/$defs/")], definitions)
    return {key: _inlined(child, definitions) for key, child in node.items()}


@dataclass(frozen=True)
class PolicyField:
    """Annotation of a config field that holds a policy block of one kind."""

    kind: str
    key: str = "policy"
    default: str | None = None
    """Whose parameters a block without a name holds."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(lambda c: c.as_mapping(self.key)),
        )

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        options: list[dict[str, Any]] = [{"type": "string", "enum": names(self.kind)}]
        for name in names(self.kind):
            policy = load(self.kind, name)
            option = policy.Config.model_json_schema()
            option = _inlined(option, option.pop("$defs", {}))
            option.setdefault("properties", {})[self.key] = {
                "const": name,
                "description": (policy.__doc__ or "").strip(),
            }
            option["required"] = [*([] if name == self.default else [self.key]), *option.get("required", [])]
            option["title"] = name
            options.append(option)
        return {"oneOf": options}

    def _validate(self, value: Any) -> Choice:
        if isinstance(value, Choice):
            return value
        if isinstance(value, str):
            value = {self.key: value}
        if isinstance(value, dict) and self.default is not None:
            value = {self.key: self.default, **value}
        if not isinstance(value, dict) or not isinstance(value.get(self.key), str):
            raise PydanticCustomError(
                "policy_block",
                "expected a block with `{key}: NAME`; known: {known}",
                {"key": self.key, "known": ", ".join(names(self.kind))},
            )
        name = value[self.key]
        try:
            policy = load(self.kind, name)
        except LookupError as error:
            raise PydanticCustomError("unknown_policy", "{reason}", {"reason": str(error), "key": self.key}) from None
        config = getattr(policy, "Config", None)
        if not (isinstance(config, type) and issubclass(config, BaseModel)):
            reason = f'"{name}" is no policy: a class with a `Config` model is'
            raise PydanticCustomError("unknown_policy", "{reason}", {"reason": reason, "key": self.key})
        return Choice(self.kind, name, config.model_validate({k: v for k, v in value.items() if k != self.key}))
