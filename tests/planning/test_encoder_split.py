"""xLLM's profiler: which instances encode, compute prompts and compute answers."""

from __future__ import annotations

from typing import Any

import pytest

from fleetsim.errors import InputError
from fleetsim.planning.distserve import Trial, at_rate
from fleetsim.planning.encoder_split import Split, StatedEncoderSplit, pools_of, splits
from fleetsim.planning.judge import Confidence, judge
from fleetsim.planning.over_scenario import with_pools
from fleetsim.planning.problems import load_problem

SCENARIO: dict[str, Any] = {
    "workload": {
        "kind": "synthetic",
        "requests": 80,
        "arrivals": {"process": "poisson", "rate": "6 req/s"},
        "prompt_tokens": {"distribution": "fixed", "value": 40},
        "output_tokens": {"distribution": "fixed", "value": 60},
        "images": {"tokens": {"distribution": "fixed", "value": 1024}},
    },
    "slo": {"ttft": "1 s", "tpot": "50 ms", "attainment": 0.9},
    "gateway": {"router": "distserve"},
    "pools": [
        {
            "name": "all",
            "llm": "qwen2.5-7b",
            "accelerator": "ascend-910b",
            "replicas": 3,
            "encoder": {"model": "qwen2-vl-vit", "order": "last"},
            "engine": {"kind": "vllm", "prefix_cache": False},
        }
    ],
}


def stated(**changes: Any) -> StatedEncoderSplit:
    problem = {"kind": "encoder-split", "requests": 60, "span": "5 s", "tolerance": 0.25, "scenario": SCENARIO}
    found = load_problem({"name": "test", "problem": problem | changes}).problem
    assert isinstance(found, StatedEncoderSplit)
    return found


@pytest.mark.parametrize(("instances", "count"), [(1, 1), (2, 3), (3, 6), (8, 36)])
def test_all_splits_are_there_once(instances: int, count: int) -> None:
    found = list(splits(instances))
    assert len(set(found)) == len(found) == count == 1 + 2 * (instances - 1) + (instances - 1) * (instances - 2) // 2
    assert {split.encode + split.prefill + split.decode for split in found} == {instances}


def test_a_split_becomes_pools_with_encoders_where_images_are_encoded() -> None:
    block = SCENARIO["pools"][0]
    for kind, encoders in (("EP-D", ["prompts"]), ("ED-P", ["answers"]), ("E-P-D", ["images"]), ("together", ["all"])):
        split = next(split for split in splits(3) if split.kind == kind)
        pools = pools_of(split, block)
        assert sum(pool["replicas"] for pool in pools) == 3
        assert [pool["name"] for pool in pools if "encoder" in pool] == encoders


def test_nobody_keeps_the_objective_at_a_higher_rate_than_the_best() -> None:
    """Against a look at every split one rung above, with the same random numbers."""
    problem = stated()
    plan = problem.solve()
    assert plan.proof is not None
    assert plan.proof.proved
    counts = tuple(int(plan.figures[f"{name}_instances"]) for name in ("encode", "prefill", "decode"))
    best = max((row["requests/s"] for row in plan.table), default=0.0)
    assert plan.figures["rate_per_s"] <= best
    loaded, trial = problem.loaded(), Trial(60, 5.0, 0.25, Confidence(0.95, 1, 1))
    held: list[tuple[int, int, int]] = []
    for split in splits(3):
        for rate, into in ((best, held), (best * 1.25, None)):
            run = with_pools(at_rate(loaded, rate, trial), pools_of(split, SCENARIO["pools"][0]))
            judgement = judge(run, confidence=Confidence(0.95, 1, 1))
            if judgement.attainment[0] >= judgement.target:
                assert into is not None, f"{split} keeps more"
                into.append((split.encode, split.prefill, split.decode))
    assert counts in held


def test_a_kind_may_be_left_out() -> None:
    plan = stated(kinds=["E-P-D"]).solve()
    assert plan.figures["splits"] == 1
    assert str(Split("E-P-D", 1, 1, 1)) in plan.notes


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"pools": [{**SCENARIO["pools"][0], "encoder": None}]}, "one pool with an `encoder`"),
        ({"workload": {**SCENARIO["workload"], "images": None}}, "has no images"),
    ],
)
def test_what_cannot_be_split_is_refused(changes: dict[str, Any], told: str) -> None:
    scenario = {**SCENARIO, **changes}
    scenario = {
        key: {k: v for k, v in value.items() if v is not None}
        if isinstance(value, dict)
        else [{k: v for k, v in pool.items() if v is not None} for pool in value]
        for key, value in scenario.items()
    }
    with pytest.raises(InputError) as refused:
        stated(scenario=scenario).solve()
    assert told in str(refused.value)


def test_three_stages_need_three_instances() -> None:
    scenario = {**SCENARIO, "pools": [{**SCENARIO["pools"][0], "replicas": 2}]}
    with pytest.raises(InputError, match="cannot be split in three"):
        stated(scenario=scenario, kinds=["E-P-D"]).solve()
