"""Steps that are stopped between two operators: exact times and energies, room, and everything that can happen meanwhile."""

from __future__ import annotations

from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field

import fleetsim
from fleetsim.engine.api import OPERATORS, Line, Operators
from fleetsim.engine.batch import Batch
from fleetsim.engine.gaps import GapHistogram
from fleetsim.engine.replica import Replica
from fleetsim.engine.schedulers.flow_prefill import FlowPrefill, FlowPrefillConfig
from fleetsim.errors import PolicyError
from fleetsim.fleet.pool import describe_pool
from fleetsim.kernel.clock import Clock
from fleetsim.plugins import PolicyConfig
from fleetsim.scenario import schema
from fleetsim.scenario.schema import Scenario
from fleetsim.testing import check_scheduler
from fleetsim.workload.prefixes import Content
from fleetsim.workload.request import WAITING, Request
from tests.engine.test_leaps import assert_same, run_both

STATIC_W, LIMIT_W, TOKEN_J = 100.0, 400.0, 0.5


class LinearConfig(PolicyConfig):
    token_s: float = Field(0.01, gt=0)


class Linear:
    """A step takes 10 ms a token and 0.5 J; nothing is known of its operators."""

    Config = LinearConfig
    idle_w, static_w, limit_w, frontend_s = 50.0, STATIC_W, LIMIT_W, 0.0

    def __init__(self, config: LinearConfig | None = None, *_: Any) -> None:
        self.token_s = (config or LinearConfig()).token_s

    def decode(self, batch: int, ctx_tokens: int, group_tokens: int) -> Line:
        return Line(self.token_s * batch, 0.0, TOKEN_J * batch, 0.0, inf)

    def mixed(self, tokens: int, *_: int) -> tuple[float, float]:
        return self.token_s * tokens, TOKEN_J * tokens


class Known(Linear):
    """The same with a tenth of the time before the layers, a tenth behind them, long attention, and 5 ms per resumption."""

    def prefill_operators(self, *_: int) -> Operators:
        return Operators(0.1, (0.08, 0.4, 0.08, 0.16, 0.08), 0.1, 4, 0.005)


class Station:
    """One replica under FlowPrefill: two layers, so that a step of one second has operators of 0.1 s."""

    def __init__(
        self,
        model: Linear | None = None,
        blocks: int = 1000,
        suspended_tokens: float = 0.0,
        layers: int = 2,
        prefix_cache: bool = False,
        **options: Any,
    ) -> None:
        self.clock = Clock()
        self.batch = Batch(blocks, 16, prefix_cache)
        self.ended: list[Request] = []
        self.model = model or Linear()
        scheduler = FlowPrefill(FlowPrefillConfig(**options))
        self.replica = Replica(
            0, self.clock, self.model, scheduler, [self.batch], GapHistogram(), self.ended.append, False, 1,
            layers, suspended_tokens,
        )  # fmt: skip

    def send(self, number: int, at_s: float, prompt: int, limit_s: float, output: int = 1, **more: Any) -> Request:
        request = Request(number, at_s, prompt, output, **more)
        request.deadline_s = at_s + limit_s
        self.clock.at(at_s, partial(self.replica.enqueue, request, at_s))
        return request

    def verify(self, requests: int) -> None:
        assert len(self.ended) == requests
        assert not self.batch.suspended
        assert not self.batch.running
        self.batch.verify()
        charged = sum(r.energy_j for r in self.ended)
        assert charged == pytest.approx(self.replica.energy_j, rel=1e-12)
        assert sum(r.cost_share_s for r in self.ended) == pytest.approx(self.replica.busy_s, rel=1e-12)


# --- exact times and energies -----------------------------------------------------------------------------------------


def test_a_step_stops_behind_the_operator_under_way() -> None:
    """100 tokens from 0 s; 10 urgent ones come at 0.25 s, wait for the third of ten operators, and take 0.1 s."""
    station = Station()
    long, short = station.send(0, 0.0, 100, 50.0), station.send(1, 0.25, 10, 0.2)
    station.clock.run()
    station.verify(2)
    assert short.first_token_s == pytest.approx(0.4)
    assert long.first_token_s == pytest.approx(1.1)
    assert station.replica.busy_s == pytest.approx(1.1)
    assert long.energy_j == pytest.approx(STATIC_W * 1.0 + TOKEN_J * 100)
    assert short.energy_j == pytest.approx(STATIC_W * 0.1 + TOKEN_J * 10)
    assert (station.replica.stops.count, station.replica.steps) == (1, 2)
    assert station.replica.stops.blocking_s == pytest.approx(0.05)


