"""Checker of predictors of output lengths."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from time import perf_counter_ns
from typing import Any

import numpy as np

from fleetsim.routing.api import RequestView
from fleetsim.testing.report import Config, Policy, Report
from fleetsim.workload.request import Request

_REQUESTS = 3000
_UNDER_WAY = 40
"""Requests that have not ended when the next one comes."""


def check_predictor(policy: type | str, config: Config = None) -> Report:
    """Try a predictor on generated requests that end some time after they came.

    Checked are: predictions are finite and not below zero; the same requests and seed give the same predictions; they do not depend
    on how long the answer will be, unless the predictor says that it knows (``knows_length``), and then not on the order in which
    requests come; requests and what is shown of them stay unchanged.

    Parameters
    ----------
    policy : type or str
        The class, its registered name or ``module:Class``.
    config : BaseModel or mapping, optional
        Its parameters.

    Returns
    -------
    Report
        With the time per prediction.

    Raises
    ------
    PolicyError
        If a check fails; the message says which and how.
    """
    checked = Policy("predictors", policy, config, ["observe"])
    knows = bool(getattr(checked.create(np.random.default_rng(5)), "knows_length", False))
    method = "predict_knowing" if knows else "predict"
    if not callable(getattr(checked.create(np.random.default_rng(5)), method, None)):
        checked.fail(f"has no method `{method}`")
    requests = _requests()
    ours, spent_us = _answers(checked, method, requests)
    checked.passed("predictions are finite and not below zero")
    if ours != _answers(checked, method, _requests())[0]:
        checked.fail("does otherwise the second time: draw from the generator it is built with")
    checked.passed("the same requests and seed give the same predictions")
    if knows:
        backwards = _answers(checked, method, _requests()[::-1])[0]
        if ours != backwards[::-1]:
            checked.fail("a request's prediction depends on which others came before: policies could not be compared")
        checked.passed("predictions do not depend on the order of requests")
    else:
        others = _requests()
        for request in others[_UNDER_WAY:]:
            request.output_tokens += 1000
        if ours[: 2 * _UNDER_WAY] != _answers(checked, method, others)[0][: 2 * _UNDER_WAY]:
            checked.fail("predictions depend on answers that have not ended (an oracle sets `knows_length`)")
        checked.passed("predictions do not depend on answers that have not ended")
    checked.decisions = _REQUESTS
    return checked.report({f"{_REQUESTS} requests": spent_us})


def _requests() -> list[Request]:
    rng = np.random.default_rng(29)
    prompts = rng.integers(1, 4000, _REQUESTS).tolist()
    outputs = rng.lognormal(5.0, 1.0, _REQUESTS).astype(int) + 1
    return [
        Request(i, 0.1 * i, prompts[i], int(outputs[i]), klass=("chat", "code", None)[i % 3], tenant=f"t{i % 7}")
        for i in range(_REQUESTS)
    ]


def _answers(checked: Policy, method: str, requests: Sequence[Request]) -> tuple[list[float], float]:
    """Predictions for requests each of which ends when `_UNDER_WAY` more have come, and the time per prediction [µs]."""
    predictor: Any = checked.create(np.random.default_rng(5))
    predict = getattr(predictor, method)
    found, spent_ns = [], 0
    for i, request in enumerate(requests):
        facts = (request.output_tokens,) if method == "predict_knowing" else ()
        view, before = RequestView(request), request.copy()
        with checked.complaining(f"fails for request {request.id}"):
            start_ns = perf_counter_ns()
            answer = predict(view, *facts)
            spent_ns += perf_counter_ns() - start_ns
        if not (isinstance(answer, float | int) and isfinite(answer) and answer >= 0):
            checked.fail(f"predicts {answer!r} output tokens for request {request.id}")
        if any(getattr(request, name) != getattr(before, name) for name in ("klass", "tenant", "predicted_tokens")):
            checked.fail(f"changes request {request.id}")
        found.append(float(answer))
        if i >= _UNDER_WAY:
            ended = requests[i - _UNDER_WAY]
            with checked.complaining(f"cannot learn from request {ended.id}"):
                predictor.observe(RequestView(ended), ended.output_tokens)
    return found, spent_ns / 1e3 / len(requests)
