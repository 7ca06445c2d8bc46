"""Fitting what was simulated with known constants returns them; what the runs cannot tell apart is left and said."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleetsim.calibration.engine_fit import EngineFit, Server, fit_engine, standard_errors
from fleetsim.calibration.runs import Load, Run
from fleetsim.errors import DataError, InputError
from fleetsim.scenario.load import LoadedScenario, load_mapping

from .conftest import SERVER, TRUTH, measured, sent

AFFINE = {
    "model": "affine",
    "step": "5 ms",
    **dict.fromkeys(("prompt_token", "prompt_pair", "context_token", "sequence"), "0 s"),
}
LOADS = ((Load(concurrency=1), 40), (Load(concurrency=12), 80), (Load(concurrency=48), 120))
"""With the number of requests."""


def near(fit: EngineFit, truth: dict[str, float], rel: float = 0.03) -> None:
    """Within three standard errors or `rel`, and the standard errors are worth something."""
    for constant in fit.constants:
        if constant.fitted:
            assert constant.value == pytest.approx(truth[constant.name], rel=rel, abs=3 * constant.error), constant
            assert (
                constant.error < {"host": 1e-3, "frontend": 0.3 * truth["frontend"] + 5e-3, "scale": 0.2}[constant.name]
            )


@pytest.mark.parametrize("detailed", [False, True])
def test_three_loads_return_all_three_constants(detailed: bool, server_scenario: LoadedScenario) -> None:
    with Server(server_scenario) as server:
        runs = [measured(server, sent(load, count), TRUTH, detailed) for load, count in LOADS]
        fit = fit_engine(server, runs)
    assert all(constant.fitted for constant in fit.constants)
    near(fit, TRUTH)
    assert fit.before["tpot"].median > 0.1
    assert fit.after["tpot"].median < 0.01
    assert fit.after["ttft"].median < 0.05
    assert 24 < fit.batch_max <= 48
    assert fit.context_tokens_max == max(int((r.prompt_tokens + r.output_tokens).max()) for r in runs)


def test_two_means_give_two_constants(server_scenario: LoadedScenario) -> None:
    truth = {**TRUTH, "scale": 1.0}
    with Server(server_scenario) as server:
        fit = fit_engine(server, [measured(server, sent(Load(concurrency=8), 100), truth, detailed=False)])
    fitted = {constant.name: constant.fitted for constant in fit.constants}
    assert fitted == {"host": True, "frontend": True, "scale": False}
    assert fit.figures == 2
    near(fit, truth)
    scale = fit.constants[2]
    assert scale.value == scale.before
    assert math.isinf(scale.error)


def test_a_log_at_recorded_times(server_scenario: LoadedScenario) -> None:
    with Server(server_scenario) as server:
        fit = fit_engine(server, [measured(server, sent(Load(rate_per_s=10.0), 120), TRUTH)])
    near(fit, TRUTH)
    assert fit.constants[0].fitted
    assert fit.after["tpot"].median < 0.02


@pytest.mark.slow
@settings(max_examples=3, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0.5e-3, 4e-3), st.floats(5e-3, 0.08), st.floats(0.8, 1.5))
def test_whatever_the_constants(server_scenario: LoadedScenario, host: float, frontend: float, scale: float) -> None:
    truth = {"host": host, "frontend": frontend, "scale": scale}
    with Server(server_scenario) as server:
        near(fit_engine(server, [measured(server, sent(load, 100), truth) for load, _ in LOADS]), truth, 0.1)


def test_without_any_decode_only_the_time_to_first_token_counts(server_scenario: LoadedScenario) -> None:
    run = sent(Load(concurrency=2), 40)
    one = Run(run.name, run.file, run.load, run.prompt_tokens, np.ones(40, np.int64), None, run.ttft_s, run.tpot_s)
    with Server(server_scenario) as server:
        fit = fit_engine(server, [measured(server, one, {**TRUTH, "scale": 1.0}, detailed=True)])
    assert set(fit.after) == {"ttft"}


def test_requests_that_the_pool_rejects_are_told(server_scenario: LoadedScenario) -> None:
    run = sent(Load(concurrency=2), 20, prompt=3_000_000, spread=0.01)
    with Server(server_scenario) as server, pytest.raises(DataError, match="20 of 20 requests do not fit"):
        server.simulate(run, TRUTH)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pools": [*SERVER["pools"], {**SERVER["pools"][0], "name": "second"}]}, "describes 2 pools"),  # type: ignore[dict-item,index,misc]
        (
            {"pools": [{**SERVER["pools"][0], "engine": {"step_time": AFFINE}}]},  # type: ignore[dict-item,index]
            "is affine: host time",
        ),
    ],
)
def test_scenarios_that_describe_no_server(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Server(load_mapping({**SERVER, **change}))


def test_standard_errors() -> None:
    jacobian = np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    assert standard_errors(jacobian, 0.1) == pytest.approx([0.1, 0.05])
    assert np.all(np.isinf(standard_errors(np.array([[1.0, 1.0], [2.0, 2.0]]), 0.1)))
    assert np.all(np.isinf(standard_errors(np.ones((1, 2)), 0.1)))
    spread = np.array([[0.3, 0.0, 0.0], [-0.3, 0.0, 0.0]])
    assert standard_errors(jacobian, 0.1, spread) == pytest.approx([math.hypot(0.1, 0.3), 0.05])
