"""Rules of model routers, their checker, and the figures that are made of answers, against theory and known cases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleetsim.errors import PolicyError
from fleetsim.metrics.answers import (
    area_under_hull,
    calibration_error,
    cost_quality_curve,
    curve_figures,
    upper_hull,
)
from fleetsim.model_routing.adaptive_consistency import sureness
from fleetsim.model_routing.api import Ask, ModelsView, Query
from fleetsim.model_routing.bandit import Ridges
from fleetsim.model_routing.radar import Radar, RadarConfig, scalarised
from fleetsim.plugins import PolicyConfig, names
from fleetsim.testing import check_model_router
from tests.fleet.test_moves import column, run
from tests.model_routing.test_answering import BIG, SMALL, scenario


@pytest.mark.parametrize("name", names("model_routers"))
def test_every_router_keeps_the_rules(name: str) -> None:
    assert check_model_router(name).checks


def test_the_checker_finds_routers_that_break_them() -> None:
    class Nothing(PolicyConfig):
        """Nothing to set."""

    class Stubborn:
        Config = Nothing

        def __init__(self, config: Any, rng: Any, models: ModelsView) -> None:
            pass

        def route(self, query: Query) -> Ask:
            return Ask(0)

    class Endless(Stubborn):
        def __init__(self, config: Any, rng: Any, models: ModelsView) -> None:
            self._models = models

        def route(self, query: Query) -> Ask:
            return Ask(self._models.open()[0])

        def proceed(self, query: Query, answers: Any) -> Ask:
            return self.route(query)

    with pytest.raises(PolicyError, match="may not be chosen"):
        check_model_router(Stubborn)
    with pytest.raises(PolicyError, match="never comes to an end"):
        check_model_router(Endless)


def test_rank_one_steps_are_the_inverse() -> None:
    """Sherman and Morrison's formula against the matrix itself, with a discount and without."""
    rng = np.random.default_rng(3)
    for discount, noise, close in ((1.0, 1.0, 1e-9), (0.99, 0.0625, 1e-6)):
        ridges = Ridges(2, 12, 0.05, noise, discount)
        matrix, moment = 0.05 * np.eye(12), np.zeros(12)
        for _ in range(400):
            x, reward = (rng.random(12) < 0.3).astype(float), rng.random()
            ridges.update(1, tuple(np.flatnonzero(x).tolist()), reward)
            matrix, moment = discount * matrix + np.outer(x, x) / noise, discount * moment + reward * x / noise
        np.testing.assert_allclose(ridges.theta[1], np.linalg.solve(matrix, moment), rtol=close, atol=close)
        x = np.zeros(12)
        x[[0, 4, 7]] = 1.0
        means, deviations = ridges.look((0, 4, 7))
        assert means[1] == pytest.approx(x @ np.linalg.solve(matrix, moment), rel=close)
        assert deviations[1] ** 2 == pytest.approx(x @ np.linalg.solve(matrix, x), rel=close)
        assert means[0] == 0.0


def test_chebyshev_finds_the_model_in_a_hollow_of_the_front() -> None:
    """Chances .5, .6, .9 at costs .1, .5, 1: a linear weight never chooses the middle one, Chebyshev's does for some."""
    chance, cost = np.array([0.5, 0.6, 0.9]), np.array([0.1, 0.5, 1.0])
    weights = np.linspace(0.0, 1.0, 1001)
    chosen = {how: {int(scalarised(how, w, chance, cost).argmax()) for w in weights} for how in ("linear", "chebyshev")}
    assert chosen["linear"] == {0, 2}
    assert chosen["chebyshev"] == {0, 1, 2}


def test_four_answers_that_agree_are_enough() -> None:
    assert sureness(4, 0) == pytest.approx(0.96875)
    assert sureness(3, 0) == pytest.approx(0.9375)
    assert sureness(1, 1) == pytest.approx(0.5)


def test_adaptive_consistency_stops_when_it_is_sure(tmp_path: Path) -> None:
    """A model that is always right is asked four times; one that never agrees with itself, as often as is allowed."""
    for ability, coincide, calls in ((50.0, 0.4, {4}), (-50.0, 0.01, {7})):
        config = scenario({"policy": "adaptive-consistency", "model": BIG, "most": 7}, 20, 5.0)
        config["quality"]["models"][BIG]["ability"] = ability
        config["quality"]["wrong_answers"] = {"count": 100, "coincide": coincide}
        assert set(column(run(config, tmp_path / f"{ability}"), "calls")) <= calls | ({5, 6} if ability < 0 else set())


def test_the_price_of_a_cascade_is_the_sum_of_what_is_reached(tmp_path: Path) -> None:
    """E[cost] = c1 + P(the first is turned down) c2, from the table of requests alone, to the last cent."""
    config = scenario({"policy": "frugal-gpt", "thresholds": [0.6]}, 200, 30.0)
    result = run(config, tmp_path)
    prompts, models, calls = column(result, "prompt_tokens"), column(result, "model"), column(result, "calls")
    single = {
        name: run(scenario({"policy": "single", "model": name}, 200, 30.0), tmp_path / name) for name in (SMALL, BIG)
    }
    usd = {name: np.array(column(alone, "list_usd")) for name, alone in single.items()}
    turned_down = np.array(models) == BIG
    assert (np.array(calls) == 1 + turned_down).all()
    np.testing.assert_allclose(column(result, "list_usd"), usd[SMALL] + turned_down * usd[BIG], rtol=1e-12)
    reached = turned_down.mean()
    expected = usd[SMALL].mean() + reached * usd[BIG][turned_down].mean()
    assert result.summary["list_usd"] / 200 == pytest.approx(expected, rel=1e-9)
    assert len(prompts) == 200


