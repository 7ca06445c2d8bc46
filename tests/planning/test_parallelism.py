"""Searches over parallelism and roles: DistServe's rule, local search against enumeration, and what cannot be."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import Any

import pytest

from fleetsim.errors import InputError
from fleetsim.planning.distserve import Trial, at_rate, goodput_of
from fleetsim.planning.judge import Confidence, judge
from fleetsim.planning.layout import Group, complete, site_of
from fleetsim.planning.layout_search import MOVES, Space
from fleetsim.planning.over_scenario import with_pools
from fleetsim.planning.parallelism import StatedParallelism
from fleetsim.planning.problems import load_problem
from fleetsim.scenario.load import load_mapping

STEPS = {
    "model": "affine", "step": "5 ms", "prompt_token": "100 us", "prompt_pair": "0 s", "context_token": "0 s", "sequence": "500 us",
}  # fmt: skip
SCENARIO: dict[str, Any] = {
    "workload": {
        "kind": "synthetic",
        "requests": 100,
        "arrivals": {"process": "poisson", "rate": "8 req/s"},
        "prompt_tokens": {"distribution": "fixed", "value": 500},
        "output_tokens": {"distribution": "fixed", "value": 40},
    },
    "slo": {"ttft": "0.3 s", "tpot": "12 ms", "attainment": 0.9},
    "gateway": {"router": "distserve"},
    "pools": [
        {
            "name": "all",
            "llm": "llama-3.1-8b",
            "accelerator": "h100-sxm",
            "engine": {"kind": "generic", "prefix_cache": False, "step_time": STEPS},
        }
    ],
}


def stated(scenario: dict[str, Any] | None = None, **changes: Any) -> StatedParallelism:
    problem = {
        "kind": "parallelism", "tp": [1, 2], "pp": [1], "requests": 80, "span": "8 s", "tolerance": 0.3, "rate": "16 req/s",
        "scenario": scenario or SCENARIO,
    }  # fmt: skip
    found = load_problem({"name": "test", "problem": problem | changes}).problem
    assert isinstance(found, StatedParallelism)
    return found


def test_distserve_buys_what_its_rates_need_and_proves_it() -> None:
    """Steps here do not profit from parallelism, so one accelerator a group is best; as many are bought as rates demand."""
    plan = stated().solve()
    figures = plan.figures
    assert (figures["prefill_tp"], figures["decode_tp"]) == (1, 1)
    needed = [ceil(16 / figures[f"{role}_rate_per_s"]) for role in ("prefill", "decode")]
    bought = {pool["role"]: pool["replicas"] for pool in plan.fleet["pools"]}
    assert bought["prefill"] >= needed[0]
    assert bought["decode"] >= needed[1]
    assert figures["accelerators"] == sum(bought.values())
    assert plan.proof is not None
    assert plan.proof.proved
    assert plan.bound <= plan.objective == pytest.approx(2.95 * figures["accelerators"])
    again = with_pools(at_rate(load_mapping(SCENARIO | {"schema": 1, "name": "x"}), 16.0, quick()), plan.fleet["pools"])
    assert judge(again).met


def quick(tolerance: float = 0.3) -> Trial:
    return Trial(80, 8.0, tolerance, Confidence(0.95, 3, 4))


def test_rates_of_a_side_follow_its_own_limit() -> None:
    """Prompts take 55.5 ms each: below 18 a second. A decode step takes 5 + 0.5 b ms: at most 14 are within 12 ms."""
    site = site_of(load_mapping(SCENARIO | {"schema": 1, "name": "x"}))
    prompts = goodput_of(site, Group("h100-sxm", 1, 1, "prefill"), Trial(400, 20.0, 0.1, Confidence(0.95, 3, 4)), 10.0)
    assert 0.6 * 18.0 < prompts.rate_per_s < 18.0
    answers = goodput_of(site, Group("h100-sxm", 1, 1, "decode"), quick(0.1), 20.0)
    assert 0.5 * 14 / (39 * 0.012) < answers.rate_per_s < 1.3 * 14 / (39 * 0.012)
    tight = site_of(load_mapping(SCENARIO | {"schema": 1, "name": "x", "slo": {"ttft": "20 ms", "attainment": 0.9}}))
    assert goodput_of(tight, Group("h100-sxm", 1, 1, "prefill"), quick(), 10.0).rate_per_s == 0.0


def test_pairs_in_one_server() -> None:
    plan = stated(strategy="distserve-near").solve()
    roles = {pool["role"]: pool for pool in plan.fleet["pools"]}
    assert roles["prefill"]["replicas"] == roles["decode"]["replicas"] == ceil(16 / plan.figures["prefill_rate_per_s"])
    assert all(pool["server"]["nic"] == "nvlink4" for pool in roles.values())
    assert plan.proof is not None
    assert plan.proof.proved


def test_local_search_finds_what_enumeration_finds() -> None:
    both = {
        strategy: stated(strategy=strategy, accelerators={"h100-sxm": 3}, roles="any", rate="8 req/s").solve()
        for strategy in ("enumerate", "tabu")
    }
    assert both["tabu"].objective == both["enumerate"].objective
    assert both["enumerate"].status == "optimal"
    assert both["tabu"].figures["layouts"] <= both["enumerate"].figures["layouts"] + 4
    assert both["tabu"].figures["accelerators"] == 3


def space(stock: dict[str, int]) -> Space:
    site = site_of(load_mapping(SCENARIO | {"schema": 1, "name": "x"}), stock)
    shapes = {name: site.shapes(name, (1, 2), (1, 2)) for name in stock}
    return Space(site, stock, shapes, ("mixed", "prefill", "decode"))


def test_moves_reach_every_layout_and_stay_within_the_stock() -> None:
    """From the smallest groups, every complete layout into which nothing more fits can be reached by moves."""
    here = space({"h100-sxm": 4})
    reached = {start for role in ("mixed", "prefill") if (start := here.start(role))}
    edge = sorted(reached)
    while edge:
        found = {more for layout in edge for more in here.neighbours(layout, MOVES)} - reached
        assert all(complete(layout) and here.fits(layout) for layout in found)
        reached |= found
        edge = sorted(found)
    assert set(here.all()) <= reached


def test_light_rescheduling_flips_roles_only() -> None:
    pool = SCENARIO["pools"][0]
    pools = [
        pool | {"name": "p", "role": "prefill", "replicas": 3},
        pool | {"name": "d", "role": "decode", "replicas": 1},
    ]
    problem = stated(
        SCENARIO | {"pools": pools, "slo": SCENARIO["slo"] | {"tpot": "8 ms"}},
        strategy="tabu", moves=["flip"], accelerators={"h100-sxm": 4}, steps=2, rate="8 req/s",
    )  # fmt: skip
    plan = problem.solve()
    roles = {pool["role"]: pool["replicas"] for pool in plan.fleet["pools"]}
    assert roles == {"prefill": 2, "decode": 2}
    assert {row["layout"].count("prefill") for row in plan.table} == {1}
    assert len(plan.table) == 3  # flips alone: three layouts of four groups have both sides


def test_bad_input_is_told(tmp_path: Path) -> None:
    for problem, message in (
        ({"strategy": "tabu"}, "needs to know how many accelerators there are"),
        ({"accelerators": {"h10": 4}}, 'unknown accelerator "h10"'),
        ({"accelerators": {"h100-sxm": 1}}, r"the rate needs \d+ h100-sxm, there are 1"),
        ({"tp": [3]}, "fits on h100-sxm with none of tp"),
        ({"scenario": SCENARIO | {"slo": {"tpot": "12 ms"}}}, r"there is no slo\.ttft"),
        (
            {"scenario": {**SCENARIO, "slo": {"ttft": "1 ms", "tpot": "12 ms"}}},
            "no prefill group keeps its limit at any rate",
        ),
    ):
        with pytest.raises(InputError, match=message):
            stated(**problem).solve()
    path = tmp_path / "plan.yaml"
    path.write_text(
        "name: x\nproblem:\n  kind: parallelism\n  scenario:\n    slo: {ttft: 1 s}\n    pools:\n"
        "      - {name: a, llm: llama-3.1-8b, accelerator: h100-sxm}\n    workload: {kind: sinthetic}\n",
        encoding="utf-8",
    )
    with pytest.raises(InputError) as caught:
        load_problem(path).problem.solve()
    (finding,) = caught.value.findings
    assert finding.file is not None
    assert finding.file.endswith("plan.yaml")
    assert finding.line == 8
