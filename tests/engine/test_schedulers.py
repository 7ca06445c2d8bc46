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
from fleetsim.errors import PolicyError
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
    "vllm-v0": [{}, {"max_batched_tokens": 300, "max_seqs": 16, "padded_prompts": False}, {"watermark_ratio": 0.1}],
    "sglang": [
        {},
        {"max_new_tokens": 100, "max_batched_tokens": 128, "max_seqs": 64},
        {"max_new_tokens": 20, "max_seqs": 16, "decay_steps": 30, "retract_steps": 3},
    ],
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


def test_v0_computes_prompts_alone() -> None:
    """The decode of the first pauses for the second's prompt: its tokens come at 1, 2, 3, 5 and 6 s."""
    station = Station("vllm-v0")
    first, second = station.serve((0.0, 4, 5), (2.5, 50, 3))
    assert station.chunks() == [(0.0, {0: 4}), (3.0, {1: 50})]
    assert [first.end_s, first.itl_max_s] == [6.0, 2.0]
    assert [second.first_token_s, second.end_s, second.itl_max_s] == [4.0, 6.0, 1.0]
    assert sum(station.gaps.counts) == 6
    assert station.gaps.total_s == pytest.approx(7.0)


def test_who_is_held_back_does_not_pay() -> None:
    """A step with prompts only costs those whose prompts they are; the shares add up to what the replica used."""
    station = Station("vllm-v0")
    first, second = station.serve((0.0, 4, 5), (2.5, 50, 3))
    assert first.cost_share_s == pytest.approx(1 + 2 + 2 * 0.5)
    assert second.cost_share_s == pytest.approx(1 + 2 * 0.5)
    assert first.energy_j + second.energy_j == pytest.approx(station.replica.energy_j)
    assert station.replica.meter(6.0)[:5] == (6.0, station.replica.energy_j, 6, 54, 8)


@pytest.mark.parametrize(("padded", "first_step"), [(True, {0: 100}), (False, {0: 100, 1: 10, 2: 10})])
def test_v0_counts_padding(padded: bool, first_step: dict[int, int]) -> None:
    """Two prompts padded to 100 exceed 150 tokens; unpadded, all three have 120."""
    station = Station("vllm-v0", max_batched_tokens=150, padded_prompts=padded)
    station.serve((0.0, 100, 2), (0.0, 10, 2), (0.0, 10, 2))
    assert station.chunks()[0] == (0.0, first_step)


def test_v0_computes_a_prompt_beyond_its_limit_alone() -> None:
    station = Station("vllm-v0", max_batched_tokens=64)
    station.serve((0.0, 100, 2), (0.0, 10, 2))
    assert station.chunks() == [(0.0, {0: 100}), (1.0, {1: 10})]


def test_v0_admits_into_blocks_that_decodes_will_need() -> None:
    """4 blocks: the second prompt takes the last two while the first pauses, and is preempted when the first goes on."""
    station = Station("vllm-v0", blocks=4, watermark_ratio=0.0)
    first, second = station.serve((0.0, 32, 4), (0.5, 32, 4))
    assert station.chunks() == [(0.0, {0: 32}), (1.0, {1: 32}), (5.0, {1: 33})]
    assert [first.end_s, first.itl_max_s, first.preemptions] == [5.0, 2.0, 0]
    assert [second.end_s, second.itl_max_s, second.preemptions] == [8.0, 4.0, 1]


def test_a_request_preempted_while_held_back_counts_its_gap_from_its_last_token() -> None:
    """3 blocks, three prompts of one: when all need a second one, the last two are preempted; the middle one had paused before."""
    station = Station("vllm-v0", blocks=3, watermark_ratio=0.0)
    first, middle, last = station.serve((0.0, 16, 3), (0.0, 16, 3), (0.5, 16, 3))
    assert [first.end_s, middle.end_s] == [4.0, 6.0]
    assert [r.preemptions for r in (first, middle, last)] == [0, 1, 1]
    assert [r.itl_max_s for r in (first, middle, last)] == [2.0, 4.0, 5.0]


def test_v0_keeps_the_watermark_free() -> None:
    for watermark_ratio, start_s in ((0.2, 3.0), (0.1, 0.0)):
        requests = Station("vllm-v0", blocks=10, watermark_ratio=watermark_ratio).serve((0.0, 60, 3), (0.0, 75, 3))
        assert requests[1].first_scheduled_s == start_s


def test_sglang_splits_prompts_and_holds_decodes_back_until_the_last_chunk() -> None:
    station = Station("sglang", max_batched_tokens=10)
    first, second, third = station.serve((0.0, 4, 20), (0.5, 25, 2), (0.6, 5, 2))
    assert station.chunks() == [(0.0, {0: 4}), (1.0, {1: 10}), (2.0, {1: 10}), (3.0, {1: 5, 2: 5})]
    assert [first.end_s, first.itl_max_s] == [23.0, 4.0]
    assert [r.end_s for r in (second, third)] == [5.0, 5.0]


