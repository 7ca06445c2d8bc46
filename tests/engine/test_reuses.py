"""Agents that read each other's answers, and the reuse of messages behind other starts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fleetsim
from fleetsim.engine.reuses.kvcomm import Kvcomm, KvcommConfig
from fleetsim.errors import FleetsimError
from fleetsim.scenario.schema import Scenario
from fleetsim.workload.prefixes import OPEN_END, Content
from fleetsim.workload.request import Request
from tests.engine.test_leaps import assert_same, run_both

ROOMY = {"policy": "kvcomm", "anchors": 1, "sessions": 40, "segment_tokens": 100}


def scenario(reuse: dict[str, Any] | None, **changes: Any) -> dict[str, Any]:
    kv: dict[str, Any] = {"capacity_tokens": 60_000, "block_tokens": 16} | changes.pop("kv", {})
    if reuse is not None:
        kv["reuse"] = reuse
    return {
        "schema": 1,
        "name": "agents",
        "seed": changes.pop("seed", 1),
        "workload": {
            "kind": "synthetic",
            "requests": 200,
            "arrivals": {"process": "poisson", "rate": f"{changes.pop('rate', 2)} req/s"},
            "prompt_tokens": {"distribution": "lognormal", "mean": 300, "cv": 0.5, "min": 1, "max": 900},
            "output_tokens": {"distribution": "lognormal", "mean": 100, "cv": 0.5, "min": 1, "max": 300},
            "sessions": {"turns": {"distribution": "fixed", "value": 5}, "agent_tokens": 128},
        },
        "gateway": {"router": changes.pop("router", "session-affinity")},
        "pools": [
            {
                "name": "main",
                "llm": "llama-3.1-8b",
                "accelerator": "rtx-4090",
                "replicas": 2,
                "engine": {
                    "kv": kv,
                    "scheduler": {
                        "policy": "vllm-v1",
                        "max_batched_tokens": changes.pop("budget", 2048),
                        "max_seqs": 32,
                    },
                },
            }
        ],
    }


def run(tmp_path: Any, name: str, *args: Any, **kwargs: Any) -> fleetsim.Result:
    return fleetsim.run(Scenario.model_validate(scenario(*args, **kwargs)), out=tmp_path / name, check=True)


def rows(result: fleetsim.Result) -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = result.requests().sort_by("request_id").to_pylist()
    return table


def test_prompts_of_agents(tmp_path: Any) -> None:
    """Instructions, the task, all answers so far; of another agent's prompt nothing is found but one's own instructions."""
    found = rows(run(tmp_path, "plain", None))
    assert len(found) == 200
    for first in range(0, 200, 5):
        prompt = found[first]["prompt_tokens"]
        for number, row in enumerate(found[first : first + 5]):
            assert row["turn"] == number
            assert row["prompt_tokens"] == prompt
            assert row["cached_tokens"] in (0, 128)
            prompt += row["output_tokens"]
    assert sum(row["cached_tokens"] == 128 for row in found) > 180


def test_every_message_reused(tmp_path: Any) -> None:
    """With a chance of one all is reused but the instructions, which are found exactly, and the last token of the answer before."""
    always = ROOMY | {"first_ratio": 1.0, "last_ratio": 1.0}
    for row in rows(run(tmp_path, "always", always)):
        if row["turn"] == 0:
            assert row["approximate_tokens"] == 0
        else:
            assert row["approximate_tokens"] == row["prompt_tokens"] - 128 - 1
            assert row["cached_tokens"] in (0, 128)


def test_shares_and_times(tmp_path: Any) -> None:
    """Reuse falls from the second agent to the last as asked for, and the first token comes sooner."""
    plain, reused = run(tmp_path, "plain", None), run(tmp_path, "reused", ROOMY)
    shares = []
    for turn in range(1, 5):
        here = [row for row in rows(reused) if row["turn"] == turn]
        shares.append(sum(r["approximate_tokens"] for r in here) / sum(r["prompt_tokens"] - 128 for r in here))
    assert shares[0] == pytest.approx(0.876, abs=0.12)
    assert shares[3] == pytest.approx(0.70, abs=0.12)
    assert reused.summary["approximate_tokens"] == sum(row["approximate_tokens"] for row in rows(reused))
    assert reused.summary["ttft_mean_s"] < plain.summary["ttft_mean_s"]
    # who reuses nothing still waits for the comparison
    waits = [min(row["queued_s"] - row["arrival_s"] for row in rows(one)) for one in (plain, reused)]
    assert waits[1] - waits[0] == pytest.approx(0.003, abs=1e-9)


def test_only_where_the_messages_are(tmp_path: Any) -> None:
    """A router that scatters a session's turns leaves less to reuse, and sessions that were pushed out nothing."""
    sticky, scattered = (run(tmp_path, name, ROOMY, router=name) for name in ("session-affinity", "random"))
    assert scattered.summary["approximate_tokens"] < 0.8 * sticky.summary["approximate_tokens"]
    few = run(tmp_path, "few", ROOMY | {"sessions": 1}, rate=20)
    many = run(tmp_path, "many", ROOMY, rate=20)
    assert few.summary["approximate_tokens"] < many.summary["approximate_tokens"]


