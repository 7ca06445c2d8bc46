"""Classic engine schedulers: their rules on cases small enough to compute by hand, and leaps against single steps."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fleetsim
from fleetsim.engine.batch import Batch
from fleetsim.engine.gaps import GapHistogram
from fleetsim.engine.replica import Replica
from fleetsim.kernel.clock import Clock
from fleetsim.plugins import load
from fleetsim.scenario.schema import Scenario
from fleetsim.testing import check_scheduler
from fleetsim.workload.request import Request
from tests.engine.test_leaps import assert_same, run_both, scenarios
from tests.theory.stations import ConstantStep, StepConfig

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "sarathi": [{}, {"max_batched_tokens": 64, "max_seqs": 16, "watermark_ratio": 0.1}],
    "static": [{}, {"max_seqs": 3}],
    "orca": [{}, {"reserve_tokens": 1}, {"reserve_tokens": 300, "max_seqs": 8}],
}
EVERY = [(name, options) for name, variants in VARIANTS.items() for options in variants]


class Station:
    """One rank whose steps last one second each, whatever they compute."""

    def __init__(self, policy: str, blocks: int = 1000, block_tokens: int = 16, **options: Any) -> None:
        scheduler = load("schedulers", policy)
        self.clock = Clock()
        self.batch = Batch(blocks, block_tokens, False)
        self.gaps = GapHistogram()
        self.ended: list[Request] = []
        self.plans: list[tuple[float, dict[int, int], int]] = []
        """Of each call: time, tokens planned by request, requests preempted."""
        self.inner = scheduler(scheduler.Config(**options))
        model = ConstantStep(StepConfig(step_s=1.0))
        self.replica = Replica(0, self.clock, model, self, [self.batch], self.gaps, self.ended.append, verify_every=1)

    def schedule(self, batch: Batch) -> None:
        self.inner.schedule(batch)
        chunks = {request.id: tokens for request, tokens in batch.chunks}
        self.plans.append((batch.now_s, chunks, len(batch.preempted)))

    def admits(self, batch: Batch) -> bool:
        return bool(self.inner.admits(batch))

    def serve(self, *rows: tuple[float, int, int]) -> list[Request]:
        """Requests of (arrival, prompt tokens, output tokens), once all have ended."""
        requests = [Request(i, time_s, prompt, output) for i, (time_s, prompt, output) in enumerate(rows)]
        for request in requests:
            self.clock.at(request.arrival_s, partial(self.replica.enqueue, request, request.arrival_s))
        self.clock.run(1e6)
        assert len(self.ended) == len(requests)
        return requests

    def chunks(self) -> list[tuple[float, dict[int, int]]]:
        """Time and tokens by request of the steps that compute prompts."""
        return [(time_s, chunks) for time_s, chunks, _ in self.plans if chunks]


def test_sarathi_never_exceeds_its_budget() -> None:
    """Budget 10: the decode takes one token, the prompt of 25 nine at a time, and the next begins with what is left."""
    station = Station("sarathi", max_batched_tokens=10)
    first, second, third = station.serve((0.0, 4, 20), (0.5, 25, 2), (0.6, 5, 2))
    assert station.chunks() == [(0.0, {0: 4}), (1.0, {1: 9}), (2.0, {1: 9}), (3.0, {1: 7, 2: 2}), (4.0, {2: 3})]
    assert [r.first_token_s for r in (first, second, third)] == [1.0, 4.0, 5.0]
    assert first.end_s == 20.0  # no decode ever stalls
    assert first.itl_max_s == 1.0


def test_sarathi_keeps_the_watermark_free() -> None:
    """10 blocks of 16, watermark 2: the second prompt of 5 blocks waits although 6 are free."""
    tight = Station("sarathi", blocks=10, watermark_ratio=0.2)
    _, waits = tight.serve((0.0, 60, 3), (0.0, 75, 3))
    assert waits.first_scheduled_s == 3.0
    roomy = Station("sarathi", blocks=10, watermark_ratio=0.1)
    _, runs = roomy.serve((0.0, 60, 3), (0.0, 75, 3))
    assert runs.first_scheduled_s == 0.0


def test_sarathi_preempts_the_last() -> None:
    """4 blocks of 16: both grow past 32 tokens after the first token, so the later one goes and is computed again."""
    station = Station("sarathi", blocks=4, watermark_ratio=0.0)
    first, second = station.serve((0.0, 32, 4), (0.0, 32, 4))
    assert [first.preemptions, second.preemptions] == [0, 1]
    assert first.end_s == 4.0
    assert station.chunks()[-1] == (4.0, {1: 33})  # the prompt and the one token it had
    assert second.end_s == 7.0


def test_static_runs_a_batch_to_its_end() -> None:
    """Two seats: the third request waits for the longer of the first two, the fourth runs with it."""
    station = Station("static", max_seqs=2)
    requests = station.serve((0.0, 100, 2), (0.0, 10, 9), (0.0, 10, 1), (5.0, 10, 4))
    assert station.chunks() == [(0.0, {0: 100, 1: 10}), (9.0, {2: 10, 3: 10})]
    assert [r.end_s for r in requests] == [2.0, 9.0, 10.0, 13.0]


def test_static_takes_what_fits_and_starts_the_next_with_whom_it_preempted() -> None:
    """4 blocks: two prompts of 2 blocks fit and a third does not; the second lacks blocks to grow and begins the next batch."""
    station = Station("static", blocks=4)
    requests = station.serve((0.0, 32, 3), (0.0, 32, 3), (0.0, 16, 1))
    assert station.chunks() == [(0.0, {0: 32, 1: 32}), (3.0, {1: 33, 2: 16})]
    assert [r.preemptions for r in requests] == [0, 1, 0]
    assert [r.end_s for r in requests] == [3.0, 5.0, 4.0]


def test_orca_admits_by_reservation() -> None:
    """100 blocks of 16 hold two reservations of 800 tokens: the third waits for the first to end."""
    station = Station("orca", blocks=100, reserve_tokens=800)
    requests = station.serve((0.0, 300, 5), (0.5, 300, 50), (0.5, 10, 1))
    assert station.chunks() == [(0.0, {0: 300}), (1.0, {1: 300}), (5.0, {2: 10})]
    assert requests[0].end_s == 5.0  # prompts and decodes share steps


def test_orca_reserves_the_prompt_where_it_is_longer() -> None:
    """A prompt of 63 blocks reserves these, not one: of 100, another with 63 has to wait, one with 37 has not."""
    waits = Station("orca", blocks=100, reserve_tokens=16).serve((0.0, 1000, 5), (0.0, 1000, 5))[1]
    runs = Station("orca", blocks=100, reserve_tokens=16).serve((0.0, 1000, 5), (0.0, 590, 2))[1]
    assert [waits.first_scheduled_s, runs.first_scheduled_s] == [5.0, 0.0]


@pytest.mark.parametrize(("policy", "options"), EVERY)
def test_the_checker_passes_them(policy: str, options: dict[str, Any]) -> None:
    assert "order does not depend on true output lengths" in check_scheduler(policy, options).checks


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@pytest.mark.parametrize("policy", VARIANTS)
@given(scenario=scenarios(), data=st.data())
def test_leaps_equal_step_by_step(policy: str, scenario: dict[str, Any], data: st.DataObject, tmp_path: Path) -> None:
    options = data.draw(st.sampled_from(VARIANTS[policy]))
    assert_same(*run_both(with_scheduler(scenario, policy, **options), tmp_path))


def with_scheduler(scenario: dict[str, Any], policy: str, **options: Any) -> dict[str, Any]:
    scheduler = {"policy": policy, **options}
    return {
        **scenario,
        "pools": [{**pool, "engine": {**pool["engine"], "scheduler": scheduler}} for pool in scenario["pools"]],
    }


def loaded(rate: float, capacity_tokens: int = 60_000) -> dict[str, Any]:
    """One replica, prompts of 1,730 and answers of 415 tokens on average (the chat workload of Sarathi-Serve's authors)."""
    return {
        "schema": 1,
        "name": "loaded",
        "seed": 5,
        "workload": {
            "kind": "synthetic",
            "requests": 400,
            "arrivals": {"process": "poisson", "rate": f"{rate} req/s"},
            "prompt_tokens": {"distribution": "lognormal", "mean": 1730, "cv": 1.0, "min": 16, "max": 8000},
            "output_tokens": {"distribution": "lognormal", "mean": 415, "cv": 0.6, "min": 2, "max": 2000},
        },
        "pools": [
            {
                "name": "main",
                "llm": "llama-3.1-8b",
                "accelerator": "a100-80",
                "engine": {"kv": {"capacity_tokens": capacity_tokens}, "prefix_cache": False},
            }
        ],
    }


def summary(scenario: dict[str, Any]) -> dict[str, Any]:
    return dict(fleetsim.run(Scenario.model_validate(scenario), check=True).summary)


@pytest.mark.parametrize("budget", [512, 2048])
def test_sarathi_is_vllm_v1_with_the_same_budget(budget: int) -> None:
    """Within 3 % where prefixes are not cached and chunks not limited."""
    limits = {"max_batched_tokens": budget, "max_seqs": 128, "watermark_ratio": 0.01}
    ours, theirs = (summary(with_scheduler(loaded(2.0), policy, **limits)) for policy in ("sarathi", "vllm-v1"))
    for key in ("ttft_mean_s", "ttft_p90_s", "tpot_mean_s", "e2el_p99_s", "energy_j"):
        assert ours[key] == pytest.approx(theirs[key], rel=0.03), key