def test_operators_of_the_model_and_the_price_of_a_resumption() -> None:
    """0.1 s before four layers of 0.02, 0.1, 0.02, 0.04, 0.02 s: at 0.25 s the first layer's third operator is the last done."""
    station = Station(Known())
    long, short = station.send(0, 0.0, 100, 50.0), station.send(1, 0.25, 10, 0.2)
    station.clock.run()
    station.verify(2)
    assert short.first_token_s == pytest.approx(0.28 + 0.1)  # gate_up_proj ends at 0.1 + 0.02 + 0.1 + 0.02 + 0.04
    assert long.first_token_s == pytest.approx(1.1 + 0.005)
    assert long.energy_j == pytest.approx(STATIC_W * 1.005 + TOKEN_J * 100)


def test_layers_are_coarser_than_operators() -> None:
    station = Station(Known(), granularity="layer")
    _, short = station.send(0, 0.0, 100, 50.0), station.send(1, 0.25, 10, 0.2)
    station.clock.run()
    assert short.first_token_s == pytest.approx(0.3 + 0.1)


@pytest.mark.parametrize(
    ("at_s", "first_s"),
    [(0.05, 0.1), (0.1, 0.1), (0.31, 0.32), (0.89, 0.9), (0.91, 1.0), (1.0, 1.0)],
    ids=["before the layers", "at a boundary", "second layer", "last operator", "in the head: no stop", "at the end"],
)
def test_where_it_stops(at_s: float, first_s: float) -> None:
    station = Station(Known())
    _, short = station.send(0, 0.0, 100, 50.0), station.send(1, at_s, 10, 0.3)
    station.clock.run()
    station.verify(2)
    assert short.first_token_s == pytest.approx(first_s + 0.1)
    assert station.replica.stops.count == (at_s < 0.9)


def test_a_step_is_stopped_again_also_while_it_is_resumed() -> None:
    """The third request comes 2 ms into the resumption's 5 ms: nothing is done, and it is paid again."""
    station = Station(Known())
    long = station.send(0, 0.0, 100, 50.0)
    station.send(1, 0.25, 10, 0.2)
    third = station.send(2, 0.382, 10, 0.2)
    fourth = station.send(3, 0.5, 10, 0.2)
    station.clock.run()
    station.verify(4)
    assert third.first_token_s == pytest.approx(0.385 + 0.1)
    # resumed at 0.485 + 0.005, where 0.28 were done: at 0.5 it is at 0.29, down_proj ends at 0.3
    assert fourth.first_token_s == pytest.approx(0.51 + 0.1)
    assert station.replica.stops.count == 3
    assert long.first_token_s == pytest.approx(1.3 + 3 * 0.005)
    assert long.energy_j == pytest.approx(STATIC_W * 1.015 + TOKEN_J * 100)


def test_a_capped_step_stays_at_its_cap() -> None:
    """Steps that would take more than the limit take just that, in parts too."""
    model = Linear()
    model.limit_w = 130.0
    station = Station(model)
    long, _ = station.send(0, 0.0, 100, 50.0), station.send(1, 0.25, 10, 0.2)
    station.clock.run()
    station.verify(2)
    assert long.energy_j == pytest.approx(130.0)


@pytest.mark.parametrize("at_s", [0.1, 0.27, 0.3, 0.35, 0.4, 0.402, 0.6])
def test_meter_and_end_at_a_horizon(at_s: float) -> None:
    """At any instant the meter is what requests are charged for, also in the middle of a stopped or resumed step."""
    station = Station(Known())
    requests = [station.send(0, 0.0, 100, 50.0), station.send(1, 0.25, 10, 0.2)]
    station.clock.run(at_s)
    meter = station.replica.meter(at_s)
    assert meter.busy_s == pytest.approx(at_s)
    station.replica.stop(at_s)
    assert station.replica.energy_j == pytest.approx(meter.energy_j)
    assert sum(r.energy_j for r in requests) == pytest.approx(meter.energy_j)
    assert sum(r.cost_share_s for r in requests) == pytest.approx(at_s)
    station.batch.verify()


