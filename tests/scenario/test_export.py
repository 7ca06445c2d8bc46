"""Schema, resolved scenario and digest."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fleetsim import plugins
from fleetsim.scenario.export import digest, json_schema, resolved_mapping
from fleetsim.scenario.load import load_mapping, load_scenario
from fleetsim.scenario.template import embedded_scenarios, scenario_path

from .conftest import SMALL


@pytest.mark.parametrize("name", sorted(embedded_scenarios()))
def test_resolved_loads_back_to_the_same(name: str) -> None:
    scenario = load_scenario(scenario_path(f"embedded:{name}")).scenario
    again = load_mapping(json.loads(json.dumps(resolved_mapping(scenario)))).scenario
    assert again == scenario
    assert digest(again) == digest(scenario)


def test_digest_is_of_the_meaning(write: Callable[..., Path]) -> None:
    one = load_scenario(write()).scenario
    same = load_scenario(write(SMALL.replace("2 s", "2000 ms").replace("seed: 7", "seed: 7  # lucky"))).scenario
    other = load_scenario(write(SMALL.replace("seed: 7", "seed: 8"))).scenario
    assert digest(one) == digest(same) != digest(other)
    assert re.fullmatch("[0-9a-f]{64}", digest(one))


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for child in value.values():
            yield from nodes(child)
    elif isinstance(value, list):
        for child in value:
            yield from nodes(child)


def test_schema_is_draft_7_and_whole() -> None:
    schema = json_schema()
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    for node in nodes(schema):
        assert not {"$defs", "prefixItems", "discriminator", "x-definitions"} & node.keys()
        if "$ref" in node:
            assert len(node) == 1
            target: Any = schema
            for step in node["$ref"].removeprefix("#/").split("/"):
                target = target[step]


def test_schema_describes_every_field() -> None:
    schema = json_schema()
    for name, definition in schema["definitions"].items():
        for key, field in definition.get("properties", {}).items():
            described = "description" in field or "const" in field
            assert described, f"{name}.{key}"


def test_schema_names_every_policy() -> None:
    text = json.dumps(json_schema())
    for kind in plugins.GROUPS:
        for name in plugins.names(kind):
            assert f'"const": "{name}"' in text


def test_schema_defaults_of_quantities_have_units() -> None:
    for node in nodes(json_schema()):
        if "pattern" in node and "unit" in node and node.get("default"):
            assert re.match(node["pattern"], node["default"]), node


def test_schema_patterns_accept_what_the_loader_accepts() -> None:
    ttft = json_schema()["definitions"]["SloLimits"]["properties"]["ttft"]["anyOf"][0]
    for text in ("500 ms", "2s", "1e-3 s", "40 min", "0.5 h"):
        assert re.match(ttft["pattern"], text)
    for text in ("500", "5 GiB", "-3 ms"):
        assert not re.match(ttft["pattern"], text)


def test_a_file_that_extends_may_leave_everything_out() -> None:
    schema = json_schema()
    assert schema["if"] == {"required": ["extends"]}
    assert "extends" in schema["then"]["properties"]
    assert "extends" not in schema["else"]["properties"]
    parts = {name: part for name, part in schema["definitions"].items() if name.startswith("part.")}
    assert all("required" not in node for node in nodes({**parts, "root": schema["then"]}))
    assert schema["else"]["required"] == ["schema", "name", "workload", "pools"]
