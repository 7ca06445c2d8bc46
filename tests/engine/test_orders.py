"""Orders of the queue: their rules on cases small enough to compute by hand, and leaps against single steps."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fleetsim
from fleetsim.engine.batch import Batch
from fleetsim.engine.gaps import GapHistogram
from fleetsim.engine.orders.order import Outlook
from fleetsim.engine.replica import Replica
from fleetsim.kernel.clock import Clock
from fleetsim.plugins import load, names
from fleetsim.scenario.schema import Scenario
from fleetsim.workload.request import Request
from tests.engine.test_leaps import assert_same, run_both, scenarios
from tests.theory.stations import ConstantStep, StepConfig

ORDERS = sorted({*names("orders")} - {"fcfs"})
VARIANTS: dict[str, dict[str, Any]] = {
    "ltr": {"starvation_steps": 20, "boost_steps": 3},
    "mlfq": {"quantum": "20 ms", "promote_after": "2 s"},
    "qlm": {"output_mean_tokens": 40.0, "output_std_tokens": 0.0},
    "vtc": {"predicted": True},
}
SCHEDULERS = {
    "orca": {"reserve_tokens": 300, "max_seqs": 8},
    "sarathi": {"max_batched_tokens": 64, "max_seqs": 8},
    "sglang": {"max_new_tokens": 100, "max_batched_tokens": 128, "max_seqs": 16},
    "static": {"max_seqs": 4},
    "vllm-v0": {"max_batched_tokens": 300, "max_seqs": 8},
    "vllm-v1": {"max_batched_tokens": 256, "max_seqs": 8},
}


class Station:
    """One rank whose steps last one second each, whatever they compute."""

    def __init__(
        self, order: str, blocks: int = 1000, seats: int = 1, scheduler: str = "vllm-v1", **options: Any
    ) -> None:
        policy, planner = load("orders", order), load("schedulers", scheduler)
        model = ConstantStep(StepConfig(step_s=1.0))
        self.clock = Clock()
        self.order = policy(policy.Config(**options), Outlook(model))
        self.batch = Batch(blocks, 16, False, order=self.order)
        self.ended: list[Request] = []
        self.replica = Replica(
            0,
            self.clock,
            model,
            planner(planner.Config(max_seqs=seats)),
            [self.batch],
            GapHistogram(),
            self.ended.append,
            verify_every=1,
        )

    def serve(self, *requests: Request) -> list[int]:
        """Ids in order of the end."""
        for request in requests:
            self.clock.at(request.arrival_s, partial(self.replica.enqueue, request, request.arrival_s))
        self.clock.run(1e6)
        assert len(self.ended) == len(requests)
        return [request.id for request in self.ended]


def request(number: int, time_s: float, output: int = 5, prompt: int = 10, **facts: Any) -> Request:
    made = Request(number, time_s, prompt, output)
    for name, value in facts.items():
        setattr(made, name, value)
    return made


def test_priority_is_served_first_and_gives_way_last() -> None:
    waiting = [request(0, 0.0), request(1, 0.1, priority=1), request(2, 0.2, priority=3), request(3, 0.3, priority=3)]
    assert Station("priority").serve(*waiting) == [0, 2, 3, 1]
    # 4 blocks of 16: both grow past 32 tokens, and the older one is less urgent
    old, new = request(0, 0.0, 4, 32), request(1, 0.0, 4, 32, priority=1)
    assert Station("priority", blocks=4, seats=2).serve(old, new) == [1, 0]
    assert (old.preemptions, new.preemptions) == (1, 0)


def test_earliest_deadline_first() -> None:
    waiting = [request(0, 0.0), request(1, 0.1, deadline_s=9.0), request(2, 0.2, deadline_s=5.0), request(3, 0.3)]
    assert Station("edf").serve(*waiting) == [0, 2, 1, 3]


def test_least_slack_begins_long_prompts_earlier() -> None:
    """A step of 1 s whatever it computes: slack is the deadline less 1 s, so it equals EDF; with steps by size it does not."""
    waiting = [request(0, 0.0), request(1, 0.1, deadline_s=9.0), request(2, 0.2, deadline_s=8.0)]
    station = Station("least-slack")
    station.order.outlook = Outlook(_PerToken())
    assert station.serve(*waiting) == [0, 2, 1]
    waiting = [request(0, 0.0), request(1, 0.1, prompt=3000, deadline_s=9.0), request(2, 0.2, deadline_s=8.0)]
    station = Station("least-slack")
    station.order.outlook = Outlook(_PerToken())
    assert station.serve(*waiting) == [0, 1, 2]


class _PerToken(ConstantStep):
    """A millisecond per token."""

    def __init__(self) -> None:
        super().__init__(StepConfig(step_s=1e-3))

    def duration_s(self, tokens: int) -> float:
        return self.step_s * tokens


def test_shortest_job_first_and_aging() -> None:
    def waiting() -> list[Request]:
        return [
            request(0, 0.0, 50),
            request(1, 1.0, 9, predicted_tokens=90),
            request(2, 10.0, 8, predicted_tokens=8),
            request(3, 20.0, 7, predicted_tokens=7),
            request(4, 2.0),
        ]

    assert Station("sjf").serve(*waiting()) == [0, 3, 2, 1, 4]
    # a second of waiting makes up for 10 tokens: 1 has 90 + 10, 2 has 8 + 100, 3 has 7 + 200, the unknown one 0 + 20
    assert Station("aging", tokens_per_s=10).serve(*waiting()) == [0, 4, 1, 2, 3]


def test_srpt_preempts_where_it_pays() -> None:
    """Steps of 1 s: computing again costs one step. 20 left against 10 does; 12 left against 11 does not."""
    long, short = request(0, 0.0, 24, predicted_tokens=24), request(1, 3.5, 10, predicted_tokens=10)
    assert Station("srpt").serve(long, short) == [1, 0]
    assert long.preemptions == 1
    assert (short.first_scheduled_s, short.end_s, long.end_s) == (4.0, 14.0, 34.0)
    long, short = request(0, 0.0, 15, predicted_tokens=15), request(1, 2.5, 11, predicted_tokens=11)
    assert Station("srpt").serve(long, short) == [0, 1]
    assert long.preemptions == 0


def test_ltr_runs_who_is_ranked_first_and_spares_the_starved() -> None:
    """Short ones arrive all the time: the long one runs 10 steps after 20 without, for 3, and is preempted again."""
    shorts = [request(i, 2.0 * i, 2, predicted_tokens=0.1) for i in range(1, 60)]
    long = request(0, 1.5, 9, predicted_tokens=0.9)
    station = Station("ltr", starvation_steps=20, boost_steps=3)
    station.serve(request(99, 0.0, 2, predicted_tokens=0.1), long, *shorts)
    assert 20.0 < long.first_scheduled_s < 30.0
    assert long.preemptions >= 2
    assert long.end_s < 100.0
    starved = request(0, 1.5, 9, predicted_tokens=0.9)
    shorts = [request(i, 2.0 * i, 2, predicted_tokens=0.1) for i in range(1, 60)]
    Station("ltr", starvation_steps=0).serve(request(99, 0.0, 2, predicted_tokens=0.1), starved, *shorts)
    assert starved.first_scheduled_s > 110.0


def test_mlfq_lets_newcomers_go_first() -> None:
    """Quanta of 2, 4, 8 s: the first request has run for 2 s when the second comes, and falls below it."""
    first, second = request(0, 0.0, 20), request(1, 4.5, 2)
    station = Station("mlfq", quantum="2 s", promote_after="1000 s")
    assert station.serve(first, second) == [1, 0]
    assert (second.first_scheduled_s, second.end_s, first.preemptions) == (5.0, 7.0, 1)
    # promoted after 3 s in the queue: nobody can hold it back for longer
    first, second = request(0, 0.0, 40), request(1, 0.5, 40)
    Station("mlfq", quantum="2 s", promote_after="3 s").serve(first, second)
    assert first.preemptions > 2
    assert second.preemptions > 2


def test_vtc_serves_who_was_served_least() -> None:
    """One seat. The glutton's first request costs 10 + 2 * 5 = 20, so the modest one goes before its second."""
    waiting = [request(i, 0.1 * i, tenant="glutton") for i in range(3)] + [request(3, 0.4, tenant="modest")]
    station = Station("vtc")
    assert station.serve(*waiting) == [0, 3, 1, 2]
    assert station.order.counter("glutton") == 60.0
    # lifted to 12 when it came: after one step the glutton had been charged its prompt and one answered token
    assert station.order.counter("modest") == 20.0 + 12.0