def test_who_waits_in_vain_stops_nobody() -> None:
    """Requests that are less urgent, equally urgent or too late already wait for the end of the step."""
    for limit_s in (60.0, 0.05, inf):
        station = Station()
        long, other = station.send(0, 0.0, 100, 50.0), station.send(1, 0.25, 10, limit_s)
        station.clock.run()
        assert [long.first_token_s, other.first_token_s] == pytest.approx([1.0, 1.1])
        assert station.replica.stops.count == 0


def test_feasible_first() -> None:
    """At 1 s the one that is too late already waits for the one that is not, although its deadline was earlier."""
    station = Station()
    station.send(0, 0.0, 100, 50.0)
    late, good = station.send(1, 0.95, 10, 0.05), station.send(2, 0.951, 10, 0.2)
    station.clock.run()
    assert good.first_token_s < late.first_token_s


def test_batches_while_the_first_keeps_its_limit() -> None:
    """Three of 10 tokens: with 0.25 s for the first, two are computed together, with 0.35 s all three."""
    for limit_s, together in ((0.15, 1), (0.25, 2), (0.35, 3)):
        station = Station()
        requests = [station.send(i, 0.0, 10, limit_s + i) for i in range(3)]
        station.clock.run()
        ends = [r.first_token_s for r in requests]
        assert ends.count(ends[0]) == together
    station = Station(max_batched_tokens=25)
    assert [station.send(i, 0.0, 10, 50.0).id for i in range(3)] == [0, 1, 2]
    station.clock.run()
    assert sorted(r.first_token_s for r in station.ended) == pytest.approx([0.2, 0.2, 0.3])


# --- room -------------------------------------------------------------------------------------------------------------


def test_activations_take_room() -> None:
    """100 tokens whose activations take as much as 160 tokens of cache: 10 blocks beside their own 7."""
    station = Station(blocks=19, suspended_tokens=1.6)
    station.send(0, 0.0, 100, 50.0)
    station.send(1, 0.25, 10, 0.2)
    station.clock.run(0.35)
    assert station.batch.cache.used == 7 + 10 + 1
    station.clock.run(0.45)
    assert station.batch.cache.used == 7
    station.clock.run()
    station.verify(2)


def test_without_room_for_them_nothing_is_stopped() -> None:
    station = Station(blocks=17, suspended_tokens=1.6)
    long, short = station.send(0, 0.0, 100, 50.0), station.send(1, 0.25, 10, 0.2)
    station.clock.run()
    station.verify(2)
    assert [long.first_token_s, short.first_token_s] == pytest.approx([1.0, 1.1])


def test_decodes_wait_and_get_their_gap() -> None:
    """A step with held decodes can be stopped; what they waited is one gap."""
    station = Station()
    decoding = station.send(0, 0.0, 10, 9.0, output=3)
    station.send(1, 0.05, 100, 50.0)
    station.send(2, 0.36, 10, 0.2)
    station.clock.run()
    station.verify(3)
    # its first token at 0.1, then 100 and 10 tokens, then two decode steps of 10 ms
    assert decoding.first_token_s == pytest.approx(0.1)
    assert decoding.itl_max_s == pytest.approx(1.0 + 0.1 + 0.01)
    assert decoding.end_s == pytest.approx(0.1 + 1.1 + 0.02)


def test_a_suspended_prompt_is_not_in_the_cache_yet() -> None:
    """Somebody with the same beginning computes it again, and finds it once one of the two is done."""
    station = Station(prefix_cache=True)
    content = Content(((2, 64),))
    station.send(0, 0.0, 100, 50.0, content=content)
    second = station.send(1, 0.25, 80, 1.5, content=content)
    third = station.send(2, 5.0, 80, 1.5, content=content)
    station.clock.run()
    station.verify(3)
    assert station.replica.stops.count == 1
    assert (second.cached_tokens, third.cached_tokens) == (0, 64)


# --- withdrawal -------------------------------------------------------------------------------------------------------


