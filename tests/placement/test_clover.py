"""Mixed quality by carbon: which mix is wanted, who answers, and that leaps give what single steps give."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fleetsim
from fleetsim.errors import PolicyError
from fleetsim.placement.api import Engine, Load, Place, RequestView
from fleetsim.placement.clover import Clover, CloverConfig
from fleetsim.workload.request import Request
from tests.fleet.test_moves import MANY, column, run, same_in_single_steps
from tests.placement.test_swapping import MODELS, events, scenario

TABLES = {
    "accuracy": {MODELS[0]: 0.7, MODELS[1]: 0.66},
    "prompt_j": {MODELS[0]: 0.04, MODELS[1]: 0.02},
    "output_j": {MODELS[0]: 2.0, MODELS[1]: 0.5},
}


def grid(folder: Path, values: list[float]) -> dict[str, Any]:
    """A carbon intensity that changes every five seconds."""
    path = folder / "grams.csv"
    path.write_text("time,value\n" + "".join(f"{5 * k},{v}\n" for k, v in enumerate(values)))
    return {"carbon_intensity": {"file": str(path), "repeat": True}, "pue": 1.2}


def mixed(folder: Path, values: list[float], replicas: int = 3, **changes: Any) -> dict[str, Any]:
    policy = {"policy": "clover", **TABLES, "check": "1 s", "output_tokens": 120, **changes}
    made = scenario(policy, replicas, {"setup": "100 ms"}, energy=grid(folder, values))
    for part in made["workload"]["parts"].values():
        del part["model"]
    return made


# --- leaps -----------------------------------------------------------------------------------------------------------


@MANY
@given(
    seed=st.integers(0, 1000),
    replicas=st.integers(1, 4),
    weight=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    values=st.sampled_from([[300.0, 300.0], [100.0, 600.0], [600.0, 30.0, 300.0]]),
    named=st.booleans(),
    kv=st.sampled_from(["drop", "host"]),
    timeout=st.sampled_from([None, "4 s"]),
    sessions=st.booleans(),
)
def test_leaps_equal_steps(
    seed: int,
    replicas: int,
    weight: float,
    values: list[float],
    named: bool,
    kv: str,
    timeout: str | None,
    sessions: bool,
    tmp_path: Path,
) -> None:
    made = mixed(tmp_path, values, replicas, weight=weight)
    made["seed"] = seed
    made["pools"][0]["swap"]["kv"] = kv
    if named and replicas > 1:
        made["workload"]["parts"]["b"]["model"] = MODELS[1]
    if timeout is not None:
        made["gateway"]["timeout"] = timeout
    if sessions:
        made["workload"]["parts"]["a"] |= {
            "requests": 20,
            "sessions": {"turns": {"distribution": "fixed", "value": 2}},
        }
    result = same_in_single_steps(made, tmp_path)
    answered = [m for m, s in zip(column(result, "model"), column(result, "status"), strict=True) if s == "finished"]
    assert answered
    assert set(answered) <= set(MODELS)


# --- which mix -------------------------------------------------------------------------------------------------------


def engine(speed: float) -> Engine:
    def decode_s(batch: float, tokens: float) -> float:
        return (0.02 + 1e-4 * batch) / speed

    return Engine(64, 100_000, lambda: 2.0, decode_s, lambda tokens: 1e-4 * tokens / speed)


def policy(replicas: int = 4, carbon: list[float] | None = None, **config: Any) -> Clover:
    """One over replicas of a large and a small LLM, of which the small one is four times as fast."""
    now = carbon if carbon is not None else [300.0]
    engines = {"large": engine(1.0), "small": engine(4.0)}
    places = [Place("main", engines, lambda _: 0, lambda: now[0]) for _ in range(replicas)]
    tables = {
        "accuracy": {"large": 0.8, "small": 0.72},
        "output_j": {"large": 4.0, "small": 1.0},
        "prompt_j": {"large": 0.0, "small": 0.0},
    }
    made = Clover(CloverConfig.model_validate({**tables, "check": "10 s", **config}), np.random.default_rng(1), places)
    for place, name in zip(places, made.initial(), strict=True):
        place.holds = name
    return made


def feed(made: Clover, rate: float, until_s: float = 10.0, tokens: int = 100) -> None:
    """Let requests arrive evenly, each sent at once and ended."""
    for k in range(int(rate * until_s)):
        request = Request(k, k / rate, tokens, 200)
        made.arrived(RequestView(request), k / rate)
        made.decide(k / rate)


def test_the_best_mix_is_that_of_enumeration() -> None:
    for weight, rate in product([0.0, 0.02, 0.1, 0.5], [2.0, 60.0, 140.0]):
        made = policy(weight=weight)
        feed(made, rate)
        made.decide(10.0)
        best = max(made._worth((n, 4 - n)) for n in range(5))
        assert made._worth(made.mix) == best, (weight, rate, made.mix)


def test_the_worth_is_the_weighted_sum_of_both_savings() -> None:
    made = policy(weight=0.3, reference_g_per_kwh=600.0)
    feed(made, 2.0)
    made.decide(10.0)
    assert made._worth((4, 0)) == pytest.approx(0.3 * 50.0)  # half the reference intensity, no accuracy lost
    assert made._worth((0, 4)) == pytest.approx(0.3 * 100 * (1 - 0.25 * 0.5) - 0.7 * 10.0)


def test_dirty_energy_makes_it_take_the_small_one() -> None:
    carbon = [50.0]
    made = policy(carbon=carbon, weight=0.1, reference_g_per_kwh=300.0)
    feed(made, 2.0)
    made.decide(10.0)
    assert made.mix == (4, 0)
    carbon[0] = 400.0
    made.decide(15.0)
    assert made.mix == (4, 0)  # not looked at yet
    actions = made.decide(20.0).actions
    assert made.mix == (0, 4)
    assert [action.model for action in actions if isinstance(action, Load)] == ["small"]  # a quarter at a time


def test_what_the_accurate_one_cannot_carry_is_shared() -> None:
    """At no weight of carbon only accuracy counts, as far as it can be carried."""
    made = policy(weight=0.0)
    carries = made._carries(made._engines[0])
    feed(made, 6.0 * carries)
    made.decide(10.0)
    large, small = made.mix
    assert large
    assert small
    assert made._over(0, large, made._weights(made.mix)[0]) <= 1.0


def test_an_objective_keeps_slow_llms_out() -> None:
    made = policy(weight=0.0, tpot="20 ms")
    feed(made, 2.0)
    made.decide(10.0)
    assert made.mix == (0, 4)


def test_unknown_names_and_unlike_pools_are_refused() -> None:
    with pytest.raises(PolicyError, match='names "tiny"'):
        policy(accuracy={"tiny": 0.5})
    places = [Place("a", {"x": engine(1.0)}, lambda _: 0), Place("b", {"y": engine(1.0)}, lambda _: 0)]
    with pytest.raises(PolicyError, match="same LLMs"):
        Clover(CloverConfig(), np.random.default_rng(1), places)


# --- in a run --------------------------------------------------------------------------------------------------------


def test_who_answers_follows_the_grid(tmp_path: Path) -> None:
    made = mixed(tmp_path, [50.0, 900.0, 900.0, 900.0], 3, weight=0.05, reference_g_per_kwh=300.0)
    result = run(made, tmp_path / "out")
    assert {row["model"] for row in events(result, "model_loaded")} == {MODELS[1]}
    assert set(column(result, "model")) == set(MODELS)
    early = [m for m, t in zip(column(result, "model"), column(result, "arrival_s"), strict=True) if t < 5.0]
    assert set(early) == {MODELS[0]}
    groups = {row["value"]: row for row in result.groups if row["by"] == "model"}
    assert set(groups) == set(MODELS)


def test_later_turns_name_no_llm_either(tmp_path: Path) -> None:
    made = mixed(tmp_path, [900.0, 900.0], 2, weight=0.5)
    part = made["workload"]["parts"]["a"]
    part |= {"requests": 40, "sessions": {"turns": {"distribution": "fixed", "value": 3}}}
    result: fleetsim.Result = run(made, tmp_path / "out")
    late = [m for m, t in zip(column(result, "model"), column(result, "arrival_s"), strict=True) if t > 6.0]
    assert late
    assert set(late) == {MODELS[1]}