@pytest.mark.parametrize(("max_new_tokens", "start_s"), [(100, 90.0), (80, 1.0)])
def test_sglang_reserves_a_share_of_the_longest_answers(max_new_tokens: int, start_s: float) -> None:
    """300 slots, 100 in use: a prompt of 50 and its 100 tokens do not fit beside 0.7 * 99, and its 80 do beside 0.7 * 79."""
    station = Station("sglang", blocks=300, block_tokens=1, max_new_tokens=max_new_tokens)
    requests = station.serve((0.0, 100, 90), (0.5, 50, 3))
    assert requests[1].first_scheduled_s == start_s


@pytest.mark.parametrize(("decay_steps", "start_s"), [(10, 21.0), (10_000, 90.0)])
def test_sglang_reserves_less_as_it_decodes(decay_steps: int, start_s: float) -> None:
    """After 20 decode steps 180 slots are left: 50 + 100 + 0.1 * 79 fit, 50 + 100 + 0.7 * 79 do not."""
    options = {"max_new_tokens": 100, "min_new_token_ratio": 0.1, "decay_steps": decay_steps}
    station = Station("sglang", blocks=300, block_tokens=1, **options)
    requests = station.serve((0.0, 100, 90), (20.5, 50, 3))
    assert requests[1].first_scheduled_s == start_s


def test_sglang_retracts_the_longest_prompt_among_equals() -> None:
    """100 slots for prompts of 30 and 20: full after 25 decode steps; the longer one goes until the other has ended."""
    station = Station("sglang", blocks=100, block_tokens=1, max_new_tokens=1, new_token_ratio=0.0, retract_steps=2)
    longer, shorter = station.serve((0.0, 30, 50), (0.0, 20, 50))
    assert [longer.preemptions, shorter.preemptions] == [1, 0]
    assert shorter.end_s == 50.0
    assert station.chunks()[-1] == (50.0, {0: 56})
    assert longer.end_s == 74.0


def test_sglang_reserves_after_a_retraction_what_was_answered() -> None:
    """One of two answers was retracted: the other has 26 of at most 200 tokens, so (26 + 2) / 201 of the rest is reserved."""
    options = {"max_new_tokens": 200, "new_token_ratio": 0.0, "retract_steps": 2}
    scheduler = load("schedulers", "sglang")
    rank = scheduler(scheduler.Config(**options))
    batch = Batch(1000, 1, False)
    batch.waiting.extend([Request(0, 0.0, 60, 99), Request(1, 0.0, 100, 99)])
    rank.schedule(batch)
    assert len(batch.chunks) == 2
    for request, tokens in batch.chunks:
        batch.finish_chunk(request, tokens)
    batch.clear_plan()
    batch.decode(25)
    batch.cache.allocate(1000 - batch.cache.used)  # somebody else's
    rank.schedule(batch)
    assert [request.id for request in batch.waiting] == [1]
    assert rank.ratio(batch) == pytest.approx(28 / 201)
    assert not batch.held


class Idles:
    """Holds decodes back for nothing."""

    Config = load("schedulers", "vllm-v0").Config

    def __init__(self, config: Any) -> None:
        self.inner = load("schedulers", "vllm-v0")(config)

    def schedule(self, batch: Batch) -> None:
        self.inner.schedule(batch)
        batch.held = True

    def admits(self, batch: Batch) -> bool:
        return bool(self.inner.admits(batch))


def test_holding_back_for_nothing_is_refused() -> None:
    with pytest.raises(PolicyError, match=r"^Idles: .* holds decodes back in a step that computes no prompts"):
        check_scheduler(Idles)


@pytest.mark.parametrize("policy", ["vllm-v0", "sglang"])
def test_laws_hold_where_a_run_is_cut_off(policy: str) -> None:
    """Among others, that requests' energies add up to the replica's where some were held back when time was over."""
    for horizon_s in (17.0, 17.1, 17.25):
        cut = {**with_scheduler(loaded(4.0), policy), "run": {"horizon": f"{horizon_s} s"}}
        assert summary(cut)["unfinished"] > 20


def test_prompts_first_shortens_the_first_token_and_lengthens_the_gaps() -> None:
    """What Sarathi-Serve's authors set out to mend (figure 1): V0's worst gaps are longer than with a budget of 512."""
    v0, sarathi = (summary(with_scheduler(loaded(2.5, 400_000), policy)) for policy in ("vllm-v0", "sarathi"))
    assert v0["itl_p99_s"] > 1.5 * sarathi["itl_p99_s"]
    assert v0["ttft_mean_s"] < sarathi["ttft_mean_s"]


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
