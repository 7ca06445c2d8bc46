"""A scenario as others read it: JSON Schema for editors, the resolved mapping, and its digest."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from fleetsim.scenario.schema import Scenario

DIALECT = "http://json-schema.org/draft-07/schema#"


def resolved_mapping(scenario: Scenario) -> dict[str, Any]:
    """The scenario as a mapping with all defaults filled in.

    Quantities are text with their base unit, so that the mapping loads back to the same scenario; fields that are not
    set and have no default are left out.
    """
    return scenario.model_dump(mode="json", by_alias=True, exclude_none=True)


def canonical_json(scenario: Scenario) -> str:
    """The resolved scenario as JSON with sorted keys and no spaces."""
    mapping = resolved_mapping(scenario)
    return json.dumps(mapping, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(scenario: Scenario) -> str:
    """SHA-256 of the resolved scenario: equal for files that say the same. Contents of traces are not part of it."""
    return hashlib.sha256(canonical_json(scenario).encode()).hexdigest()


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 7) of a scenario file, with every policy that is installed here, third parties' included.

    A file that extends another may leave out what it inherits, so everything is there twice: as it must be in a file
    that stands alone, and with nothing required.
    """
    root = Scenario.model_json_schema(ref_template="#/definitions/{model}")
    definitions = root.pop("$defs", {})
    whole, definitions = _draft7(root), _draft7(definitions)
    part = _partial(whole)
    part["properties"] = {"extends": _EXTENDS, **part["properties"]}
    return {
        "$schema": DIALECT,
        "title": whole.pop("title"),
        "description": whole.pop("description"),
        "type": "object",
        "if": {"required": ["extends"]},
        "then": part,
        "else": whole,
        "definitions": {**definitions, **{f"{_PART}{name}": _partial(d) for name, d in definitions.items()}},
    }


_EXTENDS = {
    "type": "string",
    "description": "Another scenario file, relative to this one, that this one is laid over.",
}
_PART = "part."


def _partial(node: Any) -> Any:
    """The same with nothing required and variants open."""
    if isinstance(node, list):
        return [_partial(child) for child in node]
    if not isinstance(node, dict):
        return node
    if isinstance(node.get("$ref"), str):
        return {"$ref": node["$ref"].replace("#/definitions/", f"#/definitions/{_PART}")}
    open_ = {key: _partial(child) for key, child in node.items() if not (key == "required" and isinstance(child, list))}
    return {"anyOf" if key == "oneOf" else key: child for key, child in open_.items()}


def _draft7(node: Any) -> Any:
    """Draft 7 ignores what stands beside ``$ref``: wrap the reference so that descriptions and defaults count."""
    if isinstance(node, list):
        return [_draft7(child) for child in node]
    if not isinstance(node, dict):
        return node
    node = {key: _draft7(child) for key, child in node.items() if key != "discriminator"}
    if "pattern" in node and "unit" in node and node.get("default"):
        node["default"] = f"{node['default']:g} {'req/s' if node['unit'] == '1/s' else node['unit']}"
    if "$ref" in node and len(node) > 1:
        return {"allOf": [{"$ref": node.pop("$ref")}], **node}
    return node