def test_a_suspended_request_can_be_withdrawn() -> None:
    """It leaves at the end of the step under way; its step is dropped, blocks and activations are free."""
    station = Station(suspended_tokens=1.0)
    long, short = station.send(0, 0.0, 100, 50.0), station.send(1, 0.25, 10, 0.2)
    gone: list[float] = []
    station.clock.at(0.35, lambda: station.replica.withdraw(long, lambda _: gone.append(station.clock.now_s)))
    station.clock.run()
    assert gone == [pytest.approx(0.4)]
    assert long.status == WAITING
    assert short.first_token_s == pytest.approx(0.4)
    assert station.ended == [short]
    assert station.batch.cache.used == 0
    station.batch.verify()
    assert long.energy_j + short.energy_j == pytest.approx(station.replica.energy_j)
    assert long.energy_j == pytest.approx(0.3 * (STATIC_W + 100 * TOKEN_J))


def test_one_of_several_suspended_requests_can_be_withdrawn() -> None:
    """The rest of their step lasts as long, and the other one pays for it."""
    station = Station(suspended_tokens=1.0)
    first, second = station.send(0, 0.0, 50, 50.0), station.send(1, 0.0, 50, 51.0)
    short = station.send(2, 0.25, 10, 0.2)
    station.clock.at(0.35, lambda: station.replica.withdraw(first, lambda _: None))
    station.clock.run()
    assert station.ended == [short, second]
    assert second.first_token_s == pytest.approx(1.1)
    charged = first.energy_j + second.energy_j + short.energy_j
    assert charged == pytest.approx(station.replica.energy_j, rel=1e-12)
    station.batch.verify()


def test_withdrawn_while_it_is_about_to_be_stopped() -> None:
    station = Station()
    long, short = station.send(0, 0.0, 100, 50.0), station.send(1, 0.25, 10, 0.2)
    station.clock.at(0.27, lambda: station.replica.withdraw(long, lambda _: None))
    station.clock.run()
    assert station.ended == [short]
    assert short.first_token_s == pytest.approx(0.4)
    assert station.batch.cache.used == 0


def test_preempted_while_suspended() -> None:
    """Its blocks are taken for another one: it is computed again from the start."""
    station = Station()
    long = station.send(0, 0.0, 100, 50.0)
    station.send(1, 0.25, 10, 0.2)
    station.clock.at(0.31, lambda: station.replica.at_boundary(lambda: station.batch.preempt(long)))
    station.clock.run()
    station.verify(2)
    assert long.preemptions == 1
    assert long.first_token_s == pytest.approx(0.4 + 1.0)


def test_a_suspended_request_can_leave_for_another_replica() -> None:
    station = Station(suspended_tokens=1.0)
    long = station.send(0, 0.0, 100, 50.0)
    station.send(1, 0.25, 10, 0.2)
    left: list[Any] = []
    station.clock.at(0.31, lambda: station.replica.at_boundary(lambda: left.append(station.replica.depart(long))))
    station.clock.run()
    assert long.computed == 0
    assert station.batch.cache.used == 7
    station.batch.verify()


# --- what is refused --------------------------------------------------------------------------------------------------


class Merging(FlowPrefill):
    """Resumes a step beside another one."""

    def schedule(self, batch: Batch) -> None:
        super().schedule(batch)
        if batch.suspended and batch.chunks:
            batch.resume(batch.suspended[0])


class Idle(FlowPrefill):
    """Forgets what it suspended."""

    def schedule(self, batch: Batch) -> None:
        if not batch.suspended:
            super().schedule(batch)


class Grabbing(FlowPrefill):
    """Plans a chunk of a request whose step is suspended."""

    def schedule(self, batch: Batch) -> None:
        if batch.suspended:
            batch.extend(batch.suspended[0].chunks[0][0], 5)
        else:
            super().schedule(batch)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [(Merging, "cannot be merged"), (Idle, "plans nothing although"), (Grabbing, "part of a suspended step")],
)
def test_misuse_is_found(scheduler: type[FlowPrefill], message: str) -> None:
    station = Station()
    station.replica = Replica(
        0, station.clock, station.model, scheduler(FlowPrefillConfig()), [station.batch], GapHistogram(),
        station.ended.append,
    )  # fmt: skip
    station.send(0, 0.0, 100, 50.0)
    station.send(1, 0.25, 10, 0.2)
    with pytest.raises(PolicyError, match=message):
        station.clock.run()


def test_a_step_is_resumed_only_while_it_is_suspended() -> None:
    station = Station()
    station.send(0, 0.0, 100, 50.0)
    station.send(1, 0.25, 10, 0.2)
    station.clock.run(0.35)
    (plan,) = station.batch.suspended
    station.clock.run()
    with pytest.raises(PolicyError, match="only where and while"):
        station.batch.resume(plan)