def test_draws_do_not_depend_on_the_order() -> None:
    """The same request reuses the same messages whoever comes before it."""
    requests = []
    for number in range(60):
        content = Content(((20_000_000, 64), (2 * number + 1, OPEN_END)), segments=(200, 50, 80))
        requests.append(Request(number, 0.0, 394, 10, content, number, 2))
    answers = []
    for order in (requests, requests[::-1]):
        one = Kvcomm(KvcommConfig(sessions=100), 7)
        for request in order:
            request.computed = 400
            one.ended(request)
        answers.append({request.id: one.reused(request, 64) for request in order})
    assert answers[0] == answers[1]
    assert len(set(answers[0].values())) > 4
    assert {one.reused(request, 64) for request in requests} <= {0, 50, 80, 130, 200, 250, 280, 330}


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    seed=st.integers(0, 1000),
    rate=st.sampled_from([1, 10, 100]),
    budget=st.sampled_from([64, 300, 4096]),
    capacity=st.sampled_from([24_000, 30_000, 60_000]),
    block=st.sampled_from([1, 16, 64]),
    retain=st.booleans(),
)
def test_leaps_equal_step_by_step(
    seed: int, rate: int, budget: int, capacity: int, block: int, retain: bool, tmp_path: Any
) -> None:
    """Laws hold and leaps are exact, under pressure too (of 24,000 tokens, 20,500 are kept for messages)."""
    kv = {"capacity_tokens": capacity, "block_tokens": block, "retain_unmatched": retain}
    fast, slow = run_both(scenario(ROOMY, seed=seed, rate=rate, budget=budget, kv=kv), tmp_path)
    assert_same(fast, slow)
    assert fast.summary["approximate_tokens"] == slow.summary["approximate_tokens"] > 0


def test_room_is_taken_off_the_cache(tmp_path: Any) -> None:
    config = KvcommConfig()
    assert config.reserved_tokens == (20 + 16) * 5 * 512
    with pytest.raises(FleetsimError, match="kvcomm keeps 92,160 tokens"):
        run(tmp_path, "small", {"policy": "kvcomm"})


def test_refused_beside_what_is_not_modelled() -> None:
    good = scenario(ROOMY)
    pool = good["pools"][0]
    for changes in (
        {"pools": [{**pool, "engine": {**pool["engine"], "prefix_cache": False}}]},
        {"pools": [{**pool, "role": "decode"}]},
        {"gateway": {"rebalancer": {"policy": "work-stealing"}}},
        {"workload": {**good["workload"], "prefixes": {"groups": 2, "tokens": 10}}},
    ):
        with pytest.raises(ValueError, match=r"needs|moves|cannot"):
            Scenario.model_validate(good | changes)