def test_vtc_weighs_shares() -> None:
    """A tenant of weight 3 gets three requests for each one of the other's."""
    waiting = [request(0, 0.0, tenant="a", weight=3.0)]
    waiting += [request(i, 0.1, tenant="ab"[i % 2], weight=3.0 - 2.0 * (i % 2)) for i in range(1, 17)]
    ended = Station("vtc").serve(*waiting)
    first = ["ab"[i % 2] for i in ended[:8]]
    assert first.count("a") == 6
    assert first.count("b") == 2


def test_vtc_charges_predictions_at_once_and_corrects_them() -> None:
    waiting = [request(0, 0.0, tenant="a", predicted_tokens=100.0), request(1, 0.1, tenant="b", predicted_tokens=1.0)]
    station = Station("vtc", seats=2, predicted=True)
    station.batch.now_s = 0.0
    for one in waiting:
        station.clock.at(one.arrival_s, partial(station.replica.enqueue, one, one.arrival_s))
    station.clock.run(2.5)
    assert station.order.counter("a") == 10.0 + 2.0 * 100.0
    station.clock.run(100.0)
    assert station.order.counter("a") == station.order.counter("b") == 20.0


def test_qlm_serves_groups_by_slack_and_by_deadline_where_one_would_be_late() -> None:
    """One seat, a token per second. Five of 20 tokens by 200 s must begin before one of 5 by 150 s, unless they all come late."""

    def waiting(early_s: float, late_s: float) -> list[Request]:
        many = [request(i, 0.1, 20, klass="many", deadline_s=late_s, predicted_tokens=20) for i in range(1, 6)]
        one = request(6, 0.2, 5, klass="one", deadline_s=early_s, predicted_tokens=5)
        return [request(0, 0.0, 5, klass="zero", deadline_s=1.0, predicted_tokens=5), *many, one]

    def served(early_s: float, late_s: float) -> list[int]:
        return Station("qlm", output_std_tokens=0.0, evict=False).serve(*waiting(early_s, late_s))

    # with two of them left, 40 s before 200 s, it is the one's turn: 5 s before 150 s
    assert served(150.0, 200.0) == [0, 1, 2, 3, 6, 4, 5]
    assert served(50.0, 200.0)[:2] == [0, 6]
    # the five would be done by 105 s, the one behind them by 110 s: 108 s would be too late, so the earliest deadline goes first
    assert served(108.0, 109.0)[:2] == [0, 6]


