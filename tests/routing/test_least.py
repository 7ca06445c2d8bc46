"""What routers choose by bounds and sets of holders, against a look at every replica."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fleetsim
from fleetsim.plugins import load
from fleetsim.routing import dynamo_kv, ttft_scan
from fleetsim.routing.api import RequestView, Route

POOL = {
    "llm": "llama-3.1-8b",
    "accelerator": "l40s",
    "replicas": 5,
    "engine": {"kv": {"capacity_tokens": 24_000, "retain_unmatched": True}, "scheduler": {"max_seqs": 24}},
}
FLEETS = {
    "even": [{**POOL, "name": "one"}],
    "mixed": [
        {**POOL, "name": "one", "replicas": 3},
        {**POOL, "name": "two", "accelerator": "rtx-4090", "replicas": 2},
    ],
    "blocks": [
        {**POOL, "name": "one", "replicas": 3},
        {**POOL, "name": "two", "replicas": 2, "engine": {"kv": {"capacity_tokens": 24_000, "block_tokens": 32}}},
    ],
}
COSTS = {"min-ttft": "ttft_s", "conductor": "ttft_s", "dynamo-kv": "cost_blocks", "preble": "cost_s"}
"""What each router makes the least of, as it explains itself."""


def scenario(router: dict[str, Any], fleet: str, view: dict[str, Any]) -> fleetsim.Scenario:
    return fleetsim.Scenario.model_validate(
        {
            "schema": 1,
            "name": "least",
            "seed": 5,
            "workload": {
                "kind": "synthetic",
                "requests": 260,
                "arrivals": {"process": "gamma", "rate": "14 req/s", "burstiness": 0.4},
                "prompt_tokens": {"distribution": "lognormal", "mean": 700, "cv": 1.0, "min": 16, "max": 4000},
                "output_tokens": {"distribution": "lognormal", "mean": 60, "cv": 1.0, "min": 1, "max": 400},
                "prefixes": {"groups": 5, "tokens": 640, "zipf": 0.8},
                "sessions": {
                    "turns": {"distribution": "lognormal", "mean": 3, "cv": 1.0, "min": 1, "max": 6},
                    "think_time": "500 ms",
                    "max_context_tokens": 6000,
                },
            },
            "gateway": {"router": router, "view": view},
            "pools": FLEETS[fleet],
        }
    )


def expected(name: str, router: Any, request: RequestView) -> set[int]:
    """Replicas that a look at all of them allows."""
    known = router.explain(request)
    if name == "preble":
        most = max(figures["matched_tokens"] for figures in known.values())
        if most and most >= 0.5 * request.prompt_tokens:
            loads_s = {i: figures["load_s"] for i, figures in known.items() if figures["matched_tokens"] == most}
            return {i for i, load_s in loads_s.items() if load_s == min(loads_s.values())}
    costs = {i: figures[COSTS[name]] for i, figures in known.items()}
    return {i for i, cost in costs.items() if cost == min(costs.values())}


@pytest.mark.parametrize("few", [128, 0], ids=["one-by-one", "arrays"])
@pytest.mark.parametrize("fleet", FLEETS)
@pytest.mark.parametrize(
    ("router", "view"),
    [
        ({"policy": "min-ttft"}, {}),
        ({"policy": "min-ttft", "holders": 2}, {}),
        ({"policy": "min-ttft"}, {"freshness": "delayed", "delay": "200 ms"}),
        ({"policy": "conductor"}, {}),
        ({"policy": "conductor", "balancing_threshold": 1.0}, {}),
        ({"policy": "dynamo-kv"}, {}),
        ({"policy": "dynamo-kv", "overlap_weight": 0.7, "holders": 2}, {"freshness": "sampled", "period": "300 ms"}),
        ({"policy": "preble"}, {}),
        ({"policy": "preble", "window_s": 2.0, "holders": 2}, {}),
    ],
)
def test_nobody_whom_a_full_look_would_have_preferred(
    router: dict[str, Any], view: dict[str, Any], fleet: str, few: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not few and router["policy"] == "preble":
        pytest.skip("has one way for all sizes")
    for module in (dynamo_kv, ttft_scan):
        monkeypatch.setattr(module, "_FEW", few)
    policy = load("routers", router["policy"])
    route = policy.route
    choices: list[int] = []

    def watched(self: Any, request: RequestView) -> Any:
        allowed = expected(router["policy"], self, request)
        answer = route(self, request)
        place = answer.replica if isinstance(answer, Route) else answer
        assert place in allowed
        choices.append(place)
        return answer

    monkeypatch.setattr(policy, "route", watched)
    fleetsim.run(scenario(router, fleet, view), tmp_path / "out")
    assert len(choices) >= 260
    assert len(set(choices)) == 5
