"""Inheritance and overrides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fleetsim.errors import Finding, ScenarioError
from fleetsim.scenario.load import load_scenario

from .conftest import SMALL

Write = Callable[..., Path]
Find = Callable[..., list[Finding]]


def test_extends_merges_deeply(write: Write) -> None:
    write(SMALL, "base.yaml")
    child = write("extends: base.yaml\nname: child\nslo: {ttft: 3 s}\n", "child.yaml")
    scenario = load_scenario(child).scenario
    assert scenario.name == "child"
    assert scenario.slo is not None
    assert (scenario.slo.ttft, scenario.slo.tpot, scenario.seed) == (3.0, 0.1, 7)


def test_extends_merges_pools_by_name(write: Write) -> None:
    write(SMALL, "base.yaml")
    pools = "pools:\n  - {name: main, replicas: 5}\n  - {name: second, llm: qwen3-8b, accelerator: l40s}\n"
    scenario = load_scenario(write(f"extends: base.yaml\n{pools}", "child.yaml")).scenario
    assert [(p.name, p.llm, p.replicas) for p in scenario.pools] == [
        ("main", "llama-3.1-8b", 5),
        ("second", "qwen3-8b", 1),
    ]


def test_another_variant_replaces_the_block(write: Write) -> None:
    write(SMALL, "base.yaml")
    arrivals = "workload: {arrivals: {process: closed-loop, concurrency: 4}}"
    text = f"extends: base.yaml\n{arrivals}\ngateway: {{router: {{policy: random}}}}\n"
    scenario = load_scenario(write(text, "child.yaml")).scenario
    assert scenario.workload.arrivals.process == "closed-loop"  # type: ignore[union-attr]
    assert scenario.workload.requests == 10  # type: ignore[union-attr]
    assert scenario.gateway.router.name == "random"


def test_relative_paths_of_a_parent_stay_relative_to_the_parent(write: Write) -> None:
    trace = "workload: {kind: trace, format: azure, path: data/trace.csv}"
    base = "\n".join(
        line for line in SMALL.splitlines() if not line.startswith("  ") or "name" in line or "router" in line
    )
    base = base.replace("workload:", trace).replace("llama-3.1-8b", "models/config.json")
    write(base, "shared/base.yaml")
    scenario = load_scenario(write("extends: ../shared/base.yaml\n", "mine/child.yaml")).scenario
    assert scenario.workload.path == "../shared/data/trace.csv"  # type: ignore[union-attr]
    assert scenario.pools[0].llm == "../shared/models/config.json"


def test_findings_name_the_file_that_holds_the_mistake(write: Write) -> None:
    write(SMALL.replace("seed: 7", "seed: -7"), "base.yaml")
    with pytest.raises(ScenarioError) as caught:
        load_scenario(write("extends: base.yaml\nslo: {ttft: 2 W}\n", "child.yaml"))
    places = [(Path(f.file).name, f.line, f.path) for f in caught.value.findings]
    assert sorted(places) == [("base.yaml", 3, "seed"), ("child.yaml", 2, "slo.ttft")]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("missing.yaml", "no such file"),
        ("child.yaml", "a cycle"),
        ("[a, b]", "expected the path"),
        (".", "no such file"),
        ("broken.yaml", "not valid YAML"),
        ("''", "expected the path"),
    ],
)
def test_extends_that_cannot_be(write: Write, value: str, message: str) -> None:
    write("a: [", "broken.yaml")
    with pytest.raises(ScenarioError, match=message):
        load_scenario(write(f"extends: {value}\n", "child.yaml"))


def test_cycles_and_long_chains(write: Write) -> None:
    write("extends: b.yaml\n", "a.yaml")
    with pytest.raises(ScenarioError, match="a cycle"):
        load_scenario(write("extends: a.yaml\n", "b.yaml"))
    for i in range(20):
        write(f"extends: c{i + 1}.yaml\n", f"c{i}.yaml")
    write(SMALL, "c20.yaml")
    with pytest.raises(ScenarioError, match="extend each other"):
        load_scenario(write("extends: c0.yaml\n", "c.yaml"))


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("seed=9", ("seed",), 9),
        ("slo.ttft=3 s", ("slo", "ttft"), "3.0 s"),
        ("pools[0].replicas=3", ("pools", 0, "replicas"), 3),
        ("pools.main.replicas=3", ("pools", 0, "replicas"), 3),
        ("pools[0].engine.kv.block_tokens=32", ("pools", 0, "engine", "kv", "block_tokens"), 32),
        ("gateway.router=random", ("gateway", "router", "policy"), "random"),
        ("pools[0].engine.scheduler.max_seqs=9", ("pools", 0, "engine", "scheduler", "max_seqs"), 9),
        ("gateway.router.policy=random", ("gateway", "router", "policy"), "random"),
        ("workload.arrivals={process: deterministic, rate: 2 req/s}", ("workload", "arrivals", "rate"), "2.0 req/s"),
        ("run.horizon=1 h", ("run", "horizon"), "3600.0 s"),
        ("name=a=b", ("name",), "a=b"),
        ("pools={}", (), None),
        ("slo=null", ("slo",), None),
    ],
)
def test_overrides(write: Write, override: str, path: tuple[str | int, ...], value: object) -> None:
    if not path:
        with pytest.raises(ScenarioError, match="pools"):
            load_scenario(write(), [override])
        return
    found: object = load_scenario(write(), [override]).resolved
    for step in path:
        found = found.get(step) if isinstance(found, dict) else found[step]  # type: ignore[index]
    assert found == value


def test_overrides_are_laid_over_in_order(write: Write) -> None:
    overrides = ["gateway.router.policy=power-of-two-choices", "gateway.router.choices=3", "seed=1", "seed=2"]
    loaded = load_scenario(write(), overrides)
    assert loaded.resolved["gateway"]["router"] == {"policy": "power-of-two-choices", "choices": 3}
    assert loaded.scenario.seed == 2


def test_overrides_as_values(write: Write) -> None:
    scenario = load_scenario(write(), {"pools.main.replicas": 4, "slo": {"ttft": "1 s"}}).scenario
    assert scenario.pools[0].replicas == 4
    assert scenario.slo is not None
    assert (scenario.slo.ttft, scenario.slo.tpot) == (1.0, 0.1)


@pytest.mark.parametrize(
    ("override", "path", "message"),
    [
        ("sed=9", "sed", 'unknown key "sed"'),
        ("slo.tftt=1 s", "slo.tftt", 'unknown key "tftt"'),
        ("slo.ttft=1 GiB", "slo.ttft", "expected a time"),
        ("pools[3].replicas=1", "", "there is no pools[3]: the last is pools[0]"),
        ("pools.mian.replicas=1", "", 'no item named "mian"'),
        ("pools[0]replicas", "", "expected path=value"),
        ("seed", "", "expected path=value"),
        ("=3", "", "expected path=value"),
        ("a..b=3", "", "expected path=value"),
        ("seed[0]=3", "", "is not a list"),
        ("name.first=x", "name", "expected text, found a block"),
        ("slo.ttft=[", "", "not valid YAML"),
        ("name=!!python/name:os.system x", "", "run no code"),
        ("pools[0].engine.scheduler.policy=os:system", "pools[0].engine.scheduler.policy", "import path"),
    ],
)
def test_wrong_overrides_name_themselves(findings: Find, override: str, path: str, message: str) -> None:
    found = findings(SMALL, override)
    assert len(found) == 1, [str(f) for f in found]
    assert message in found[0].message
    assert found[0].path == path
    assert found[0].file == f"--set {override}"
    assert found[0].line is None
