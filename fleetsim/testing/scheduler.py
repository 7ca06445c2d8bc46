"""Checker of schedulers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from math import inf, isclose
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

from fleetsim.engine.api import Scheduler, StepTimeModel
from fleetsim.engine.batch import Batch
from fleetsim.engine.gaps import GapHistogram
from fleetsim.engine.orders.order import Order, Outlook
from fleetsim.engine.replica import Replica
from fleetsim.fleet.pool import describe_pool
from fleetsim.kernel.clock import Clock
from fleetsim.scenario import schema
from fleetsim.testing.report import Config, Policy, Report
from fleetsim.workload.prefixes import Content
from fleetsim.workload.request import Request

_TOLERANCE = 1e-9
_LIMIT_S = 900.0
"""Simulated time after which a request that has not ended never will; the scenes take a few seconds."""
_VERIFY_EVERY = 16
_TIMES = ("queued_s", "first_scheduled_s", "first_token_s", "end_s", "itl_max_s")
_COUNTS = ("generated", "cached_tokens", "preemptions")


@dataclass(frozen=True, slots=True)
class _Scene:
    """What a replica has to serve: requests, and the room it has."""

    seed: int
    block_tokens: int
    capacity_blocks: int
    prefix_cache: bool
    requests: int
    spread_s: float
    """Time in which they arrive."""
    prompt_tokens: float
    output_tokens: float
    shared_tokens: int = 0
    """Length of the prompt start that groups of them share."""
    deadlines: bool = False
    """Whether some have to be answered soon, and others later or at any time."""

    def arrivals(self, reversed_outputs: bool = False) -> list[Request]:
        """New request objects, the same each time; the output lengths in reverse order if asked for."""
        rng = np.random.default_rng([self.seed, 23])
        count, room = self.requests, self.block_tokens * self.capacity_blocks
        times = np.sort(rng.random(count)) * self.spread_s
        prompts = np.clip(rng.lognormal(np.log(self.prompt_tokens), 1.0, count), 1, room // 3).astype(int)
        outputs = np.clip(rng.lognormal(np.log(self.output_tokens), 0.8, count), 1, room // 3).astype(int)
        groups = rng.integers(0, 3, count).tolist()
        if reversed_outputs:
            outputs = outputs[::-1]
        contents = [Content(((2 * group, self.shared_tokens),)) if self.shared_tokens else None for group in groups]
        requests = [
            Request(i, time_s, prompt, output, content)
            for i, (time_s, prompt, output, content) in enumerate(
                zip(times.tolist(), prompts.tolist(), outputs.tolist(), contents, strict=True)
            )
        ]
        expected = rng.lognormal(np.log(self.output_tokens), 0.8, count).tolist()
        for request, group, tokens in zip(requests, groups, expected, strict=True):
            request.tenant = request.klass = "abc"[group]
            request.priority, request.weight = group, 1.0 + group
            request.predicted_tokens = tokens
        if self.deadlines:
            for request, limit_s in zip(requests, rng.choice([0.05, 0.3, 2.0, inf], count).tolist(), strict=True):
                request.deadline_s = request.arrival_s + limit_s
        return requests


_SCENES = (
    _Scene(1, 16, 20_000, True, 60, 2.0, 300, 100),
    _Scene(2, 16, 250, True, 60, 1.5, 250, 120, shared_tokens=200),
    _Scene(3, 16, 250, False, 60, 1.5, 250, 120),
    _Scene(4, 64, 60, True, 50, 4.0, 300, 150, shared_tokens=130),
    _Scene(5, 1, 3000, True, 50, 0.5, 100, 60, shared_tokens=40),
    _Scene(6, 16, 400, True, 40, 20.0, 500, 200, shared_tokens=77),
    _Scene(7, 16, 150, True, 80, 0.0, 120, 40),
    _Scene(10, 16, 4000, True, 60, 3.0, 2500, 20, shared_tokens=500, deadlines=True),
)
"""Room enough and too little, all at once and spread out, blocks of 1 to 64 tokens, with and without shared starts or limits."""
_PEEKS = (_Scene(8, 16, 100_000, False, 60, 0.0, 700, 400), _Scene(9, 16, 400, False, 40, 0.0, 100, 600))
"""All at once, with long answers: with room for all, so that who waits does so by the scheduler's own limits, and without."""


def check_scheduler(policy: type | str, config: Config = None, *, oracle: bool = False) -> Report:
    """Try a scheduler on generated scenes, with all laws on.

    Checked are: every request ends; the engine's leaps give what step-by-step simulation gives to 1e-9 (so that what it does
    depends on the batch only, and `admits` is right); the same scene gives the same results, also where one scheduler serves two
    replicas, as it does in a pool; until the
    first answer ends, what is computed and who is preempted does not depend on the true output lengths.

    Parameters
    ----------
    policy : type or str
        The class, its registered name or ``module:Class``.
    config : BaseModel or mapping, optional
        Its parameters.
    oracle : bool
        The scheduler is meant to know the output lengths: do not mind.

    Returns
    -------
    Report
        With the time per call of `schedule`.

    Raises
    ------
    PolicyError
        If a check fails; the message says which and how.
    """
    checked = Policy("schedulers", policy, config, ["schedule", "admits"])
    timed = _Timed(checked)
    for scene in _SCENES:
        timed.inner = checked.create()
        leaps = _serve(checked, timed, scene)
        _compare(checked, leaps, _serve(checked, checked.create(), scene, step_by_step=True), _STEPS_DIFFER, _TOLERANCE)
        _compare(checked, leaps, _serve(checked, checked.create(), scene), "does otherwise the second time", 0.0)
        twin = _serve(checked, checked.create(), scene, replicas=2)
        for half in (twin[: scene.requests], twin[scene.requests :]):
            _compare(checked, leaps, half, "mixes up replicas: all of a pool share one scheduler object", 0.0)
    checked.passed("every request ends, and all laws hold")
    checked.passed("leaps give what step-by-step simulation gives")
    checked.passed("the same scene gives the same results, also with two replicas per scheduler")
    if not oracle:
        _no_peeking(checked, checked.create)
        checked.passed("order does not depend on true output lengths")
    checked.decisions = timed.calls
    return checked.report({"batches of up to 80 requests": timed.spent_ns / max(timed.calls, 1) / 1e3})