def test_qlm_bounds_the_waiting_time() -> None:
    """The same five, whose time is 100 s give or take 1.645 * 20 * sqrt(5) = 74 s: the other would come late behind them."""
    many = [request(i, 0.1, 20, klass="many", deadline_s=200.0, predicted_tokens=20) for i in range(1, 6)]
    one = request(6, 0.2, 5, klass="one", deadline_s=150.0, predicted_tokens=5)
    zero = request(0, 0.0, 5, klass="zero", deadline_s=1.0, predicted_tokens=5)
    assert Station("qlm", output_std_tokens=20.0, evict=False).serve(zero, *many, one)[:2] == [0, 6]


def test_qlm_evicts_a_looser_group_for_one_that_would_be_late() -> None:
    """A batch request of 50 tokens holds the seat; 5 tokens are wanted by 30 s, by 60 s, or by a group with the same limit."""

    def served(limit_s: float, **options: Any) -> tuple[Request, Request]:
        batch = request(0, 0.0, 50, klass="batch", deadline_s=1000.0, predicted_tokens=50)
        chat = request(1, 1.5, 5, klass="chat", deadline_s=1.5 + limit_s, predicted_tokens=5)
        Station("qlm", output_std_tokens=0.0, **options).serve(batch, chat)
        return batch, chat

    batch, chat = served(30.0)
    assert (batch.preemptions, chat.first_scheduled_s, chat.end_s) == (1, 2.0, 7.0)
    # done by 55 s as it is
    batch, chat = served(60.0)
    assert (batch.preemptions, chat.first_scheduled_s) == (0, 50.0)
    assert served(30.0, evict=False)[0].preemptions == 0
    assert served(1000.0)[0].preemptions == 0


def bursts(order: Any, seats: int, seed: int, limit_s: float, chats: int, batches: int) -> dict[str, Any]:
    """A chat with a tight limit, one replica, and batch requests that come all at once."""

    def lognormal(mean: int) -> dict[str, Any]:
        return {"distribution": "lognormal", "mean": mean, "cv": 0.5, "min": 1, "max": 900}

    def part(klass: str, requests: int, rate: str, output_tokens: int) -> dict[str, Any]:
        return {
            "kind": "synthetic",
            "class": klass,
            "requests": requests,
            "arrivals": {"process": "poisson", "rate": rate},
            "prompt_tokens": lognormal(300),
            "output_tokens": lognormal(output_tokens),
        }

    engine = {"order": order, "scheduler": {"policy": "vllm-v1", "max_seqs": seats}}
    parts = {
        "chat": part("chat", chats, f"{chats / 30} req/s", 100),
        "batch": part("batch", batches, f"{batches / 2} req/s", 300),
    }
    return {
        "schema": 1,
        "name": "burst",
        "seed": seed,
        "workload": {"kind": "mix", "parts": parts},
        "slo": {"classes": {"chat": {"ttft": f"{limit_s} s"}, "batch": {"ttft": "5 min"}}},
        "gateway": {"router": {"policy": "round-robin"}},
        "pools": [{"name": "one", "llm": "llama-3.1-8b", "accelerator": "h100-sxm", "engine": engine}],
    }


