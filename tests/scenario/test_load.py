"""Whole files: what loads, and that every mistake is told once, with its place and what would be right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fleetsim import plugins
from fleetsim.errors import Finding, ScenarioError
from fleetsim.scenario.load import load_mapping, load_scenario
from fleetsim.scenario.template import embedded_scenarios, scenario_path

from .conftest import SMALL

Find = Callable[..., list[Finding]]


def changed(old: str, new: str) -> str:
    assert SMALL.count(old) == 1
    return SMALL.replace(old, new)


def test_small_scenario(write: Callable[..., Path]) -> None:
    path = write()
    loaded = load_scenario(path)
    assert loaded.scenario.name == "small"
    assert loaded.scenario.slo is not None
    assert loaded.scenario.slo.tpot == pytest.approx(0.1)
    assert loaded.base_dir == path.parent
    assert loaded.path == path
    assert loaded.resolved["pools"][0]["engine"]["kv"]["block_tokens"] == 16


@pytest.mark.parametrize("name", sorted(embedded_scenarios()))
def test_embedded_scenarios_load(name: str) -> None:
    folder, _, stem = name.rpartition("/")
    assert load_scenario(scenario_path(f"embedded:{name}")).scenario.name in (stem, f"{folder}-{stem}", folder)


def test_every_embedded_scenario_says_in_a_line_what_it_is() -> None:
    summaries = embedded_scenarios()
    assert {"quickstart", "chaos/partition", "models/three-models"} <= summaries.keys()
    assert all(30 < len(summary) < 200 for summary in summaries.values())


def test_unknown_embedded_scenario() -> None:
    with pytest.raises(ScenarioError, match="did you mean"):
        scenario_path("embedded:quikstart")


CASES = {
    "unknown key": ("seed: 7", "sed: 7", 3, 1, "sed", 'unknown key "sed"', 'did you mean "seed"'),
    "unknown key inside": ("ttft: 2 s", "tftt: 2 s", 10, 7, "slo.tftt", 'unknown key "tftt"', 'did you mean "ttft"'),
    "unknown key of a variant": (
        "{process: poisson, rate: 1 req/s}",
        "{process: poisson, rat: 1 req/s, rate: 1 req/s}",
        7,
        32,
        "workload.arrivals.rat",
        'unknown key "rat"',
        'did you mean "rate"',
    ),
    "unknown key of a policy": (
        "{policy: round-robin}",
        "{policy: power-of-two-choices, choises: 3}",
        12,
        42,
        "gateway.router.choises",
        'unknown key "choises"',
        'did you mean "choices"',
    ),
    "missing key": ("  requests: 10\n", "", 4, 1, "workload", "give requests, duration or both", ""),
    "missing field": (
        "{distribution: fixed, value: 100}",
        "{distribution: fixed}",
        8,
        3,
        "workload.prompt_tokens.value",
        '"value" is missing',
        "Tokens",
    ),
    "unknown kind": (
        "kind: synthetic",
        "kind: sinthetic",
        5,
        9,
        "workload.kind",
        'unknown kind "sinthetic"',
        "synthetic",
    ),
    "unknown process": (
        "process: poisson",
        "process: poison",
        7,
        23,
        "workload.arrivals.process",
        'unknown process "poison"',
        'did you mean "poisson"',
    ),
    "no kind": ("  kind: synthetic\n", "", 4, 1, "workload", "expected a block with `kind: NAME`", "synthetic, trace"),
    "unknown policy": (
        "policy: round-robin",
        "policy: round-robbin",
        12,
        20,
        "gateway.router.policy",
        'unknown policy "round-robbin"',
        'did you mean "round-robin"',
    ),
    "policy of no kind": (
        "{policy: round-robin}",
        "[round-robin]",
        12,
        11,
        "gateway.router",
        "expected a block with `policy: NAME`, found a list",
        "cache-aware",
    ),
    "no unit": ("ttft: 2 s", "ttft: 2", 10, 13, "slo.ttft", "has no unit", ""),
    "wrong unit": ("ttft: 2 s", "ttft: 2 GiB", 10, 13, "slo.ttft", "expected a time", ""),
    "below zero": ("ttft: 2 s", "ttft: -2 s", 10, 13, "slo.ttft", 'must be above 0, found "-2 s"', ""),
    "no replica": ("replicas: 1", "replicas: -1", 14, 70, "pools[0].replicas", "must be at least 0, found -1", ""),
    "half a replica": (
        "replicas: 1",
        "replicas: 1.5",
        14,
        70,
        "pools[0].replicas",
        "expected a whole number, found 1.5",
        "",
    ),
    "true replicas": ("replicas: 1", "replicas: true", 14, 70, "pools[0].replicas", "whole number, found true", ""),
    "text for a number": (
        "attainment: 0.9",
        "attainment: 90%",
        10,
        44,
        "slo.attainment",
        'expected a number, found "90%"',
        "",
    ),
    "not a number": ("attainment: 0.9", "attainment: .nan", 10, 44, "slo.attainment", "finite number", ""),
    "quoted number": (
        "attainment: 0.9",
        "attainment: '0.9'",
        10,
        44,
        "slo.attainment",
        'expected a number, found "0.9"',
        "",
    ),
    "wrong version": ("schema: 1", "schema: 2", 1, 9, "schema", "must be 1, found 2", ""),
    "number for text": ("name: small", "name: 5", 2, 7, "name", "expected text, found 5", ""),
    "empty name": ("name: small", "name: ''", 2, 7, "name", "must not be empty", ""),
    "list for a block": (
        "{policy: round-robin}",
        "round-robin\nrun: []",
        13,
        6,
        "run",
        "block of keys, found a list",
        "",
    ),
    "no pools": (
        "pools:\n  - {name: main, llm: llama-3.1-8b, accelerator: h100-sxm, replicas: 1}",
        "pools: []",
        13,
        8,
        "pools",
        "must not be empty",
        "",
    ),
    "one pool without a list": (
        "  - {name: main",
        "    {name: main",
        13,
        1,
        "pools",
        "expected a list, found a block",
        "",
    ),
    "null": ("seed: 7", "seed:", 3, 1, "seed", "expected a whole number, found nothing", ""),
}


@pytest.mark.parametrize("case", CASES)
def test_one_mistake_one_finding(case: str, findings: Find) -> None:
    old, new, line, column, path, message, hint = CASES[case]
    found = findings(changed(old, new))
    assert len(found) == 1, [str(f) for f in found]
    finding = found[0]
    assert (finding.path, finding.line, finding.column) == (path, line, column)
    assert finding.file.endswith("scenario.yaml")
    assert message in finding.message
    assert hint in finding.hint


def test_all_mistakes_at_once_in_the_order_of_the_file(findings: Find) -> None:
    text = (
        changed("seed: 7", "seed: -7").replace("ttft: 2 s", "ttft: 2 W").replace("replicas: 1", "replicas: -1, tp: 2")
    )
    assert [f.path for f in findings(text)] == ["seed", "slo.ttft", "pools[0].replicas", "pools[0].tp"]


def test_duplicates_and_field_errors_are_told_together(findings: Find) -> None:
    found = findings(changed("seed: 7", "seed: 7\nseed: 8").replace("ttft: 2 s", "ttft: 2 W"))
    assert [f.path for f in found] == ["seed", "slo.ttft"]


def test_import_paths_need_permission(write: Callable[..., Path], findings: Find) -> None:
    text = changed("policy: round-robin", "policy: 'fleetsim.routing.basic:Random'")
    assert "--allow-import" in findings(text)[0].message
    with plugins.allowing_imports(True):
        assert load_scenario(write(text)).scenario.gateway.router.name == "fleetsim.routing.basic:Random"


@pytest.mark.parametrize(
    "name", ["os:system", "no_such_module_at_all:X", "os.path:nothing", "json:JSONDecoder", ":", "a:", ":b"]
)
def test_import_paths_that_are_no_policy(name: str, findings: Find) -> None:
    with plugins.allowing_imports(True):
        assert len(findings(changed("policy: round-robin", f"policy: '{name}'"))) == 1


def test_policy_by_bare_name(write: Callable[..., Path]) -> None:
    text = changed("{policy: round-robin}", "random")
    assert load_scenario(write(text)).scenario.gateway.router.name == "random"


def test_mapping_and_scenario_objects() -> None:
    loaded = load_scenario(scenario_path("embedded:quickstart"))
    again = load_mapping(loaded.resolved)
    assert again.scenario == loaded.scenario
    more = load_mapping(loaded.scenario, ["pools[0].replicas=9"])
    assert more.scenario.pools[0].replicas == 9
    with pytest.raises(ScenarioError, match="unknown key"):
        load_mapping({**loaded.resolved, "extra": 1})
    with pytest.raises(ScenarioError):
        load_mapping({})


def test_finding_names_the_place_of_any_path(write: Callable[..., Path]) -> None:
    loaded = load_scenario(write())
    assert loaded.finding(("pools", 0, "llm"), "x").line == 14
    absent = loaded.finding(("pools", 0, "engine", "kv"), "x")
    assert (absent.path, absent.line) == ("pools[0].engine.kv", 14)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("quickstart", "did you mean embedded:quickstart?"),
        ("smal.yaml", 'small.yaml"?'),
        ("other.yml", "`fleetsim init` writes a scenario to start from"),
        ("nowhere/small.yaml", "nowhere either"),
    ],
)
def test_a_file_that_is_not_there(name: str, hint: str, write: Callable[..., Path]) -> None:
    folder = write(name="small.yaml").parent
    with pytest.raises(ScenarioError, match="no such file") as caught:
        load_scenario(folder / name)
    assert caught.value.findings[0].hint.endswith(hint)
