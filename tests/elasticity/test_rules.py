"""What each autoscaler of a fleet answers to figures that are set by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fleetsim.elasticity.api import Action, Convert, FleetState, Held, ReplicaState, Scale, Seat, Way
from fleetsim.plugins import load
from fleetsim.scaling.api import PoolState
from fleetsim.testing import check_router
from tests.scaling.desk import prefill_s, step_s


class Bench:
    """One autoscaler and pools of one accelerator a replica, whose figures are set by hand."""

    def __init__(self, name: str, pools: dict[str, int], **config: Any) -> None:
        states = {}
        for pool, replicas in pools.items():
            role = pool if pool in ("prefill", "decode") else "mixed"
            states[pool] = PoolState(pool, role, 0, 100, 1, 64, 100_000, 10.0, prefill_s, step_s)
            states[pool].wanted = states[pool].ready = replicas
            states[pool].ttft_limit_s, states[pool].tpot_limit_s = 1.0, 0.05
        ways = {(a, b): Way(a, b, 1.0, True) for a in pools for b in pools if a != b}
        self.state = FleetState(states, {pool: [] for pool in pools}, ways)
        policy = load("fleet_autoscalers", name)
        self.policy = policy(policy.Config.model_validate(config), np.random.default_rng(1), self.state)

    def tick(self, after_s: float | None = None) -> list[Action]:
        self.state.elapsed_s = self.policy.period_s if after_s is None else after_s
        self.state.now_s += self.state.elapsed_s
        for pool in self.state.pools.values():
            pool.now_s = self.state.now_s
        return list(self.policy.tick())


def replica(number: int, classes: dict[str | None, int], **figures: Any) -> ReplicaState:
    values = {"running": sum(classes.values()), "waiting": 0, "busy_s": 0.0, "steps": 0, "output_tokens": 0}
    return ReplicaState(number, "ready", max_seqs=64, classes=classes, **{**values, **figures})


def chiron(**config: Any) -> Bench:
    return Bench("chiron", {"interactive": 1, "mixed": 2, "batch": 0}, **config)


def counts(actions: list[Action]) -> dict[str, int]:
    return {action.pool: action.replicas for action in actions if isinstance(action, Scale)}


def seats(actions: list[Action]) -> dict[int, int]:
    return {action.replica: action.max_seqs for action in actions if isinstance(action, Seat)}


def test_chiron_keeps_interactive_back_pressure_at_theta() -> None:
    bench = chiron(theta=0.6)
    bench.state.replicas = {
        "interactive": [replica(0, {None: 5})],
        "mixed": [replica(1, {None: 1, "batch": 4}), replica(2, {"batch": 7})],
        "batch": [],
    }
    assert counts(bench.tick()) == {"interactive": 2, "mixed": 2, "batch": 0}  # two of three are busy, so ceil(2 / 0.6)


def test_chiron_removes_one_at_a_time() -> None:
    bench = Bench("chiron", {"interactive": 3, "mixed": 4, "batch": 0})
    assert counts(bench.tick()) == {"interactive": 2, "mixed": 4, "batch": 0}


def test_chiron_adds_as_many_batch_replicas_as_the_nearest_deadlines_need() -> None:
    bench = chiron(period_s=5.0, output_tokens=100.0)
    # 200 prompts of 1,000 tokens take 0.1 s each; answers 100 tokens at 64 a step of 0.01 + 0.0064 + 64 * 1,050e-7 s
    prompt_s, answer_s = 200 * 0.1, 200 * 100 * step_s(64, 64 * 1050) / 64
    bench.state.held = [Held("batch", 0.0, 35.0, 1000) for _ in range(200)]
    slack_s = 35.0 - 5.0 - 10.0
    wanted = int(np.ceil((prompt_s + answer_s) / slack_s))
    assert wanted > 1
    assert counts(bench.tick())["batch"] == wanted


def test_chiron_does_not_hurry_for_deadlines_that_are_far_and_sends_all_away_when_nobody_waits() -> None:
    bench = chiron()
    bench.state.held = [Held("batch", 0.0, 1e6, 1000)]
    assert counts(bench.tick())["batch"] == 1
    bench.state.held = []
    assert counts(bench.tick())["batch"] == 0


@pytest.mark.parametrize(
    ("step_time_s", "expected"),
    [(0.02, 35), (0.0485, 32), (0.06, 26)],  # below 0.95, between, above 1 of the 50 ms that are allowed
)
def test_chiron_sets_batch_sizes_by_step_times(step_time_s: float, expected: int) -> None:
    bench = chiron(start_seqs=32)
    bench.state.replicas = {
        **bench.state.replicas,
        "mixed": [replica(7, {None: 9}, busy_s=2.0, steps=int(2.0 / step_time_s))],
    }
    assert seats(bench.tick()) == {7: expected}


def test_chiron_shrinks_a_batch_whose_throughput_falls() -> None:
    bench = chiron(start_seqs=32)
    for tokens, expected in ((10_000, 35), (5_000, 28)):
        full = replica(7, {None: 64}, waiting=3, busy_s=2.0, steps=100, output_tokens=tokens)
        bench.state.replicas = {**bench.state.replicas, "mixed": [full]}
        assert seats(bench.tick()) == {7: expected}


def flips(**config: Any) -> Bench:
    bench = Bench("role-flips", {"prefill": 3, "decode": 3}, **config)
    for pool in bench.state.pools.values():
        pool.busy_ratio = 0.7
    return bench


def test_a_decode_replica_turns_where_first_tokens_are_late() -> None:
    bench = flips(dwell_s=10.0, period_s=5.0)
    window = bench.state.pools["prefill"].window
    window.ttfts, window.late = 10, 2
    assert bench.tick() == [Convert("decode", "prefill")]
    assert bench.tick() == []  # within 10 s
    assert bench.tick() == [Convert("decode", "prefill")]
    bench.state.pools["decode"].ready = 2
    assert bench.tick(20.0) == []


def test_a_prefill_replica_turns_where_answers_are_slow_but_not_where_both_sides_are_short() -> None:
    bench = flips()
    window = bench.state.pools["decode"].window
    window.tpots, window.slow = 10, 5
    assert bench.tick() == [Convert("prefill", "decode")]
    first = bench.state.pools["prefill"].window
    first.ttfts, first.late = 10, 9
    assert bench.tick(100.0) == []


def test_prompts_that_wait_count_as_late_before_they_are() -> None:
    bench = flips()
    pool = bench.state.pools["prefill"]
    pool.window.arrivals, pool.window.prompt_tokens = 10, 10_000
    pool.waiting = 27  # nine each of 0.1 s
    assert bench.tick() == []
    pool.waiting = 33
    assert bench.tick() == [Convert("decode", "prefill")]


def test_a_ladder_is_climbed_and_descended_one_step_at_a_time() -> None:
    bench = Bench("shape-ladder", {"small": 1, "large": 0}, lasting_s=10.0, period_s=5.0)
    small, large = bench.state.pools["small"], bench.state.pools["large"]
    small.kv_used_ratio = 0.5
    assert bench.tick() == []
    small.waiting = 17
    assert bench.tick() == [Convert("small", "large")]
    bench.state.ways["small", "large"].under_way = 1
    assert bench.tick() == []
    bench.state.ways["small", "large"].under_way = 0
    small.ready, large.ready, small.waiting, small.kv_used_ratio, large.kv_used_ratio = 0, 1, 0, 0.0, 0.2
    assert [bench.tick() for _ in range(3)] == [[], [], [Convert("large", "small")]]


def test_dynamo_shares_its_budget_in_proportion() -> None:
    bench = Bench("dynamo-sla", {"prefill": 1, "decode": 1}, max_accelerators=6, interval_s=10.0)
    for pool in bench.state.pools.values():
        window = pool.window
        window.arrivals, window.prompt_tokens, window.finished, window.output_tokens = 500, 500_000, 500, 400_000
    # 50,000 prompt tokens a second at 10,000 each: 5; answers at 64 seats of a step of 0.0257 s at most 2,490: 17
    answers = 40_000 / (64 / step_s(64, 64 * 1400))
    wanted = (5, int(np.ceil(answers)))
    prompts = round(5 * 6 / sum(wanted))
    assert bench.tick() == [Scale("prefill", prompts), Scale("decode", 6 - prompts)]


def test_dynamo_turns_replicas_before_it_starts_any() -> None:
    bench = Bench("dynamo-sla", {"prefill": 4, "decode": 1}, interval_s=10.0)
    for pool in bench.state.pools.values():
        window = pool.window
        window.arrivals, window.prompt_tokens, window.finished, window.output_tokens = 50, 50_000, 50, 50_000
    actions = bench.tick()
    assert actions[0] == Convert("prefill", "decode", counts(actions)["decode"] - 1)


def test_a_timetable_is_kept_and_repeated() -> None:
    changes = [
        {"at_s": 20.0, "source": "main", "target": "other", "replicas": 2},
        {"at_s": 10.0, "pool": "main", "replicas": 5},
    ]
    bench = Bench("timetable", {"main": 1, "other": 0}, changes=changes, period_s=10.0, every_s=30.0)
    one, two = Scale("main", 5), Convert("main", "other", 2)
    assert [bench.tick() for _ in range(5)] == [[one], [two], [], [one], [two]]


def test_a_change_says_one_thing() -> None:
    for wrong in ({"pool": "a", "source": "b"}, {"source": "b"}, {}):
        with pytest.raises(ValueError, match="give `pool`, or `source` and `target`"):
            load("fleet_autoscalers", "timetable").Config.model_validate(
                {"changes": [{"at_s": 1.0, "replicas": 1, **wrong}]}
            )


def test_the_router_keeps_the_rules_of_routers() -> None:
    assert check_router("chiron").checks
