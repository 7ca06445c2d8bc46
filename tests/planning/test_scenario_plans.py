"""Plans of scenarios: demand, throughputs, and the simulator as judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fleetsim
from fleetsim.errors import InputError
from fleetsim.fleet.pool import describe_pool
from fleetsim.planning.demand import demand_of
from fleetsim.planning.judge import Confidence, judge
from fleetsim.planning.plan import Options, laid_over, plan_melange
from fleetsim.planning.prove import counts_of, find_fleet_for, least_cost, plan_and_prove
from fleetsim.planning.throughput import steady_rate
from fleetsim.scenario.load import LoadedScenario, load_mapping, load_scenario
from fleetsim.scenario.schema import SloLimits

CHAT: dict[str, Any] = {
    "schema": 1,
    "name": "chat",
    "workload": {
        "kind": "synthetic",
        "requests": 600,
        "arrivals": {"process": "poisson", "rate": "40 req/s"},
        "prompt_tokens": {"distribution": "lognormal", "mean": 800, "cv": 1.0, "min": 16, "max": 8000},
        "output_tokens": {"distribution": "lognormal", "mean": 120, "cv": 0.8, "min": 2, "max": 1000},
    },
    "slo": {"ttft": "1 s", "tpot": "60 ms", "attainment": 0.95},
    "pools": [{"name": "main", "llm": "llama-3.1-8b", "accelerator": "h100-sxm"}],
}


def chat(**changes: Any) -> LoadedScenario:
    return load_mapping(CHAT, changes)


def test_demand_keeps_rates_and_tokens() -> None:
    demand = demand_of(chat(), rows=5, columns=3)
    assert sum(bucket.rate_per_s for bucket in demand.buckets) == pytest.approx(demand.planned_rate_per_s)
    assert demand.mean_rate_per_s == pytest.approx(40, rel=0.1)
    one = demand_of(chat(), rows=1, columns=1).buckets[0]
    for key in ("prompt_tokens", "output_tokens"):
        whole = sum(bucket.rate_per_s * getattr(bucket, key) for bucket in demand.buckets)
        assert whole == pytest.approx(one.rate_per_s * getattr(one, key))
    assert 10 <= len(demand.buckets) <= 15
    busy = demand_of(chat(), rows=1, columns=1, window_s=1.0)
    assert busy.planned_rate_per_s > demand.mean_rate_per_s


def test_later_turns_of_sessions_are_demand_too() -> None:
    loaded = load_scenario("embedded:multi-turn")
    assert demand_of(loaded, 1, 1).requests == loaded.scenario.workload.requests  # type: ignore[union-attr]


def test_closed_loops_have_no_demand() -> None:
    with pytest.raises(InputError, match="closed-loop arrivals: how fast requests come depends"):
        demand_of(chat(**{"workload.arrivals": {"process": "closed-loop", "concurrency": 4}}))


@pytest.mark.parametrize(("prompt", "output"), [(200, 200), (2000, 100), (64, 400), (3000, 20)])
def test_throughput_is_what_a_saturated_replica_serves(prompt: int, output: int, tmp_path: Path) -> None:
    """The engine fed with more than it can serve ends within 10 % of the formula, without an SLO."""
    loaded = chat()
    pool = describe_pool(loaded.scenario.pools[0], 0, loaded.base_dir)
    rate = steady_rate(pool, prompt, output, SloLimits())
    count = max(round(rate.batch * 12), 400)
    lengths = {
        "workload.prompt_tokens": {"distribution": "fixed", "value": prompt},
        "workload.output_tokens": {"distribution": "fixed", "value": output},
        "workload.requests": count,
        "workload.arrivals": {"process": "poisson", "rate": f"{3 * rate.requests_per_s!r} req/s"},
        "pools[0].engine": {"prefix_cache": False},
    }
    result = fleetsim.run(chat(**lengths), tmp_path / "out")
    ends = np.sort(result.requests()["end_s"].to_numpy())
    steady = ends[len(ends) // 4 : -len(ends) // 4]
    simulated = (len(steady) - 1) / (steady[-1] - steady[0])
    assert simulated == pytest.approx(rate.requests_per_s, rel=0.10)


def test_throughput_obeys_limits() -> None:
    loaded = chat()
    pool = describe_pool(loaded.scenario.pools[0], 0, loaded.base_dir)
    free = steady_rate(pool, 800, 120, SloLimits())
    tight = steady_rate(pool, 800, 120, SloLimits(tpot="15 ms"))
    assert 0 < tight.requests_per_s < free.requests_per_s
    assert tight.tpot_s <= 0.015 < free.tpot_s
    assert tight.why == "slo.tpot"
    hopeless = steady_rate(pool, 800, 120, SloLimits(ttft="1 ms"))
    assert hopeless.requests_per_s == 0.0
    assert hopeless.why == "slo.ttft"


def test_a_plan_is_proved_by_simulation_and_runs() -> None:
    loaded = chat()
    plan = plan_and_prove(loaded, Options(candidates=("h100-sxm", "a10g", "l4")))
    assert plan.proof is not None
    assert plan.proof.proved
    assert plan.proof.attainment_low_ratio >= 0.95
    assert plan.bound <= plan.objective
    assert plan.proof.simulated["cost_usd_per_h"] == pytest.approx(plan.proof.predicted["cost_usd_per_h"], rel=0.01)
    again = judge(laid_over(loaded, plan.fleet))
    assert again.met


def test_a_plan_without_room_is_tightened_until_it_holds() -> None:
    loaded = chat(**{"slo.tpot": "12 ms", "slo.attainment": 0.99})
    plan = plan_and_prove(loaded, Options(utilisation_limit=1.0))
    assert plan.proof is not None
    assert plan.proof.proved
    assert len(plan.proof.rounds) > 1
    assert "missed" in plan.proof.rounds[0]
    assert any(note.startswith("tightened") for note in plan.notes)


def test_what_cannot_be_proved_says_why() -> None:
    loaded = chat(**{"slo.attainment": 1.0, "slo.ttft": "60 ms", "workload.prompt_tokens.max": 8000})
    plan = plan_and_prove(loaded, rounds=2)
    assert plan.proof is not None
    assert not plan.proof.proved
    assert "not proved after 2 fleets" in plan.proof.reason
    assert "above ttft" in plan.proof.reason


def test_the_cheapest_fleet_is_found_by_cuts() -> None:
    """Every cheaper fleet of the two kinds fails in the simulation, tried one by one."""
    loaded = chat(**{"workload.arrivals.rate": "25 req/s", "slo.tpot": "40 ms"})
    options = Options(candidates=("a10g", "a100-80"), prices={"a10g": 1.0, "a100-80": 1.9})
    plan = find_fleet_for(loaded, options)
    assert plan.proof is not None
    assert plan.proof.proved
    planned = plan_melange(loaded, options)
    assert least_cost(planned.problem) <= plan.objective
    single = [c for c in planned.candidates if c.offer.accelerators == 1]
    cheaper = 0
    for many in range(1, 6):
        for candidate in single:
            if many * candidate.offer.price_usd_per_h < plan.objective:
                fleet = {"pools": [{**candidate.offer.pool, "replicas": many}]}
                assert not judge(laid_over(loaded, fleet)).met
                cheaper += 1
    assert cheaper >= 2
    assert sum(counts_of(planned, plan)) >= 1


def test_verdicts_need_more_seeds_near_the_target() -> None:
    loaded = chat(**{"slo.ttft": "200 ms"})
    share = judge(loaded).attainment[0]
    near = judge(
        load_mapping(CHAT, {"slo.ttft": "200 ms", "slo.attainment": round(share, 3)}),
        confidence=Confidence(max_seeds=6),
    )
    clear = judge(load_mapping(CHAT, {"slo.ttft": "200 ms", "slo.attainment": share / 2}))
    assert near.seeds == 6
    assert near.verdict == "undecided"
    assert clear.verdict == "met"
    assert clear.seeds < near.seeds
    assert near.attainment[1] < share < near.attainment[2]


def test_find_rate_brackets_the_highest_rate() -> None:
    found = fleetsim.find_rate(CHAT, tolerance=0.1, confidence=Confidence(max_seeds=4))
    assert found.rate_per_s < found.above_per_s <= found.rate_per_s * 1.1001
    assert found.attainment[1] >= 0.95
    by_rate = {probe.rate_per_s: probe.judgement for probe in found.probes}
    assert by_rate[found.rate_per_s].met
    assert not by_rate[found.above_per_s].met
    twice = fleetsim.find_rate(CHAT | {"pools": [CHAT["pools"][0] | {"replicas": 2}]}, tolerance=0.1)
    assert twice.rate_per_s > 1.6 * found.rate_per_s


def test_find_rate_says_when_load_is_not_the_reason() -> None:
    slow = CHAT | {"slo": {"ttft": "9 ms", "attainment": 0.99}}
    with pytest.raises(InputError, match=r"does not hold even at(.|\n)*above ttft"):
        fleetsim.find_rate(slow, requests=100)


def test_bad_input_of_plans() -> None:
    for changes, options, message in (
        ({"slo": None}, Options(), "there is no `slo`"),
        ({}, Options(candidates=("h10",)), 'unknown accelerator "h10"'),
        ({}, Options(limits={"h100-sxm": 0}), "no plan keeps all requirements"),
        ({"slo.tpot": "1 ms"}, Options(), "no candidate keeps the SLO"),
        ({"pools[0].role": "prefill"}, Options(), "pools with roles"),
    ):
        mapping = {**CHAT, "slo": None} if changes == {"slo": None} else CHAT
        mapping = {key: value for key, value in mapping.items() if value is not None}
        loaded = load_mapping(mapping, {} if changes == {"slo": None} else changes)
        with pytest.raises(InputError, match=message):
            plan_melange(loaded, options)
