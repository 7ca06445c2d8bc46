"""Queueing formulas: exact values, their laws, and the simulator as judge."""

from __future__ import annotations

from math import exp
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetsim.errors import InputError
from fleetsim.planning.problems import load_problem
from fleetsim.planning.queueing import (
    erlang_b,
    erlang_c,
    mean_wait,
    servers_for,
    square_root_staffing,
    wait_exceeds,
    wait_quantile,
)
from tests.theory.stations import Station, hyperexponential, poisson, settled, written


@pytest.mark.parametrize(
    ("servers", "load", "waiting", "mean", "t99"),
    [
        (10, 8, 0.4092, 0.20459, 1.8558),
        (50, 42.5, 0.1897, 0.02529, 0.3924),
        (100, 90, 0.2169, 0.02169, 0.3077),
        (4, 3, 0.5094, 0.50943, 3.9307),
    ],
)
def test_exact_values(servers: int, load: float, waiting: float, mean: float, t99: float) -> None:
    assert erlang_c(servers, load) == pytest.approx(waiting, abs=5e-5)
    assert mean_wait(servers, load) == pytest.approx(mean, abs=5e-6)
    assert wait_quantile(servers, load) == pytest.approx(t99, abs=5e-5)
    assert wait_exceeds(servers, load, wait_quantile(servers, load)) == pytest.approx(0.01)


@pytest.mark.parametrize(("rho", "deterministic", "exponential"), [(0.5, 0.5, 1), (0.8, 2.0, 4), (0.9, 4.5, 9)])
def test_single_servers_are_exact(rho: float, deterministic: float, exponential: float) -> None:
    assert mean_wait(1, rho, service_cv2=0.0) == pytest.approx(deterministic)
    assert mean_wait(1, rho) == pytest.approx(exponential)


@pytest.mark.parametrize(("servers", "rho"), [(1, 0.5), (2, 0.5), (4, 0.9), (10, 0.8), (50, 0.85)])
def test_constant_service(servers: int, rho: float) -> None:
    """Of M/D/c, the number of requests one service time later is that beyond the servers and a Poisson number that came."""
    load, states = rho * servers, np.arange(600)
    logs = states * np.log(load) - load - np.concatenate(([0.0], np.cumsum(np.log(states[1:]))))
    come, shares = np.exp(logs), np.eye(1, len(states))[0]
    for _ in range(20_000):
        left = np.concatenate(([shares[: servers + 1].sum()], shares[servers + 1 :]))
        before, shares = shares, np.convolve(left, come)[: len(states)]
        if np.abs(shares - before).sum() < 1e-13:
            break
    exact = (shares @ states - load) / load
    assert mean_wait(servers, load, service_cv2=0.0) == pytest.approx(exact, rel=0.01)


@given(st.integers(1, 60), st.floats(0.05, 0.98))
def test_erlangs_formulas_equal_the_state_probabilities(servers: int, rho: float) -> None:
    load = rho * servers
    weights = [1.0]
    for k in range(1, servers + 1):
        weights.append(weights[-1] * load / k)
    assert erlang_b(servers, load) == pytest.approx(weights[-1] / sum(weights))
    tail = weights[-1] / (1.0 - rho)
    assert erlang_c(servers, load) == pytest.approx(tail / (sum(weights[:-1]) + tail))


@given(st.floats(0.1, 300), st.floats(0.01, 2), st.floats(0.3, 1.0), st.booleans())
def test_fewest_servers(load: float, limit: float, utilisation: float, mean: bool) -> None:
    servers = servers_for(load, limit, utilisation_limit=utilisation, mean=mean)

    def keeps(count: int) -> bool:
        if load >= count or load > count * utilisation:
            return False
        return (mean_wait(count, load) if mean else wait_quantile(count, load)) <= limit

    assert keeps(servers)
    assert not keeps(servers - 1)


def test_square_root_staffing_keeps_the_chance_to_wait() -> None:
    chances = [erlang_c(square_root_staffing(load, 1.0), load) for load in (100.0, 400.0, 1600.0)]
    assert max(chances) - min(chances) < 0.02
    halfin_whitt = 1.0 / (1.0 + 1.0 * 0.8413447 / (exp(-0.5) / (2 * np.pi) ** 0.5))
    assert chances[-1] == pytest.approx(halfin_whitt, rel=0.05)


def test_overload_waits_for_ever() -> None:
    assert mean_wait(4, 4.0) == wait_quantile(4, 5.0) == float("inf")
    with pytest.raises(InputError, match="a million servers"):
        servers_for(2e6, 1.0)


@pytest.mark.parametrize(
    ("servers", "cv2", "rho"),
    [
        (4, 1.0, 0.5),
        (4, 1.0, 0.85),
        (4, 4.0, 0.85),
        (4, 4.0, 0.5),
        pytest.param(4, 2.0, 0.5, marks=pytest.mark.slow),
        pytest.param(16, 1.0, 0.85, marks=pytest.mark.slow),
        pytest.param(1, 4.0, 0.7, marks=pytest.mark.slow),
    ],
)
def test_the_simulator_agrees_within_15_percent(servers: int, cv2: float, rho: float, tmp_path: Path) -> None:
    """Mean waits of simulated stations, each the mean of as many runs as makes the formula's claim testable."""
    count, runs, waits = 8_000, 6 if rho < 0.8 else 10, []
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        service = rng.standard_exponential(count) if cv2 == 1.0 else hyperexponential(rng, count, cv2)
        rate = rho * servers * count / service.sum()  # the load as it was drawn
        folder = tmp_path / str(seed)
        folder.mkdir()
        step_s = 1e-3
        station = Station(servers=servers, step_s=step_s)
        workload = written(folder, poisson(rng, rate, count), service, step_s)
        waits.append(float(settled(station.serve(workload, folder, seed).wait_s).mean()))
    expected = mean_wait(servers, rho * servers, cv2)
    assert expected > 0
    assert float(np.mean(waits)) == pytest.approx(expected, rel=0.15)


def test_a_stated_queue_is_answered_in_closed_form() -> None:
    problem = {"kind": "queue", "rate": "8 req/s", "service_time": "1 s", "utilisation": 1.0}
    plan = load_problem(
        {"name": "q", "problem": problem | {"wait": {"limit": "1.86 s"}, "price": "2 USD/h"}}
    ).problem.solve()
    assert plan.figures["replicas"] == 10
    assert plan.objective == 20.0
    tighter = load_problem({"name": "q", "problem": problem | {"wait": {"limit": "1.85 s"}}}).problem.solve()
    assert tighter.figures["replicas"] == 11
    with pytest.raises(InputError, match="give a limit"):
        load_problem({"name": "q", "problem": problem})
