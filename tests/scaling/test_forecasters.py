"""Forecasters on series whose answer is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.linalg import solve_discrete_are

from fleetsim.errors import PolicyError
from fleetsim.plugins import load, names
from fleetsim.scaling.forecasters.api import Series, quantiles
from fleetsim.scaling.future import Future
from fleetsim.workload.request import Request

Truth = Callable[[float, float], float]


def build(name: str, period_s: float = 60.0, truth: Truth | None = None, seed: int = 3, **config: Any) -> Any:
    policy = load("forecasters", name)
    return policy(policy.Config.model_validate(config), np.random.default_rng(seed), Series(period_s, truth))


def fed(forecaster: Any, values: Any, period_s: float = 60.0) -> Any:
    for i, value in enumerate(values):
        forecaster.observe((i + 1) * period_s, float(value))
    return forecaster


def some(start_s: float, end_s: float) -> float:
    """A day with a peak at noon."""
    middle_s = 0.5 * (start_s + end_s)
    return (end_s - start_s) * (2.0 - np.cos(2.0 * np.pi * middle_s / 86_400.0))


def course(periods: int, noise: float = 0.0, seed: int = 1, period_s: float = 3600.0) -> Any:
    rng = np.random.default_rng(seed)
    day = np.array([some(i * period_s, (i + 1) * period_s) for i in range(periods)])
    return day + noise * day.mean() * rng.standard_normal(periods)


@pytest.mark.parametrize("name", names("forecasters"))
def test_all_know_a_flat_series_and_repeat_themselves(name: str) -> None:
    one, other = (fed(build(name, truth=lambda a, b: 7.0), [7.0] * 30) for _ in range(2))
    np.testing.assert_allclose(one.mean(4), 7.0, rtol=1e-6)
    samples = one.samples(4, 50)
    assert samples.shape == (50, 4)
    np.testing.assert_allclose(samples, 7.0, rtol=1e-6)
    np.testing.assert_array_equal(samples, other.samples(4, 50))


@pytest.mark.parametrize("name", names("forecasters"))
def test_all_answer_before_anything_is_known(name: str) -> None:
    forecaster = build(name, truth=lambda a, b: 0.0)
    assert (forecaster.mean(3) == 0.0).all()
    assert (forecaster.samples(3, 5) == 0.0).all()


def test_a_walk_widens_with_the_root_of_the_horizon() -> None:
    steps = np.where(np.arange(200) % 2, 1.0, -1.0)
    forecaster = fed(build("constant"), np.cumsum(steps))
    samples = forecaster.samples(16, 20_000)
    np.testing.assert_allclose(samples.std(axis=0), np.sqrt(np.arange(1, 17)), rtol=0.03)


def test_a_season_comes_again() -> None:
    forecaster = fed(build("seasonal", period_s=3600.0), course(24 * 3), 3600.0)
    np.testing.assert_allclose(forecaster.mean(30), course(24 * 3 + 30)[24 * 3 :], rtol=1e-12)


def test_a_season_has_the_errors_that_it_had() -> None:
    """A value differs from that of a day ago by two noises."""
    forecaster = fed(build("seasonal", period_s=3600.0, errors=1000), course(24 * 30, noise=0.1), 3600.0)
    spread = (forecaster.samples(1, 5000) - forecaster.mean(1)).std()
    assert spread == pytest.approx(0.1 * np.sqrt(2.0) * course(24).mean(), rel=0.1)


def test_a_straight_line_goes_on() -> None:
    forecaster = fed(build("kalman"), 5.0 + 3.0 * np.arange(40))
    np.testing.assert_allclose(forecaster.mean(5), 5.0 + 3.0 * np.arange(40, 45), rtol=1e-5)


def test_the_filter_ends_in_the_steady_state_of_theory() -> None:
    move, see, drift = np.array([[1.0, 1.0], [0.0, 1.0]]), np.array([[1.0, 0.0]]), np.diag([0.3, 0.02])
    forecaster = fed(build("kalman", level_ratio=0.3, slope_ratio=0.02), np.random.default_rng(0).normal(size=400))
    ahead = solve_discrete_are(move.T, see.T, drift, np.eye(1))
    updated = ahead - ahead @ see.T @ see @ ahead / (ahead[0, 0] + 1.0)
    np.testing.assert_allclose(forecaster._spread, updated, rtol=1e-9)


def test_a_local_trend_is_covered_as_often_as_promised() -> None:
    rng = np.random.default_rng(8)
    noise = 4.0
    slope = np.cumsum(rng.normal(size=600)) * np.sqrt(0.01) * noise
    level = np.cumsum(slope + rng.normal(size=600) * np.sqrt(0.1) * noise)
    values = level + noise * rng.normal(size=600)
    forecaster = build("kalman")
    inside = []
    for i, value in enumerate(values):
        if i > 50:
            low, high = quantiles(forecaster, 3, (0.05, 0.95), 300)[:, 2]
            if i + 2 < len(values):
                inside.append(low <= values[i + 2] <= high)
        forecaster.observe(60.0 * (i + 1), value)
    assert forecaster.noise == pytest.approx(noise**2, rel=0.15)
    assert np.mean(inside) == pytest.approx(0.9, abs=0.04)


def test_an_oracle_knows() -> None:
    forecaster = fed(build("oracle", 3600.0, some), course(10), 3600.0)
    np.testing.assert_allclose(forecaster.mean(5), course(15)[10:], rtol=1e-12)
    assert (forecaster.samples(5, 3) == forecaster.mean(5)).all()


def test_an_oracle_is_as_wrong_as_it_is_asked_to_be() -> None:
    forecaster = build("oracle", 3600.0, some, crps_ratio=0.1)
    scores, inside = [], []
    for i, value in enumerate(course(1500)):
        x = forecaster.samples(1, 100)[:, 0]
        spread = np.abs(x[:, None] - x[None, :]).sum() / (100 * 99)
        scores.append((np.abs(x - value).mean() - 0.5 * spread) / value)
        low, high = np.quantile(x, (0.05, 0.95))
        inside.append(low <= value <= high)
        forecaster.observe(3600.0 * (i + 1), value)
    assert np.mean(scores) == pytest.approx(0.1, rel=0.05)
    assert np.mean(inside) == pytest.approx(0.9, abs=0.03)


def test_an_oracle_that_is_told_nothing_says_so() -> None:
    with pytest.raises(PolicyError, match="told nothing"):
        build("oracle")


def test_arima_finds_the_coefficient_of_a_known_process() -> None:
    rng = np.random.default_rng(4)
    values, last = [], 0.0
    for error in rng.normal(size=400):
        last = 0.8 * last + error
        values.append(10.0 + last)
    forecaster = fed(build("arima", p=1, d=0, q=0, refit=1000), values)
    ahead = forecaster.mean(3) - 10.0
    np.testing.assert_allclose(ahead[1:] / ahead[:-1], 0.8, atol=0.15)
    assert forecaster.samples(20, 2000)[:, -1].std() == pytest.approx(1.0 / np.sqrt(1.0 - 0.64), rel=0.15)


def test_holt_winters_follows_trend_and_season() -> None:
    t = np.arange(24 * 6)
    values = 100.0 + 0.5 * t + 20.0 * np.sin(2 * np.pi * t / 24)
    forecaster = fed(build("holt-winters", 3600.0, trend="additive", season_s=86_400.0), values, 3600.0)
    t = np.arange(24 * 6, 24 * 7)
    np.testing.assert_allclose(forecaster.mean(24), 100.0 + 0.5 * t + 20.0 * np.sin(2 * np.pi * t / 24), rtol=0.01)


@pytest.mark.parametrize("name", ["arima", "holt-winters"])
def test_without_a_fit_the_old_parameters_are_applied(name: str) -> None:
    values = course(120, noise=0.05)
    fresh = fed(build(name, 3600.0), values, 3600.0)
    kept = build(name, 3600.0, refit=10_000)
    for i, value in enumerate(values):
        kept.observe(3600.0 * (i + 1), value)
        if i == 100:
            kept.mean(1)
    assert kept.mean(3) == pytest.approx(fresh.mean(3), rel=0.15)


def test_the_future_is_counted_by_llm() -> None:
    requests = [Request(i, float(i), 10 * i, i) for i in range(10)]
    requests[3].model = "a"
    requests[4].model = "b"
    future = Future(requests)
    assert future.between("a", "requests", 2.0, 5.0) == 2
    assert future.between("b", "prompt_tokens", 2.0, 5.0) == 60
    assert future.between("c", "output_tokens", 5.0, 100.0) == sum(range(5, 10))