def test_qlm_keeps_interactive_limits_under_a_burst_of_batch(tmp_path: Any) -> None:
    """300 batch requests come within 2 s: first come, first served makes the chat wait behind them."""

    def attained(name: str, order: Any) -> dict[str, float]:
        scenario = Scenario.model_validate(bursts(order, 32, 0, 2.0, 120, 300))
        rows = fleetsim.run(scenario, out=tmp_path / name, check=True).requests().to_pylist()
        kept: dict[str, float] = {}
        for klass, limit_s in (("chat", 2.0), ("batch", 300.0)):
            waits_s = [row["first_token_s"] - row["arrival_s"] for row in rows if row["class"] == klass]
            kept[klass] = sum(wait_s <= limit_s for wait_s in waits_s) / len(waits_s)
        return kept

    fcfs, qlm = attained("fcfs", "fcfs"), attained("qlm", {"policy": "qlm", "output_mean_tokens": 250.0})
    assert fcfs["chat"] < 0.5
    assert qlm["chat"] > fcfs["chat"] + 0.4
    assert qlm["batch"] == 1.0


@pytest.mark.parametrize(("seats", "mean", "limit_s"), [(2, 50.0, 1), (2, 300.0, 3), (8, 300.0, 1)])
def test_qlm_notices_when_a_group_becomes_late(seats: int, mean: float, limit_s: int, tmp_path: Any) -> None:
    """Who waits comes to be late in the middle of a leap."""
    preemptions = 0
    for seed in (1, 2):
        order = {"policy": "qlm", "output_mean_tokens": mean, "output_std_tokens": 0.0}
        fast, slow = run_both(bursts(order, seats, seed, limit_s, 12, 30), tmp_path / str(seed))
        assert_same(fast, slow)
        preemptions += sum(fast.requests()["preemptions"].to_pylist())
    assert preemptions > 0


@pytest.mark.parametrize("order", ORDERS)
@settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_leaps_equal_step_by_step(order: str, data: st.DataObject, tmp_path: Any) -> None:
    """Every order with any scheduler, on mixes of classes and tenants with predictions that err."""
    scenario = data.draw(mixes(order, data.draw(st.sampled_from(sorted(SCHEDULERS)))))
    assert_same(*run_both(scenario, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_leaps_equal_step_by_step_at_length(order: str, scheduler: str, data: st.DataObject, tmp_path: Any) -> None:
    """The same with each scheduler, over many more scenarios."""
    assert_same(*run_both(data.draw(mixes(order, scheduler)), tmp_path))


@st.composite
def mixes(draw: st.DrawFn, order: str, scheduler: str) -> dict[str, Any]:
    scenario = draw(scenarios())
    part = scenario["workload"]
    variant = VARIANTS.get(order, {}) if draw(st.booleans()) else {}
    pools = []
    for pool in scenario["pools"]:
        engine = {**pool["engine"], "order": {"policy": order, **variant}}
        engine["scheduler"] = {"policy": scheduler, **SCHEDULERS[scheduler]}
        pools.append({**pool, "replicas": 1, "engine": engine})
    return {
        **scenario,
        "workload": {
            "kind": "mix",
            "parts": {
                "one": {**part, "class": "one", "tenant": "anna"},
                "two": {**part, "class": "two", "tenant": "bert", "requests": 30},
                "three": {**part, "class": "three", "tenant": "carl", "requests": 30},
            },
        },
        "classes": {"one": {"priority": 1}, "two": {"priority": -1}},
        "tenants": {"anna": {"weight": 2.0}},
        "slo": {"e2el": "1 h", "classes": {"one": {"ttft": "2 s"}, "two": {"ttft": "20 s"}}},
        "gateway": {**scenario["gateway"], "predictor": {"policy": "noisy", "sigma": 0.6}},
        "pools": pools,
    }
