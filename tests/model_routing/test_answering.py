"""Which model answers: every call runs on the fleet, its cost is borne, and leaps give what single steps give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fleetsim
from fleetsim.errors import PolicyError, ScenarioError
from fleetsim.plugins import names
from tests.fleet.test_moves import MANY, column, pool, run, same_in_single_steps

HERE = "tests.model_routing.routers"
BIG, SMALL = "llama-3.1-8b", "llama-3.2-1b"


def scenario(router: Any, requests: int = 120, rate: float = 25.0, **changes: Any) -> dict[str, Any]:
    """Two models on two replicas and one."""
    return {
        "schema": 1,
        "name": "models",
        "seed": 5,
        "workload": {
            "kind": "synthetic",
            "requests": requests,
            "arrivals": {"process": "gamma", "rate": f"{rate} req/s", "burstiness": 0.3},
            "prompt_tokens": {"distribution": "lognormal", "mean": 300, "cv": 1.0, "min": 1, "max": 900},
            "output_tokens": {"distribution": "lognormal", "mean": 60, "cv": 1.0, "min": 1, "max": 300},
        },
        "gateway": {"model_router": router, **changes.pop("gateway", {})},
        "quality": {
            "models": {
                BIG: {"ability": 0.7, "price": {"input": 0.5, "output": 1.5}},
                SMALL: {"ability": -0.7, "price": {"input": 0.1, "output": 0.3}},
            },
            "domains": {"sums": {"difficulty": 0.5, "share": 2.0}, "chat": {"difficulty": -0.5}},
            **changes.pop("quality", {}),
        },
        "pools": [pool("big", 2), {**pool("small", 1), "llm": SMALL}],
        **changes,
    }


def test_requests_are_answered_by_the_model_that_is_chosen(tmp_path: Path) -> None:
    result = same_in_single_steps(scenario({"policy": "single", "model": SMALL}), tmp_path)
    assert result.summary["finished"] == 120
    assert set(column(result, "model")) == {SMALL}
    assert set(column(result, "calls")) == {1}
    assert column(result, "call_output_tokens") == column(result, "output_tokens")


def test_groups_tell_what_each_arm_comes_to_alone(tmp_path: Path) -> None:
    """Whoever answers, they say what a run in which one arm answers all comes to."""
    told = [row for row in run(scenario("random"), tmp_path / "random").groups if row["by"] == "arm"]
    assert len(told) == 2
    for row in told:
        alone = run(scenario({"policy": "single", "model": row["value"]}), tmp_path / row["value"])
        assert row["requests"] == alone.summary["requests"]
        assert row["quality_alone_mean"] == pytest.approx(alone.summary["quality_per_request"])
        assert row["list_usd_alone"] == pytest.approx(alone.summary["list_usd"])
        assert row["ttft_p99_s"] is None


def test_every_router_meets_the_same_world(tmp_path: Path) -> None:
    """What is true of a request does not depend on who is asked, and how good an answer is only on whose it is."""
    results = {name: run(scenario(name), tmp_path / name) for name in ("single", "random", "oracle")}
    best = [column(result, "best_quality") for result in results.values()]
    assert best[0] == best[1] == best[2]
    single, oracle = results["single"], results["oracle"]
    assert oracle.summary["quality_regret_mean"] == pytest.approx(0.0, abs=1e-12)
    assert column(oracle, "quality") == column(oracle, "best_quality")
    assert single.summary["quality_mean"] == pytest.approx(single.summary["quality_single_mean"])
    for a, b, x, y in zip(
        column(single, "model"),
        column(oracle, "model"),
        column(single, "quality"),
        column(oracle, "quality"),
        strict=True,
    ):
        assert a != b or x == y


def test_samples_share_the_computation_of_their_prompt(tmp_path: Path) -> None:
    """Three answers to one prompt: two of them find it in the cache, all on one replica, at one price of the prompt."""
    result = same_in_single_steps(scenario({"policy": f"{HERE}:Samples"}, requests=40, rate=0.3), tmp_path)
    assert set(column(result, "calls")) == {3}
    prompts, outputs = column(result, "prompt_tokens"), column(result, "call_output_tokens")
    usd = [(p * 0.5 + o * 1.5) / 1e6 for p, o in zip(prompts, outputs, strict=True)]
    np.testing.assert_allclose(column(result, "list_usd"), usd)
    computed = sum(result.table("replicas")["prompt_tokens"].to_pylist())
    blocks = sum((p - 1) // 16 * 16 for p in prompts)
    assert computed == 3 * sum(prompts) - 2 * blocks


def test_a_cascade_pays_for_all_that_it_asks(tmp_path: Path) -> None:
    """Energy, tokens and prices of the calls are the request's; the judge's time lies between them."""
    config = scenario({"policy": "frugal-gpt"}, quality={"judge": {"auc": 0.8, "time": "0.25 s", "energy": "2 J"}})
    result = same_in_single_steps(config, tmp_path)
    calls, models = column(result, "calls"), column(result, "model")
    assert {1, 2} == set(calls)
    assert all((c == 2) == (m == BIG) for c, m in zip(calls, models, strict=True))
    summary = result.summary
    assert summary["gateway_energy_j"] == pytest.approx(2.0 * 120)
    made = sum(result.table("replicas")["output_tokens"].to_pylist())
    assert made == sum(column(result, "call_output_tokens"))
    waits = np.array(column(result, "e2el_s"), float) - np.array(column(result, "queue_wait_s"), float)
    assert (waits > 0.25).all()


def test_a_model_checks_answers_behind_prompt_and_answer(tmp_path: Path) -> None:
    config = scenario({"policy": f"{HERE}:Thorough"}, quality={"feedback": {"delay": "3 s", "share": 0.5}})
    result = same_in_single_steps(config, tmp_path)
    assert set(column(result, "calls")) == {3, 5}
    assert result.summary["finished"] == 120
    assert result.summary["gateway_energy_j"] == pytest.approx(0.5 * 120)


def test_a_router_that_raises_is_told_with_its_request(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"Broken failed for request 5: KeyError") as caught:
        run(scenario({"policy": f"{HERE}:Broken"}), tmp_path)
    assert caught.value.exit_code == 1


def test_a_request_that_names_its_model_gets_it(tmp_path: Path) -> None:
    config = scenario("single")
    config["workload"]["model"] = SMALL
    result = run(config, tmp_path)
    assert set(column(result, "model")) == {SMALL}
    assert all(quality is not None for quality in column(result, "quality"))


def test_a_model_that_leaves_is_asked_no_more(tmp_path: Path) -> None:
    config = scenario("single")
    config["quality"]["models"][BIG]["leaves"] = "2 s"
    config["quality"]["models"][SMALL]["joins"] = "1 s"
    result = same_in_single_steps(config, tmp_path)
    arrivals, models = column(result, "arrival_s"), column(result, "model")
    assert {m for a, m in zip(arrivals, models, strict=True) if a < 2.0} == {BIG}
    assert {m for a, m in zip(arrivals, models, strict=True) if a >= 2.0} == {SMALL}
    assert result.summary["finished"] == 120


def test_a_model_that_vanishes_loses_no_request(tmp_path: Path) -> None:
    """All replicas of the model fail for good: what they had begins again at the other model."""
    incidents = [{"at_s": at, "pool": "big", "replicas": [n]} for n, at in enumerate((1.0, 1.5))]
    config = scenario("single", faults=[{"policy": "scheduled", "incidents": incidents}])
    result = same_in_single_steps(config, tmp_path)
    assert result.summary["finished"] == 120
    assert result.summary["calls_rerouted"] > 0
    assert SMALL in column(result, "model")


def test_requests_that_time_out_are_one_row(tmp_path: Path) -> None:
    config = scenario({"policy": f"{HERE}:Thorough"}, rate=200.0, gateway={"timeout": "2 s"})
    result = same_in_single_steps(config, tmp_path)
    summary = result.summary
    assert summary["timed_out"] > 10
    assert summary["timed_out"] + summary["finished"] == 120


def test_what_is_under_way_at_the_horizon_is_unfinished(tmp_path: Path) -> None:
    config = scenario({"policy": f"{HERE}:Thorough"}, rate=100.0, run={"horizon": "1.5 s"})
    summary = same_in_single_steps(config, tmp_path).summary
    assert summary["unfinished"] > 10
    assert summary["unfinished"] + summary["finished"] == summary["requests"]


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("quality.models", {"nobody": {"ability": 1.0}}, "no pool serves"),
        ("quality.profile", "nothing", "unknown quality"),
        ("quality.models", {BIG: {}}, "ability is missing"),
        ("quality.outcomes", {"path": "nowhere.parquet"}, "no file"),
        ("gateway.model_router", None, "nobody chooses"),
        ("quality.features.auc", 0.999, "no error of the difficulty"),
        ("gateway.model_router", {"policy": "single", "model": "llama"}, "names the arm"),
    ],
)
def test_bad_input_is_refused(path: str, value: Any, words: str, tmp_path: Path) -> None:
    config = scenario("single")
    if path == "quality.outcomes":
        del config["quality"]["domains"]
    target: Any = config
    *parts, last = path.split(".")
    for part in parts:
        target = target.setdefault(part, {})
    target[last] = value
    with pytest.raises(ScenarioError, match=words):
        fleetsim.run(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


ROUTERS = st.sampled_from([*names("model_routers"), f"{HERE}:Samples", f"{HERE}:Thorough"])


@MANY
@given(
    router=ROUTERS,
    seed=st.integers(0, 1000),
    rate=st.sampled_from([5.0, 40.0, 150.0]),
    budgets=st.sampled_from([(0,), (0, 128)]),
    features=st.sampled_from([{}, {"auc": 0.65}, {"difficulty_sd": 5.0, "domain_accuracy": 0.7}]),
    sessions=st.booleans(),
    timeout=st.sampled_from([None, "3 s"]),
)
def test_leaps_and_single_steps_give_the_same(
    router: str,
    seed: int,
    rate: float,
    budgets: tuple[int, ...],
    features: dict[str, Any],
    sessions: bool,
    timeout: str | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    config = scenario(router, 60, rate, quality={"features": features})
    config["quality"]["models"][BIG]["budgets"] = budgets
    config["seed"] = seed
    if sessions:
        turns = {"distribution": "fixed", "value": 3}
        config["workload"]["sessions"] = {"turns": turns, "think_time": "0.5 s", "max_context_tokens": 1500}
    if timeout is not None:
        config["gateway"]["timeout"] = timeout
    result = same_in_single_steps(config, tmp_path_factory.mktemp("leaps"))
    assert result.summary["requests"] == 60
