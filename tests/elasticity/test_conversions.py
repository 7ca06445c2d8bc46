"""What a change of shape or role takes, what it costs, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fleetsim
from fleetsim.catalog.llm import load_llm
from fleetsim.catalog.memory import weight_bytes_per_accelerator
from fleetsim.errors import ScenarioError
from fleetsim.fleet.conversions import moved_weight_bytes
from fleetsim.fleet.pool import describe_pool
from fleetsim.scenario import schema
from tests.fleet.test_moves import column, pool, run, same_in_single_steps, scenario


def grows(requests: str = "hand-over", at_s: float = 2.0, **way: Any) -> dict[str, Any]:
    """One request after the other on a replica of two ranks, which turns into one of three."""
    pools = [
        pool("small", 1) | {"min_replicas": 0, "max_replicas": 1, "parallelism": {"dp": 2}},
        pool("large", 0) | {"min_replicas": 0, "max_replicas": 1, "parallelism": {"dp": 3}},
    ]
    given = scenario(
        pools=pools,
        conversions=[{"source": "small", "target": "large", "requests": requests, **way}],
        autoscaler={
            "policy": "timetable",
            "changes": [{"at_s": at_s, "source": "small", "target": "large", "replicas": 1}],
        },
    )
    given["workload"] = {
        "kind": "synthetic",
        "requests": 40,
        "arrivals": {"process": "deterministic", "rate": "4 req/s"},
        "prompt_tokens": {"distribution": "fixed", "value": 200},
        "output_tokens": {"distribution": "fixed", "value": 60},
    }
    return given


def times(result: fleetsim.Result, kind: str) -> list[float]:
    return [row["time_s"] for row in result.table("events").to_pylist() if row["kind"] == kind]


def test_requests_go_on_between_two_steps(tmp_path: Path) -> None:
    result = same_in_single_steps(grows(plan="0.5 s", init="1 s"), tmp_path)
    (switched_s,) = times(result, "replica_converted")
    assert 3.5 <= switched_s < 3.55  # at the end of the step under way
    handed = [row["count"] for row in result.table("events").to_pylist() if row["kind"] == "requests_handed_over"]
    assert handed[0] > 0
    rows = zip(*(column(result, name) for name in ("pool", "arrival_s", "itl_max_s", "preemptions")), strict=True)
    crossing = [row for row in rows if row[0] == "large" and row[1] < switched_s - 0.1]
    assert len(crossing) == handed[0]
    for _, _, gap_s, preemptions in crossing:  # nobody waits longer than for a prompt beside it
        assert gap_s < 0.08
        assert not preemptions


def test_only_what_the_new_shape_has_more_of_is_paid_for_before(tmp_path: Path) -> None:
    result = same_in_single_steps(grows(plan="0.5 s", init="1 s"), tmp_path)
    (switched_s,) = times(result, "replica_converted")
    end_s = result.summary["simulated_s"]
    gone_s = times(result, "replica_off")[0]
    expected_s = 2 * gone_s + (switched_s - 2.0) * 1 + 3 * (end_s - switched_s)
    assert result.summary["accelerator_hours"] == pytest.approx(expected_s / 3600.0)
    apart = run(grows(plan="0.5 s", init="1 s", accelerators="new"), tmp_path / "new")
    more_s = 3600.0 * (apart.summary["accelerator_hours"] - result.summary["accelerator_hours"])
    assert more_s == pytest.approx(2 * (switched_s - 2.0), rel=1e-6)


@pytest.mark.parametrize(("requests", "lost"), [("wait", False), ("restart", True)])
def test_nobody_serves_while_a_replica_that_stops_first_turns(requests: str, lost: bool, tmp_path: Path) -> None:
    given = grows(requests, at_s=3.0, init="2 s")
    result = same_in_single_steps(given, tmp_path)
    assert set(column(result, "status")) == {"finished"}
    (off_s,), (ready_s,) = times(result, "replica_off"), times(result, "replica_converted")
    assert ready_s == pytest.approx(off_s + 2.0)
    assert (off_s == pytest.approx(3.0)) == lost
    rows = zip(*(column(result, name) for name in ("arrival_s", "first_scheduled_s")), strict=True)
    late = [row for row in rows if 3.0 < row[0] < ready_s - 0.1]
    assert len(late) > 4
    assert min(start_s for _, start_s in late) >= ready_s
    assert bool(result.summary["recoveries"]) == lost


def test_weights_from_peers_at_a_rate_take_what_the_fullest_lacks(tmp_path: Path) -> None:
    result = run(grows(weights="peer", bandwidth="10 GB/s"), tmp_path)
    (switched_s,) = times(result, "replica_converted")
    one = load_llm("llama-3.1-8b", Path())
    each = weight_bytes_per_accelerator(one, schema.Parallelism(dp=3))
    assert 2.0 + each / 10e9 <= switched_s < 2.0 + each / 10e9 + 0.05


def test_what_is_moved_between_shapes_of_a_mixture_of_experts() -> None:
    base = {"name": "x", "llm": "deepseek-v2-lite", "accelerator": "ascend-910c"}
    two, four = (
        describe_pool(schema.Pool.model_validate({**base, "parallelism": {"dp": n, "ep": n}}), 0, Path())
        for n in (2, 4)
    )
    of_two, of_four = (weight_bytes_per_accelerator(p.llm, p.config.parallelism) for p in (two, four))
    assert moved_weight_bytes(two, four) == (of_four, 2 * of_four)  # the first two only drop experts
    assert moved_weight_bytes(four, two) == (of_two - of_four, 2 * (of_two - of_four))


def refused(**changes: Any) -> str:
    given = grows()
    given.update(changes)
    with pytest.raises(ScenarioError) as caught:
        fleetsim.run(given, check=True)
    return str(caught.value)


def way(**changes: Any) -> list[dict[str, Any]]:
    return [{"source": "small", "target": "large", **changes}]


def test_names_of_pools_are_checked() -> None:
    assert 'conversions[0].target: no pool is called "lage"' in refused(conversions=way(target="lage"))
    text = refused(autoscaler={"policy": "shape-ladder", "pools": ["smal", "large"]})
    assert 'autoscaler.pools[0]: no pool is called "smal"' in text
    assert 'did you mean "small"?' in text
    entry = {"at_s": 1.0, "pool": "x", "replicas": 1}
    text = refused(autoscaler={"policy": "timetable", "changes": [entry]})
    assert 'autoscaler.changes[0].pool: no pool is called "x"' in text
    assert "another conversion from small to large" in refused(conversions=[*way(), *way()])
    assert "cannot turn into its own" in refused(conversions=way(target="small"))


def test_memory_for_both_is_needed() -> None:
    pools = [{**each, "engine": {"kind": "vllm"}, "accelerator": "h100-sxm"} for each in grows()["pools"]]
    text = refused(pools=pools, conversions=way(requests="hand-over", weights="ssd"))
    assert "on an accelerator that both share" in text
    shrinks = [{"source": "large", "target": "small", "requests": "hand-over", "weights": "peer"}]
    experts = [
        {**each, "llm": "deepseek-v2-lite", "parallelism": {"dp": n, "ep": n}}
        for each, n in zip(pools, (2, 4), strict=True)
    ]
    assert "what the new shape has more of" in refused(pools=experts, conversions=shrinks)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"autoscaler": None}, "nobody asks for them"),
        ({"conversions": way(requests="hand-over", weights="store")}, "the network has no store"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], message: str) -> None:
    assert message in refused(**changes)


def test_pools_that_differ_in_what_stays_are_refused() -> None:
    small, large = grows()["pools"]
    other = {**large, "accelerator": "h100-sxm"}
    assert "has the same LLM on the same kind" in refused(pools=[small, other], conversions=way())
    blocks = {**large, "engine": {**large["engine"], "kv": {"block_tokens": 32, "capacity_tokens": 3200}}}
    text = refused(pools=[small, blocks], conversions=way(requests="hand-over"))
    assert 'engine.kv.block_tokens is 16 in "small" and 32 in "large"' in text
    mine = {**small, "autoscaler": "hpa", "min_replicas": 1}
    assert "one or the other" in refused(pools=[mine, large], conversions=way())
    assert "nobody asks for one" in refused(autoscaler=None, conversions=[])