def test_ranks_cannot_be_stopped_together() -> None:
    batches = [Batch(100, 16, False) for _ in range(2)]
    with pytest.raises(PolicyError, match=r"set parallelism\.dp to 1"):
        Replica(0, Clock(), Linear(), FlowPrefill(FlowPrefillConfig()), batches, GapHistogram(), list[Request]().append)


# --- leaps and laws over random scenarios -----------------------------------------------------------------------------


@st.composite
def scenarios(draw: st.DrawFn) -> dict[str, Any]:
    """A long-prompt class with time and a short one without, on a pool of few or many blocks."""

    def part(kind: str, mean: int, rate: float, output: int) -> dict[str, Any]:
        return {
            "kind": "synthetic",
            "class": kind,
            "requests": draw(st.integers(10, 50)),
            "arrivals": {"process": "gamma", "rate": f"{rate} req/s", "burstiness": draw(st.sampled_from([0.5, 3]))},
            "prompt_tokens": {"distribution": "lognormal", "mean": mean, "cv": 0.8, "min": 1, "max": 3 * mean},
            "output_tokens": {"distribution": "fixed", "value": output},
            **({"prefixes": {"groups": 2, "tokens": mean // 3, "zipf": 1.0}} if draw(st.booleans()) else {}),
        }

    output = draw(st.sampled_from([1, 1, 2, 30]))
    return {
        "schema": 1,
        "name": "generated",
        "seed": draw(st.integers(0, 10_000)),
        "workload": {
            "kind": "mix",
            "parts": {
                "long": part("file", 4000, draw(st.sampled_from([3, 8])), output),
                "short": part("text", 200, draw(st.sampled_from([5, 30])), output),
            },
        },
        "slo": {
            "classes": {
                "file": {"ttft": "6 s"},
                "text": {"ttft": f"{draw(st.sampled_from([60, 250, 900]))} ms"},
            }
        },
        "pools": [
            {
                "name": "main",
                "llm": "llama-3.1-8b",
                "accelerator": draw(st.sampled_from(["rtx-4090", "h100-sxm"])),
                "replicas": draw(st.integers(1, 2)),
                **({"power": {"cap": "300 W"}} if draw(st.booleans()) else {}),
                "engine": {
                    "scheduler": {
                        "policy": "flow-prefill",
                        "granularity": draw(st.sampled_from(["operator", "operator", "layer", "chunk"])),
                        "order": draw(st.sampled_from(["slack", "slack", "deadline", "arrival"])),
                        "max_batched_tokens": draw(st.sampled_from([512, 8192])),
                        "max_seqs": draw(st.sampled_from([4, 64])),
                    },
                    "kv": {"capacity_tokens": draw(st.sampled_from([14_000, 200_000]))},
                    "prefix_cache": draw(st.booleans()),
                },
            }
        ],
    }


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(scenario=scenarios())
def test_leaps_equal_step_by_step(scenario: dict[str, Any], tmp_path: Path) -> None:
    """And all laws hold."""
    assert_same(*run_both(scenario, tmp_path))


def mixed_scenario(**scheduler: Any) -> dict[str, Any]:
    def part(kind: str, mean: int, rate: int, count: int) -> dict[str, Any]:
        return {
            "kind": "synthetic",
            "class": kind,
            "requests": count,
            "arrivals": {"process": "gamma", "rate": f"{rate} req/s"},
            "prompt_tokens": {"distribution": "lognormal", "mean": mean, "cv": 0.8, "min": 1, "max": 3 * mean},
            "output_tokens": {"distribution": "fixed", "value": 1},
        }

    return {
        "schema": 1,
        "name": "mixed",
        "workload": {"kind": "mix", "parts": {"a": part("file", 8000, 2, 60), "b": part("text", 200, 15, 450)}},
        "slo": {"classes": {"file": {"ttft": "6 s"}, "text": {"ttft": "250 ms"}}},
        "pools": [
            {
                "name": "main",
                "llm": "llama-3.1-8b",
                "accelerator": "h100-sxm",
                "engine": {"scheduler": {"policy": "flow-prefill", **scheduler}},
            }
        ],
    }


def test_the_comparison_is_not_vacuous(tmp_path: Path) -> None:
    """Steps are stopped often, for a few milliseconds each, and the urgent class gains by it."""
    fast, slow = run_both(mixed_scenario(), tmp_path)
    assert_same(fast, slow)
    counts = {row["kind"]: row["count"] for row in fast.table("events").to_pylist()}
    assert counts["interruptions"] > 50
    assert counts["interruption_wait_us"] / counts["interruptions"] < 6000
    text = [r["ttft_s"] for r in fast.requests().to_pylist() if r["class"] == "text"]
    whole = fleetsim.run(Scenario.model_validate(mixed_scenario(order="arrival")), out=tmp_path / "fcfs", check=True)
    without = [r["ttft_s"] for r in whole.requests().to_pylist() if r["class"] == "text"]
    assert sorted(text)[-len(text) // 10] < 0.5 * sorted(without)[-len(without) // 10]
    assert "interruptions" not in whole.table("events")["kind"].to_pylist()


def test_a_horizon_in_the_middle(tmp_path: Path) -> None:
    """Energy adds up (law 5) wherever the run ends."""
    for end in ("1.013 s", "1.529 s", "2.777 s", "5.1 s"):
        scenario = {**mixed_scenario(), "run": {"horizon": end}}
        result = fleetsim.run(Scenario.model_validate(scenario), out=tmp_path / end[:3], check=True)
        assert result.summary["energy_j"] > 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"granularity": "layer", "max_seqs": 8},
        {"granularity": "chunk", "order": "deadline", "max_batched_tokens": 256},
    ],
)
def test_the_checker_passes(options: dict[str, Any]) -> None:
    assert len(check_scheduler("flow-prefill", options).checks) == 5


# --- operators of the roofline ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("llm", "parallelism"),
    [
        ("llama-3.1-8b", {}),
        ("llama-3.1-8b", {"tp": 2}),
        ("llama-3.1-8b", {"pp": 2}),
        ("qwen3-30b-a3b", {}),
        ("qwen3-30b-a3b", {"tp": 2}),
    ],
)
def test_operators_of_the_roofline(llm: str, parallelism: dict[str, int]) -> None:
    """Shares add up to 1, none is below zero, and attention's grows with the prompt."""
    pool = schema.Pool.model_validate({"name": "x", "llm": llm, "accelerator": "h100-sxm", "parallelism": parallelism})
    model: Any = describe_pool(pool, 0, Path()).model
    before = 0.0
    for tokens in (20, 1000, 30_000):
        found = model.prefill_operators(tokens, 1, tokens * (tokens + 1) // 2, tokens, 1)
        assert found.before + sum(found.layers) + found.after == pytest.approx(1.0)
        assert min(found.before, *found.layers, found.after) >= 0
        assert found.resume_s > 0
        if tokens >= 1000:
            attention = found.layers[OPERATORS.index("attn")]
            assert attention > before
            before = attention
    assert before > 0.3


def test_operators_add_up_to_the_layers() -> None:
    """The parts are those that the step's time is summed from, not an estimate of their own."""
    for llm, parallelism in (("llama-3.1-8b", {"tp": 2}), ("qwen3-30b-a3b", {}), ("qwen3-30b-a3b", {"tp": 2})):
        pool = schema.Pool.model_validate(
            {"name": "x", "llm": llm, "accelerator": "h100-sxm", "parallelism": parallelism}
        )
        layers = describe_pool(pool, 0, Path()).model._layers  # type: ignore[attr-defined]
        for tokens in (1, 300, 9000):
            work = layers.work(tokens, True)
            parts, embedding_s = layers.operators(tokens, layers.experts(tokens).time_s)
            assert sum(parts) + embedding_s == pytest.approx(work.compute_s + work.network_s, rel=1e-12)


def test_a_capped_pool_knows_its_operators() -> None:
    pool = {"name": "x", "llm": "llama-3.1-8b", "accelerator": "h100-sxm"}
    plain: Any = describe_pool(schema.Pool.model_validate(pool), 0, Path()).model
    capped: Any = describe_pool(schema.Pool.model_validate({**pool, "power": {"cap": "300 W"}}), 0, Path()).model
    question = (1000, 1, 500_500, 1000, 1)
    assert capped.prefill_operators(*question) == plain.prefill_operators(*question)
    with pytest.raises(AttributeError, match="no attribute other"):
        _ = capped.other