def test_the_share_of_strong_calls_is_what_was_asked_for(tmp_path: Path) -> None:
    for share in (0.0, 0.3, 1.0):
        config = scenario({"policy": "threshold", "strong_share": share}, 400, 200.0)
        strong = np.mean([model == BIG for model in column(run(config, tmp_path / str(share)), "model")])
        assert strong == pytest.approx(share, abs=0.05)


def test_a_random_order_recovers_half_of_the_gap() -> None:
    rng = np.random.default_rng(1)
    weak, strong = (rng.random(40_000) < 0.4).astype(float), (rng.random(40_000) < 0.7).astype(float)
    usd = np.full(40_000, 1.0), np.full(40_000, 5.0)
    figures = curve_figures(rng.random(40_000), weak, strong, *usd)
    assert figures["apgr"] == pytest.approx(0.5, abs=0.01)
    assert figures["cpt_50_ratio"] == pytest.approx(0.5, abs=0.02)
    told = curve_figures(strong - weak, weak, strong, *usd)
    assert told["apgr"] > 0.85
    assert told["aiq"] > figures["aiq"]
    blind = curve_figures(np.zeros(40_000), weak, strong, *usd)
    assert blind["apgr"] == pytest.approx(0.5)
    assert blind["cpt_80_ratio"] == pytest.approx(0.8)


def test_the_hull_leaves_out_what_others_beat() -> None:
    points = [(1.0, 0.5), (2.0, 0.55), (3.0, 0.9), (4.0, 0.8), (1.0, 0.4)]
    assert upper_hull(points) == [(1.0, 0.5), (3.0, 0.9), (4.0, 0.9)]
    assert area_under_hull(points) == pytest.approx((2 * 0.7 + 0.9) / 3)
    assert area_under_hull([(1.0, 0.2), (1.0, 0.3)]) is None
    share, quality = cost_quality_curve(np.array([2.0, 1.0]), np.array([0.0, 0.0]), np.array([1.0, 0.0]))
    assert share.tolist() == [0.0, 0.5, 1.0]
    assert quality.tolist() == [0.0, 0.5, 0.5]


def test_the_calibration_error_is_the_gap_of_each_bin() -> None:
    assert calibration_error(np.array([0.25, 0.25, 0.95, 0.95]), np.array([0.0, 0.5, 1.0, 0.9])) == pytest.approx(
        0.0, abs=1e-12
    )
    assert calibration_error(np.array([0.3, 0.3]), np.array([1.0, 1.0])) == pytest.approx(0.7)


def test_bandits_learn_which_model_is_worth_it(tmp_path: Path) -> None:
    """With quality alone, and models that differ by far, all find the better one; with thrift alone, the thriftier one."""
    for name in ("linucb", "thompson", "linear-epsilon", "epsilon-greedy"):
        models = {}
        for weight in (0.0, 1.0):
            config = scenario({"policy": name, "weight": weight, "cost": "price"}, 600, 60.0)
            config["quality"]["models"][BIG]["ability"], config["quality"]["models"][SMALL]["ability"] = 3.0, -3.0
            models[weight] = column(run(config, tmp_path / name / str(weight)), "model")[-200:]
        assert np.mean([model == BIG for model in models[0.0]]) > 0.9, name
        assert np.mean([model == SMALL for model in models[1.0]]) > 0.9, name


def test_the_latency_of_now_keeps_requests_from_a_pool_that_is_full(tmp_path: Path) -> None:
    """With the latency of an empty replica most go to the better model and wait; with that of now more go to the other one."""
    shares, waits = {}, {}
    for latency in ("state", "static"):
        weights = {"quality_weight": 1.0, "latency_weight": 0.9, "cost_weight": 0.0}
        config = scenario({"policy": "route-balance", "latency": latency, **weights}, 400, 200.0)
        config["quality"]["models"][BIG]["ability"], config["quality"]["models"][SMALL]["ability"] = 2.5, -2.5
        config["pools"][1]["replicas"] = 6
        result = run(config, tmp_path / latency)
        shares[latency] = np.mean([model == SMALL for model in column(result, "model")])
        waits[latency] = result.summary["e2el_mean_s"]
    assert shares["state"] > shares["static"] + 0.1
    assert waits["state"] < 0.9 * waits["static"]


def test_more_samples_of_a_cheap_model_match_a_dear_one(tmp_path: Path) -> None:
    config = scenario({"policy": "best-route", "threshold": 0.75}, 200, 20.0)
    config["quality"]["judge"] = {"auc": 0.95}
    result = run(config, tmp_path)
    calls, models = column(result, "calls"), column(result, "model")
    assert {model for model, n in zip(models, calls, strict=True) if n > 1} == {SMALL}
    assert max(calls) <= 5
    assert len(set(calls)) > 2


def test_the_ability_of_a_model_that_joins_is_learned(tmp_path: Path) -> None:
    """Requests that tell most go there until it is known; the belief is then near the truth."""
    config = scenario({"policy": "radar", "onboard": True, "weight": 0.9, "enough": 0.25}, 900, 60.0)
    config["quality"]["models"][SMALL] |= {"ability": 0.9, "joins": "2 s"}
    config["quality"]["features"] = {"difficulty_sd": 0.0}
    config["quality"]["discrimination_sd"] = 0.0
    seen: list[Radar] = []

    class Watched(Radar):
        Config = RadarConfig

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            seen.append(self)

    config["gateway"]["model_router"] = {
        "policy": Watched,
        **{k: v for k, v in config["gateway"]["model_router"].items() if k != "policy"},
    }
    run(config, tmp_path)
    mean, deviation = seen[-1].belief(1)
    assert deviation <= 0.25
    assert mean == pytest.approx(0.9, abs=3 * deviation)