_STEPS_DIFFER = (
    "leaps and single steps disagree: its decisions must depend on the batch only, and `admits` must foresee them"
)


class _Timed:
    """Passes calls on and adds up their time."""

    def __init__(self, checked: Policy) -> None:
        self.inner: Scheduler = checked.create()
        self.calls = 0
        self.spent_ns = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)  # what schedulers may have beside

    def schedule(self, batch: Batch) -> None:
        start_ns = perf_counter_ns()
        self.inner.schedule(batch)
        self.spent_ns += perf_counter_ns() - start_ns
        self.calls += 1

    def admits(self, batch: Batch) -> bool:
        return self.inner.admits(batch)


def _serve(
    checked: Policy,
    scheduler: Scheduler,
    scene: _Scene,
    step_by_step: bool = False,
    replicas: int = 1,
    reversed_outputs: bool = False,
    order: Callable[[Outlook], Order] | None = None,
) -> list[Request]:
    """The scene's requests after they were served by each of so many replicas."""
    clock, ended = Clock(), list[Request]()
    requests: list[Request] = []
    model = _model()
    for index in range(replicas):
        queue = None if order is None else order(Outlook(model))
        batch = Batch(scene.capacity_blocks, scene.block_tokens, scene.prefix_cache, order=queue)
        replica = Replica(
            index, clock, model, scheduler, [batch], GapHistogram(), ended.append, step_by_step, _VERIFY_EVERY
        )
        arrivals = scene.arrivals(reversed_outputs)
        requests += arrivals
        for request in arrivals:
            clock.at(request.arrival_s, partial(replica.enqueue, request, request.arrival_s + model.frontend_s))
    with checked.complaining(f"fails in {scene}"):
        clock.run(_LIMIT_S)
    if len(ended) < len(requests):
        finished = {id(request) for request in ended}
        left = [request.id for request in requests if id(request) not in finished]
        checked.fail(f"{len(left)} requests have not ended after {_LIMIT_S:g} s (the first is {left[0]}) in {scene}")
    return requests


def _model() -> StepTimeModel:
    pool = schema.Pool(name="check", llm="llama-3.1-8b", accelerator="h100-sxm")
    return describe_pool(pool, 0, Path()).model


def _compare(checked: Policy, ours: Sequence[Request], others: Sequence[Request], what: str, tolerance: float) -> None:
    for a, b in zip(ours, others, strict=True):
        for name in _COUNTS:
            if getattr(a, name) != getattr(b, name):
                checked.fail(f"{what} (request {a.id}: {name} {getattr(a, name)} and {getattr(b, name)})")
        for name in _TIMES:
            x, y = getattr(a, name), getattr(b, name)
            if not isclose(x, y, rel_tol=tolerance, abs_tol=tolerance * 1e-3):
                checked.fail(f"{what} (request {a.id}: {name} {x!r} and {y!r})")


def _no_peeking(
    checked: Policy, scheduler: Callable[[], Scheduler], order: Callable[[Outlook], Order] | None = None
) -> None:
    """Law 7: until the first request ends, nobody can know who has a long answer, so other lengths must give the same plans."""
    for scene in _PEEKS:
        courses = []
        first_end_s = inf
        for reversed_outputs in (False, True):
            watched = _Watched(scheduler())
            requests = _serve(checked, watched, scene, reversed_outputs=reversed_outputs, order=order)
            first_end_s = min(first_end_s, *(request.end_s for request in requests))
            courses.append(watched.plans)
        ours, others = ([plan for plan in plans if plan[0] < first_end_s] for plans in courses)
        if ours != others:
            a, b = next((a, b) for a, b in zip_longest(ours, others) if a != b)
            checked.fail(
                f"order depends on the true output lengths, which nobody knows: {_told(a)}, or with the same requests and "
                f"other answers to come, {_told(b)} (oracle=True allows it)"
            )


_Plan = tuple[float, tuple[tuple[int, int], ...], tuple[int, ...]]
"""Time of a step, prompt tokens that it computes by request, and requests that were preempted for it."""


class _Watched:
    """Passes calls on and notes what was planned."""

    def __init__(self, inner: Scheduler) -> None:
        self.inner = inner
        self.plans: list[_Plan] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def schedule(self, batch: Batch) -> None:
        self.inner.schedule(batch)
        chunks = tuple((request.id, tokens) for request, tokens in batch.chunks)
        preempted = tuple(request.id for request in batch.preempted)
        if chunks or preempted:
            self.plans.append((batch.now_s, chunks, preempted))

    def admits(self, batch: Batch) -> bool:
        return self.inner.admits(batch)


def _told(plan: _Plan | None) -> str:
    if plan is None:
        return "it plans nothing more"
    time_s, chunks, preempted = plan
    what = [f"computes prompts of requests {[number for number, _ in chunks]}"] if chunks else []
    what += [f"preempts {list(preempted)}"] if preempted else []
    return f"at {time_s:.4g} s it {' and '.join(what)}"
