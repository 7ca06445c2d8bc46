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
    return json.dumps(
        resolved_mapping(scenario), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest(scenario: Scenario) -> str:
    """SHA-256 of the resolved scenario: equal for files that say the same. Contents of traces are not part of it."""
    return hashlib.sha256(canonical_json(scenario).encode()).hexdigest()
