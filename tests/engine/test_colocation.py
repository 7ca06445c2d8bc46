"""Online and offline requests on one replica: who gives way, what is predicted, and leaps against single steps."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fleetsim
from fleetsim.engine.api import Line
from fleetsim.engine.batch import Batch
from fleetsim.engine.gaps import GapHistogram
from fleetsim.engine.replica import Replica
from fleetsim.engine.schedulers.xllm_colocation import XllmColocation, XllmColocationConfig
from fleetsim.kernel.clock import Clock
from fleetsim.scenario.schema import Scenario
from fleetsim.testing import check_scheduler
from fleetsim.workload.request import Request
from tests.engine.test_leaps import assert_same, run_both


class Linear:
    """A decode step takes 1 ms a request and 0.1 ms a token of context; a prompt token takes 1 ms."""

    idle_w, static_w, limit_w, frontend_s = 50.0, 100.0, 400.0, 0.0

    def decode(self, batch: int, ctx_tokens: int, group_tokens: int) -> Line:
        return Line(0.001 * batch, 0.0001, 0.1 * batch, 0.0, float("inf"))

    def mixed(self, tokens: int, sampled: int, pairs: int, ctx: int, prompts: int, decodes: int, held: int, group: int):  # type: ignore[no-untyped-def]
        return 0.001 * tokens + 0.0001 * held, 0.1 * tokens


class Station:
    def __init__(self, blocks: int = 10_000, **options: Any) -> None:
        self.clock = Clock()
        self.batch = Batch(blocks, 16, False)
        self.ended: list[Request] = []
        self.steps: list[tuple[float, float, bool]] = []
        scheduler = XllmColocation(XllmColocationConfig(**{"tpot_slo_s": 0.1, **options}))
        self.replica = Replica(
            0, self.clock, Linear(), scheduler, [self.batch], GapHistogram(), self.ended.append, False, 1, 2
        )

    def send(self, number: int, at_s: float, prompt: int, output: int, klass: str | None = None) -> Request:
        request = Request(number, at_s, prompt, output, klass=klass)
        self.clock.at(at_s, partial(self.replica.enqueue, request, at_s))
        return request

    def finish(self, requests: int) -> None:
        self.clock.run()
        assert len(self.ended) == requests
        self.batch.verify()
        assert sum(r.energy_j for r in self.ended) == pytest.approx(self.replica.energy_j, rel=1e-12)


def test_an_offline_prompt_is_stopped_inside_its_step() -> None:
    """1,000 tokens take one second; an online request that comes at 0.25 s waits for the third of ten operators only."""
    station = Station()
    offline, online = station.send(0, 0.0, 1000, 1, "offline"), station.send(1, 0.25, 100, 2)
    station.finish(2)
    assert online.first_token_s == pytest.approx(0.3 + 0.1)
    assert station.replica.stops.count == 1
    assert offline.end_s == pytest.approx(1.0 + 0.1 + 0.001 + 0.1 * 0.101)


def test_without_interruptions_it_waits_for_the_whole_step() -> None:
    station = Station(interrupt=False)
    station.send(0, 0.0, 1000, 1, "offline")
    online = station.send(1, 0.25, 100, 2)
    station.finish(2)
    assert online.first_token_s == pytest.approx(1.1)


def test_a_chunk_is_as_long_as_the_objective_allows() -> None:
    """An online request of 100 tokens of context decodes in 11 ms: 88 prompt tokens fit into 100 ms beside it, 89 do not."""
    station = Station()
    station.send(0, 0.0, 100, 200)
    offline = station.send(1, 0.105, 300, 1, "offline")
    station.clock.run(0.3)
    # whole steps of at most 0.1 s, none of them stretched
    assert station.batch.chunks[0][0] is offline
    decode_s = 0.001 + 0.0001 * (station.batch.ctx_tokens + 1)
    tokens = station.batch.chunks[0][1]
    assert decode_s + 0.001 * tokens <= 0.1 < decode_s + 0.001 * (tokens + 1)
    station.clock.run()
    assert station.ended[-1].itl_max_s <= 0.1 + 1e-9


def test_who_would_make_the_step_too_long_is_not_admitted_until_the_online_request_ends() -> None:
    """Beside 100 tokens of context, 900 more make a decode step of 102 ms: the request waits although blocks and seats are free."""
    station = Station()
    online, offline = station.send(0, 0.0, 100, 50), station.send(1, 0.15, 900, 3, "offline")
    station.finish(2)
    assert offline.first_scheduled_s >= online.end_s
    assert online.itl_max_s < 0.02


def test_growing_contexts_push_an_offline_request_out() -> None:
    """Both decode, and each step adds two tokens of context: at 980 the step would last more than 100 ms."""
    station = Station()
    online = station.send(0, 0.0, 450, 400)
    offline = station.send(1, 0.0, 400, 400, "offline")
    station.finish(2)
    assert offline.preemptions >= 1
    assert online.preemptions == 0
    assert online.itl_max_s <= 0.1 + 1e-9


def test_online_requests_take_blocks_and_seats_from_offline_ones() -> None:
    station = Station(blocks=20, max_seqs=2, roofline=False)
    offline = [station.send(n, 0.0, 100, 50, "offline") for n in range(2)]
    online = station.send(2, 0.3, 150, 5)
    station.finish(3)
    assert online.end_s < min(request.end_s for request in offline)
    assert [request.preemptions for request in offline] in ([0, 1], [1, 1])


def test_the_checker_passes() -> None:
    for options in ({}, {"roofline": False}, {"tpot_slo_s": 0.02, "max_batched_tokens": 256, "max_seqs": 8}):
        assert len(check_scheduler("xllm-colocation", options).checks) == 5


# --- leaps ------------------------------------------------------------------------------------------------------------


def part(klass: str, rate: int, prompt: int, output: int, requests: int) -> dict[str, Any]:
    return {
        "kind": "synthetic",
        "class": klass,
        "requests": requests,
        "arrivals": {"process": "gamma", "rate": f"{rate} req/s", "burstiness": 0.4},
        "prompt_tokens": {"distribution": "lognormal", "mean": prompt, "cv": 1.0, "min": 1, "max": 1200},
        "output_tokens": {"distribution": "lognormal", "mean": output, "cv": 1.0, "min": 1, "max": 400},
    }


@st.composite
def scenarios(draw: st.DrawFn) -> dict[str, Any]:
    split = draw(st.integers(0, 2)) == 0
    engine = {
        "scheduler": {
            "policy": "xllm-colocation",
            "tpot_slo_s": draw(st.sampled_from([0.0125, 0.015, 0.02, 0.05])),
            "max_batched_tokens": draw(st.sampled_from([256, 2048])),
            "max_seqs": draw(st.sampled_from([4, 32, 128])),
            "roofline": draw(st.integers(0, 3)) > 0,
            "interrupt": draw(st.booleans()),
        },
        "prefix_cache": draw(st.booleans()),
        "kv": {
            "block_tokens": draw(st.sampled_from([1, 16])),
            "capacity_tokens": draw(st.sampled_from([2400, 8000, 60_000])),
        },
    }
    if draw(st.integers(0, 3)) == 0:
        engine["kv"]["preemption"] = {"mode": "swap", "capacity": "8 GB"}
    pool = {"llm": "llama-3.1-8b", "accelerator": "a100-80", "engine": engine}
    pools = [{**pool, "name": "all"}]
    if split:
        pools = [{**pool, "name": "prompts", "role": "prefill"}, {**pool, "name": "answers", "role": "decode"}]
    return {
        "schema": 1,
        "name": "generated",
        "seed": draw(st.integers(0, 10_000)),
        "workload": {
            "kind": "mix",
            "parts": {
                "chat": part(
                    "chat", draw(st.integers(2, 30)), draw(st.integers(20, 400)), draw(st.integers(2, 120)), 40
                ),
                "batch": part(
                    "offline", draw(st.integers(2, 60)), draw(st.integers(20, 400)), draw(st.integers(2, 120)), 40
                ),
            },
        },
        "pools": pools,
    }


QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=40, deadline=None, suppress_health_check=QUIET)
@given(scenario=scenarios())
def test_leaps_equal_step_by_step(scenario: dict[str, Any], tmp_path: Path) -> None:
    assert_same(*run_both(scenario, tmp_path))


@pytest.mark.slow
@settings(max_examples=500, deadline=None, suppress_health_check=QUIET)
@given(scenario=scenarios())
def test_leaps_equal_step_by_step_at_length(scenario: dict[str, Any], tmp_path: Path) -> None:
    assert_same(*run_both(scenario, tmp_path))


def test_the_comparison_is_not_vacuous(tmp_path: Path) -> None:
    """Offline requests are pushed out, steps are stopped, and most steps are leapt over."""
    engine = {
        "scheduler": {"policy": "xllm-colocation", "tpot_slo_s": 0.0125},
        "prefix_cache": False,
        "kv": {"capacity_tokens": 60_000},
    }
    scenario = {
        "schema": 1,
        "name": "both",
        "workload": {
            "kind": "mix",
            "parts": {"chat": part("chat", 2, 200, 60, 60), "batch": part("offline", 6, 400, 150, 200)},
        },
        "pools": [{"name": "all", "llm": "llama-3.1-8b", "accelerator": "a100-80", "engine": engine}],
    }
    fast, slow = run_both(scenario, tmp_path)
    assert_same(fast, slow)
    assert fast.summary["preemptions"] > 3
    assert "interruptions" in fast.table("events")["kind"].to_pylist()
    assert fast.events < 0.7 * slow.events
    always = {
        **scenario,
        "pools": [
            {
                **scenario["pools"][0],
                "engine": {**engine, "scheduler": {"policy": "xllm-colocation", "roofline": False}},
            }
        ],
    }
    other = fleetsim.run(Scenario.model_validate(always), out=tmp_path / "always", check=True)
    late = {
        name: result.requests().filter(_of_class(result, "chat"))["tpot_s"].to_numpy().mean()
        for name, result in (("kept", fast), ("not", other))
    }
    assert late["kept"] < late["not"]


def _of_class(result: fleetsim.Result, name: str) -> Any:
    import pyarrow.compute as pc

    table = result.requests()
    return pc.and_(pc.equal(table["class"].cast("string"), name), pc.is_valid(table["tpot_s"]))


def test_offline_answers_are_computed_in_either_pool(tmp_path: Path) -> None:
    """Where the xllm router knows the class, prefill instances decode for it too; online answers stay with decode instances."""
    engine = {"scheduler": {"policy": "xllm-colocation"}, "prefix_cache": False}
    scenario = {
        "schema": 1,
        "name": "either",
        "workload": {
            "kind": "mix",
            "parts": {"chat": part("chat", 4, 200, 60, 40), "batch": part("offline", 8, 300, 150, 80)},
        },
        "gateway": {"router": {"policy": "xllm", "offline": ["offline"], "flips": False}},
        "pools": [{"name": "all", "llm": "llama-3.1-8b", "accelerator": "a100-80", "replicas": 4, "engine": engine}],
    }
    rows = fleetsim.run(Scenario.model_validate(scenario), out=tmp_path / "out", check=True).requests().to_pylist()
    decoders = {
        name: {r["replica"] for r in rows if r["class"] == name and r["output_tokens"] > 1}
        for name in ("chat", "offline")
    }
    assert decoders["chat"] <= {2, 3}
    assert decoders["offline"] & {0, 1}
    assert decoders["offline"] & {2, 3}
