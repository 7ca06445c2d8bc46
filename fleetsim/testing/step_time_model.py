"""Checker of step-time models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from math import ceil, isclose, isfinite
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

from fleetsim.catalog.link import load_link
from fleetsim.engine.api import StepTimeModel
from fleetsim.fleet.pool import describe_pool
from fleetsim.scenario import schema
from fleetsim.testing.report import Config, Policy, Report, Subject

_POOLS: Sequence[Mapping[str, Any]] = (
    {"llm": "llama-3.1-8b", "accelerator": "h100-sxm"},
    {"llm": "llama-3.1-8b", "accelerator": "l40s", "parallelism": {"tp": 2}},
    {"llm": "qwen3-30b-a3b", "accelerator": "h100-sxm", "parallelism": {"dp": 2, "ep": 2}},
)
_TOKENS = (1, 2, 3, 5, 8, 16, 31, 64, 100, 128, 250, 256, 511, 512, 1000, 1024, 2048, 4096, 8192)
_BATCHES = (1, 2, 3, 7, 8, 16, 33, 64, 128, 200, 256, 512, 1000)
_CONTEXTS = (1, 10, 100, 1000, 5000, 20_000)
"""Context per decoding request [tokens]."""
_LINES = 200
"""Lines of one batch that are followed at most."""
_TOLERANCE = 1e-9

Maker = Callable[[], tuple[StepTimeModel, Sequence[int]]]
"""Gives a new model, and by which factors the group's tokens may exceed the rank's."""
Question = tuple[int, int, int, int, int, int, int, int]
"""Arguments of `StepTimeModel.mixed`."""


def check_step_time_model(policy: type | str | StepTimeModel, config: Config = None) -> Report:
    """Try a step-time model on a dense pool, a tensor-parallel one and one whose experts are shared by data-parallel ranks.

    Checked are: times are positive and finite, energies not negative, powers in order; a decode step's line holds up to where it
    says, does not fall with the context, and is followed by one that does not begin lower; `decode` and `mixed` agree where no
    prompt token is computed; time does not fall with more prompt tokens, longer context, more decoding requests or more tokens on
    other ranks; the same question has the same answer, in whatever order it is asked.

    Parameters
    ----------
    policy : type, str or StepTimeModel
        The class, its registered name or ``module:Class``; or a model that is built already.
    config : BaseModel or mapping, optional
        Its parameters.

    Returns
    -------
    Report
        With the time per call.

    Raises
    ------
    PolicyError
        If a check fails; the message says which and how.
    """
    makers: list[Maker] = []
    checked: Subject
    if isinstance(policy, type | str):
        checked = tried = Policy("step_time_models", policy, config, ["decode", "mixed"])
        makers += [partial(_on_pool, tried, pool) for pool in _POOLS]
    else:
        checked = Subject(type(policy).__name__)
        makers.append(lambda: (policy, (1,)))
    costs: dict[str, float] = {}
    for make in makers:
        with checked.complaining("fails"):
            _check_model(checked, make, costs)
    checked.passed("powers are in order; times are positive, energies not negative, all finite")
    checked.passed(
        "a line holds for all contexts up to its end, rises with the context, and the next does not begin lower"
    )
    checked.passed("`decode` and `mixed` agree where no prompt token is computed")
    checked.passed("time does not fall with more tokens, context, requests or tokens on other ranks")
    checked.passed("the same question has the same answer, in any order")
    return checked.report(costs)


def _on_pool(checked: Policy, pool: Mapping[str, Any]) -> tuple[StepTimeModel, Sequence[int]]:
    """A new model of a pool, and by how much the group's tokens may exceed the rank's."""
    described = describe_pool(schema.Pool.model_validate({"name": "check", **pool}), 0, Path())
    parallelism, engine = described.config.parallelism, described.config.engine
    link = load_link(described.accelerator.link)
    model = checked.create(described.llm, described.accelerator, link, parallelism, engine)
    return model, (1, 2, 5) if parallelism.dp > 1 else (1,)


def _check_model(checked: Subject, make: Maker, costs: dict[str, float]) -> None:
    model, factors = make()
    _check_power(checked, model)
    questions = _questions(factors)
    answers = [_ask(checked, model, question) for question in questions]
    fresh, _ = make()
    order = np.random.default_rng(1).permutation(len(questions)).tolist()
    for i in order:
        for other in (model, fresh):
            if _ask(checked, other, questions[i]) != answers[i]:
                checked.fail(f"is not pure: another answer to {questions[i]} than before")
    _check_lines(checked, model, factors)
    known = dict(zip(questions, answers, strict=True))
    for earlier, later in _pairs(factors):
        if known[later][0] < known[earlier][0] * (1 - _TOLERANCE):
            checked.fail(f"time falls: {known[earlier][0]:.6g} s for {earlier}, {known[later][0]:.6g} s for {later}")
    start_ns = perf_counter_ns()
    for question in questions:
        model.mixed(*question)
    costs["mixed"] = (perf_counter_ns() - start_ns) / len(questions) / 1e3
    start_ns = perf_counter_ns()
    for batch in _BATCHES:
        for context in _CONTEXTS:
            model.decode(batch, batch * context, batch)
    costs["decode"] = (perf_counter_ns() - start_ns) / len(_BATCHES) / len(_CONTEXTS) / 1e3


def _step(prompt: int, before: int, decoding: int, context: int, factor: int) -> Question:
    """One prompt chunk of `prompt` tokens after `before`, beside `decoding` requests with `context` tokens each."""
    tokens = prompt + decoding
    pairs = prompt * before + prompt * (prompt + 1) // 2
    chunks = 1 if prompt else 0
    return (
        tokens,
        decoding + chunks,
        pairs,
        (before + prompt) * chunks,
        chunks,
        decoding,
        decoding * context,
        factor * tokens,
    )


def _grid(factors: Sequence[int]) -> Iterator[list[Question]]:
    """Series of steps, each of which computes or reads more than the one before."""
    for factor in factors:
        for decoding, context in ((0, 1), (1, 100), (64, 1000)):
            for before in (0, 3000):
                yield [_step(prompt, before, decoding, context, factor) for prompt in _TOKENS]
        for prompt in (0, 1, 500):
            for decoding in (1, 33, 256):
                yield [_step(prompt, 0, decoding, context, factor) for context in _CONTEXTS]
            yield [_step(prompt, 0, decoding, 500, factor) for decoding in _BATCHES]
    for decoding in (1, 64):
        yield [_step(0, 0, decoding, 500, factor) for factor in factors]


def _questions(factors: Sequence[int]) -> list[Question]:
    return list(dict.fromkeys(question for series in _grid(factors) for question in series))


def _pairs(factors: Sequence[int]) -> Iterator[tuple[Question, Question]]:
    for series in _grid(factors):
        yield from pairwise(series)


def _ask(checked: Subject, model: StepTimeModel, question: Question) -> tuple[float, float]:
    checked.decisions += 1
    time_s, energy_j = model.mixed(*question)
    if not (isfinite(time_s) and time_s > 0):
        checked.fail(f"a step lasts {time_s} s: mixed{question}")
    if not (isfinite(energy_j) and energy_j >= 0):
        checked.fail(f"a step takes {energy_j} J: mixed{question}")
    return time_s, energy_j


def _check_power(checked: Subject, model: StepTimeModel) -> None:
    idle_w, static_w, limit_w = model.idle_w, model.static_w, model.limit_w
    if not all(isfinite(value) for value in (idle_w, static_w, limit_w, model.frontend_s)):
        checked.fail(f"powers {idle_w}, {static_w}, {limit_w} W and front end {model.frontend_s} s must be finite")
    if not (0 <= idle_w <= limit_w and 0 <= static_w <= limit_w):
        checked.fail(f"powers are out of order: idle {idle_w} W and static {static_w} W must not exceed {limit_w} W")
    if model.frontend_s < 0:
        checked.fail(f"`frontend_s` {model.frontend_s} s is negative: requests would be queued before they arrive")


def _check_lines(checked: Subject, model: StepTimeModel, factors: Sequence[int]) -> None:
    """Lines of decode steps: valid where they say, and equal to `mixed`."""
    for batch in _BATCHES:
        for factor in factors:
            for context in _CONTEXTS:
                _check_line(checked, model, batch, batch * context, factor * batch)
            _walk(checked, model, batch, factor * batch)


def _walk(checked: Subject, model: StepTimeModel, batch: int, group: int) -> None:
    """From line to line as leaps go: each begins where the one before ends, and not below its end."""
    ctx, before = batch, (0.0, 0.0)
    for _ in range(_LINES):
        line = model.decode(batch, ctx, group)
        _check_line(checked, model, batch, ctx, group)
        first, last = (
            (line.time_s + line.time_per_ctx_s * at, line.energy_j + line.energy_per_ctx_j * at)
            for at in (ctx, ceil(line.ctx_end) - 1 if isfinite(line.ctx_end) else ctx)
        )
        for name, was, now in zip(("time", "energy"), before, first, strict=True):
            if now < was * (1 - _TOLERANCE):
                checked.fail(
                    f"{name} falls where the line ends: {was:.9g} before decode({batch}, {ctx}, {group}), {now:.9g} there"
                )
        if not line.ctx_end <= batch * _CONTEXTS[-1]:
            return
        ctx, before = ceil(line.ctx_end), last


def _check_line(checked: Subject, model: StepTimeModel, batch: int, ctx: int, group: int) -> None:
    where = f"decode({batch}, {ctx}, {group})"
    line = model.decode(batch, ctx, group)
    checked.decisions += 1
    if line != model.decode(batch, ctx, group):
        checked.fail(f"is not pure: {where} gives two answers")
    if not line.ctx_end > ctx:
        checked.fail(f"the line of {where} ends at {line.ctx_end} already")
    if line.time_per_ctx_s < 0 or line.energy_per_ctx_j < 0:
        checked.fail(f"time or energy falls with the context: {where} gives {line}")
    end = max(ceil(min(line.ctx_end, 10.0 * ctx)) - 1, ctx)
    for other in sorted({ctx, ctx + 1, ctx + batch, (ctx + end) // 2, ctx + (end - ctx) * 7 // 10, end}):
        again = model.decode(batch, other, group)
        mixed = model.mixed(batch, batch, 0, 0, 0, batch, other, group)
        for name, here, there, whole in (
            ("time", line.time_s + line.time_per_ctx_s * other, again.time_s + again.time_per_ctx_s * other, mixed[0]),
            (
                "energy",
                line.energy_j + line.energy_per_ctx_j * other,
                again.energy_j + again.energy_per_ctx_j * other,
                mixed[1],
            ),
        ):
            if other < line.ctx_end and not isclose(here, there, rel_tol=_TOLERANCE, abs_tol=1e-15):
                checked.fail(f"the line of {where} does not hold at context {other}: {name} {here:.9g}, {there:.9g}")
            if not isclose(there, whole, rel_tol=_TOLERANCE, abs_tol=1e-15):
                checked.fail(
                    f"`decode` and `mixed` disagree at {where}, context {other}: {name} {there:.9g}, {whole:.9g}"
                )
