"""Predictors of output lengths: what they expect, and how well."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau

import fleetsim
from fleetsim.plugins import load, names
from fleetsim.routing.api import RequestView
from fleetsim.workload.request import Request


def build(name: str, seed: int = 7, **options: Any) -> Any:
    policy = load("predictors", name)
    return policy(policy.Config(**options), np.random.default_rng(seed))


def view(number: int = 0, prompt: int = 100, klass: str | None = None, tenant: str | None = None) -> RequestView:
    return RequestView(Request(number, 0.0, prompt, 1, klass=klass, tenant=tenant))


LENGTHS = (np.random.default_rng(3).lognormal(5.0, 1.0, 4000) + 1).astype(int)


def test_oracle_and_noise_of_the_stated_size() -> None:
    assert build("oracle").predict_knowing(view(), 321) == 321.0
    noisy = build("noisy", sigma=0.5)
    errors = np.log([noisy.predict_knowing(view(i), int(n)) / n for i, n in enumerate(LENGTHS)])
    assert abs(errors.mean()) < 0.03
    assert abs(errors.std() - 0.5) < 0.02
    other = build("noisy", seed=8, sigma=0.5)
    again = np.log([other.predict_knowing(view(i), int(n)) / n for i, n in enumerate(LENGTHS)])
    assert abs(np.corrcoef(errors, again)[0, 1]) < 0.05
    assert build("noisy", sigma=0.0).predict_knowing(view(3), 40) == 40.0


@pytest.mark.parametrize("tau", [0.2, 0.6, 1.0])
def test_ranks_have_the_stated_correlation(tau: float) -> None:
    ranker = build("rank", tau=tau, log_sigma=1.0)
    scores = [ranker.predict_knowing(view(i), int(n)) for i, n in enumerate(LENGTHS)]
    assert all(0.0 < score < 1.0 for score in scores)
    assert abs(kendalltau(scores, LENGTHS).statistic - tau) < 0.03


def test_quantiles_by_class_are_learned_in_a_window() -> None:
    predictor = build("quantile", level=0.9, window=100, initial=7, classes={"batch": 1000})
    assert predictor.predict(view(klass="chat")) == 7.0
    for tokens in range(1, 301):
        predictor.observe(view(klass="chat"), tokens)
    assert predictor.predict(view(klass="chat")) == 291.0  # of 201 to 300
    assert predictor.predict(view(klass="batch")) == 1000.0
    predictor.observe(view(klass="batch"), 5)
    assert predictor.predict(view(klass="batch")) == 1000.0
    assert predictor.predict(view()) == 7.0


def test_moving_average_of_the_last_five() -> None:
    predictor = build("moving-average")
    for tokens in (1000, 1, 2, 3, 4, 5):
        predictor.observe(view(tenant="anna"), tokens)
    assert predictor.predict(view(tenant="anna")) == 3.0
    assert predictor.predict(view(tenant="bert")) == 256.0
    by_class = build("moving-average", by="class", initial=10)
    by_class.observe(view(klass="chat", tenant="anna"), 50)
    assert by_class.predict(view(klass="chat", tenant="bert")) == 50.0


def test_learned_means_draw_on_wider_groups() -> None:
    predictor = build("learned", prior_answers=10, initial=100)
    for _ in range(1000):
        predictor.observe(view(klass="code", prompt=4000), 50)
        predictor.observe(view(klass="chat", prompt=50), 400)
    assert predictor.predict(view(klass="code", prompt=4000)) == pytest.approx(50.0, abs=0.1)
    # a class that nobody has seen: the mean of all; a prompt length that nobody has seen: the class's
    assert predictor.predict(view(klass="new")) == pytest.approx(225.0, abs=2.0)
    assert predictor.predict(view(klass="code", prompt=9)) == pytest.approx(50.0, abs=4.0)


@pytest.mark.parametrize("name", names("predictors"))
def test_predictions_reach_the_policies(name: str, tmp_path: Any) -> None:
    """The gateway asks once per request, and answers are learned when they end, not before."""
    seen.clear()
    scenario = {
        "schema": 1,
        "name": "predicted",
        "workload": {
            "kind": "synthetic",
            "requests": 200,
            "arrivals": {"process": "poisson", "rate": "2 req/s"},
            "prompt_tokens": {"distribution": "fixed", "value": 10},
            "output_tokens": {"distribution": "fixed", "value": 77},
        },
        "gateway": {"predictor": name, "router": {"policy": "tests.routing.test_predictors:Noting"}},
        "pools": [{"name": "main", "llm": "llama-3.1-8b", "accelerator": "h100-sxm"}],
    }
    fleetsim.run(scenario, out=tmp_path / "out", check=True, allow_import=True)
    assert len(seen) == 200
    first, last = seen[0], seen[-1]
    expected = {"oracle": (77.0, 77.0), "quantile": (256.0, 77.0), "moving-average": (256.0, 77.0)}
    assert (first, last) == expected.get(name, (first, last))
    if name == "learned":
        assert first == 256.0
        assert 77.0 < last < 79.0


seen: list[float] = []


class Noting(load("routers", "round-robin")):  # type: ignore[misc]
    """Round robin that notes what is expected."""

    def route(self, request: Any) -> Any:
        seen.append(request.predicted_tokens)
        return super().route(request)
