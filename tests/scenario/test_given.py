"""Classes handed over in Python where a scenario has the name of a policy."""

from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
from pydantic import Field

import fleetsim
from fleetsim.engine.schedulers.vllm_v1 import VllmV1
from fleetsim.errors import ScenarioError
from fleetsim.plugins import PolicyConfig
from fleetsim.routing.basic import RoundRobin
from fleetsim.workload.searches.rebase import Rebase

SCENARIO: dict[str, Any] = {
    "schema": 1,
    "name": "given",
    "workload": {
        "kind": "synthetic",
        "requests": 60,
        "arrivals": {"process": "poisson", "rate": "20 req/s"},
        "prompt_tokens": {"distribution": "fixed", "value": 100},
        "output_tokens": {"distribution": "fixed", "value": 20},
    },
    "pools": [{"name": "main", "llm": "llama-3.1-8b", "accelerator": "h100-sxm", "replicas": 3}],
}


class Always(RoundRobin):
    """One replica for everything."""

    class Config(PolicyConfig):
        replica: Annotated[int, Field(ge=0)] = 0

    def __init__(self, config: Any, rng: Any, fleet: Any) -> None:
        self.replica = config.replica

    def route(self, request: Any) -> int:
        return self.replica


def replicas(result: fleetsim.Result) -> set[int]:
    return set(result.requests()["replica"].to_pylist())


@pytest.mark.parametrize(
    ("block", "expected"), [(Always, {0}), ({"policy": Always, "replica": 2}, {2})], ids=["class", "parameters"]
)
def test_a_router(block: Any, expected: set[int], tmp_path: Path) -> None:
    laid_over = fleetsim.run(SCENARIO, tmp_path / "a", overrides={"gateway.router": block})
    inside = fleetsim.run({**SCENARIO, "gateway": {"router": block}}, tmp_path / "b")
    over_other = fleetsim.run(
        {**SCENARIO, "gateway": {"router": {"policy": "power-of-two-choices", "choices": 3}}},
        tmp_path / "c",
        overrides={"gateway.router": block},
    )
    assert replicas(laid_over) == replicas(inside) == replicas(over_other) == expected
    loaded = fleetsim.load_scenario("embedded:quickstart", {"gateway.router": block})
    assert loaded.scenario.gateway.router.name == f"{__name__}:Always"


def test_every_slot_of_a_scenario(tmp_path: Path) -> None:
    """A class that only inherits gives what the registered one gives."""

    class Mine(VllmV1):
        """The same."""

    class MySearch(Rebase):
        """The same."""

    named, ours = (
        fleetsim.run(SCENARIO, tmp_path / name, overrides={"pools[0].engine.scheduler": scheduler})
        for name, scheduler in (("a", "vllm-v1"), ("b", {"policy": Mine, "max_seqs": 256}))
    )
    assert named.requests().equals(ours.requests())
    assert named.summary == ours.summary
    tree = {**SCENARIO, "workload": {"kind": "tree-search", "problems": 2, "width": 4}}
    searched = [
        fleetsim.run(tree, tmp_path / f"s{i}", overrides={"workload.search": search})
        for i, search in enumerate(("rebase", MySearch))
    ]
    assert searched[0].requests().equals(searched[1].requests())


def test_the_last_class_of_a_name_counts(tmp_path: Path) -> None:
    """As when a cell of a notebook is run again."""

    def cell(chosen: int) -> type:
        class Router(Always):
            """Always the same."""

            def route(self, request: Any) -> int:
                return chosen

        return Router

    for chosen in (1, 2):
        result = fleetsim.run(SCENARIO, tmp_path / str(chosen), overrides={"gateway.router": cell(chosen)})
        assert replicas(result) == {chosen}


def test_mistakes_are_told_like_those_in_files(tmp_path: Path) -> None:
    class Bare:
        """No parameters' model."""

    class Fresh:
        """Never handed over."""

        Config: ClassVar = PolicyConfig

    for router, message in (
        ({"policy": Always, "replica": -1}, "gateway.router.replica"),
        ({"policy": Always, "replicas": 1}, "replicas"),
        (Bare, "is no policy"),
        (f"{Fresh.__module__}:{Fresh.__qualname__}", "scenario files cannot run code"),
        (int, "is no policy"),
    ):
        with pytest.raises(ScenarioError, match=message):
            fleetsim.run(SCENARIO, tmp_path, overrides={"gateway.router": router})
    with pytest.raises(ScenarioError, match="seed"):
        fleetsim.run(SCENARIO, tmp_path, overrides={"seed": Always})
