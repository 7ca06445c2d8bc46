"""Checker of autoscalers."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

from fleetsim.fleet.fleet import Fleet
from fleetsim.kernel.clock import Clock
from fleetsim.kernel.streams import Streams
from fleetsim.scaling.api import PoolState
from fleetsim.scaling.future import Future, Known
from fleetsim.scenario.schema import Scenario
from fleetsim.testing.report import Config, Policy, Report
from fleetsim.workload.request import FINISHED, Request

_REQUESTS = 240
_PERIODS = 40
"""Periods of the autoscaler over which requests arrive."""
_PATIENCE = 400
"""Periods after which all requests have long ended, unless nobody is there for them."""
_POOLS = ((0, 1, 3), (1, 2, 6))
"""Fewest replicas, those at the start, and most."""
_COSTS = (4, 64)
"""Most replicas at which its cost is measured."""
_TOLERANCE = 1e-9


def check_autoscaler(policy: type | str, config: Config = None) -> Report:
    """Try an autoscaler on pools of 0 to 6 replicas under bursts with pauses, with all laws on.

    The load is the same per period of the autoscaler, whatever that is. Checked are: its period is a time; every answer is a whole
    number that is not negative, and the pool stays within its bounds; it answers and changes nothing itself; every request ends,
    also where the pool may have no replica; leaps give what step-by-step simulation gives to 1e-9, so that it depends on nothing
    but what it sees; the same seed gives the same answers, with another instance in the same process too; until the first answer
    ends, nothing depends on the true output lengths, unless its class says `knows_future`.

    Parameters
    ----------
    policy : type or str
        The class, its registered name or ``module:Class``.
    config : BaseModel or mapping, optional
        Its parameters.

    Returns
    -------
    Report
        With the time per tick at up to 4 and up to 64 replicas.

    Raises
    ------
    PolicyError
        If a check fails; the message says which and how.
    """
    checked = Policy("autoscalers", policy, config, ["tick"])
    for bounds in _POOLS:
        first = _Trial(checked, bounds, watch=True)
        where = f"a pool of {bounds[0]} to {bounds[2]} replicas"
        if first.answers != _Trial(checked, bounds, beside=True).answers:
            checked.fail(f"answers otherwise with the same seed for {where}: draw only from the given `rng`")
        steps = _Trial(checked, bounds, step_by_step=True)
        if first.answers != steps.answers or not first.ends_like(steps):
            checked.fail(f"for {where} answers or ends are others in leaps than step by step")
        other = _Trial(checked, bounds, outputs=1)
        until_s = min(first.first_end_s, other.first_end_s)
        if first.answers_until(until_s) != other.answers_until(until_s) and not knows_future(checked):
            checked.fail("answers depend on true output lengths, which nobody knows")
    checked.passed("every answer is a number of replicas, and the pool stays within its bounds")
    checked.passed("nothing is changed by the policy itself")
    checked.passed("every request ends, and all laws hold")
    checked.passed("the same seed gives the same answers")
    checked.passed("leaps give what step-by-step simulation gives")
    if not knows_future(checked):
        checked.passed("answers do not depend on true output lengths")
    costs = {f"up to {most} replicas": _Trial(checked, (1, most // 2, most)).us_per_tick for most in _COSTS}
    return checked.report(costs)


def knows_future(checked: Policy) -> bool:
    """Whether the policy says openly that it knows what will come."""
    return bool(getattr(checked.policy, "knows_future", False))


class _Trial:
    """One run of an autoscaler on a pool; what it answered, when requests ended, and what its ticks took."""

    def __init__(
        self,
        checked: Policy,
        bounds: tuple[int, int, int],
        step_by_step: bool = False,
        outputs: int = 0,
        watch: bool = False,
        beside: bool = False,
    ) -> None:
        self._checked = checked
        self._watch = watch
        self._bounds = bounds
        self._spent_ns = 0
        self._clock = Clock()
        self.answers: list[tuple[float, int, int | None]] = []
        self.ended: list[Request] = []
        self.period_s = _period_s(checked, _alone(checked))
        scenario = _scenario(bounds, self.period_s, step_by_step)
        fleet = Fleet(scenario, Path(), self._clock, Streams(1), self.ended.append, 1)
        assert fleet.lifecycle is not None
        scaling = fleet.lifecycle.scalings[0]
        self._state = scaling.state
        if knows_future(checked):
            self._state.future = Known(Future(_Arrivals(bounds[2], outputs, self.period_s).requests()), "llama-3.1-8b")
        self._policy = checked.create(np.random.default_rng(5), self._state)
        if beside:
            checked.create(np.random.default_rng(6), self._state)
        scaling.use(self)
        with checked.complaining("its pool breaks"):
            fleet.feed(_Arrivals(bounds[2], outputs, self.period_s))
            self._clock.run(_PATIENCE * self.period_s)
            if fleet.in_flight:
                checked.fail(f"{fleet.in_flight} requests never end: it has nobody for them (bounds {bounds})")
            fleet.verify(self._clock.now_s)
        checked.decisions += len(self.answers)

    @property
    def max_seqs(self) -> int | None:
        """Requests that may run at a time, if the policy says so."""
        seats: int | None = getattr(self._policy, "max_seqs", None)
        return seats

    @property
    def us_per_tick(self) -> float:
        """Mean time of a tick [µs]."""
        return self._spent_ns / max(len(self.answers), 1) / 1e3

    @property
    def first_end_s(self) -> float:
        """When the first request ended."""
        return min((request.end_s for request in self.ended), default=inf)

    def answers_until(self, time_s: float) -> list[tuple[float, int, int | None]]:
        """Answers before a time."""
        return [answer for answer in self.answers if answer[0] < time_s]

    def ends_like(self, other: _Trial) -> bool:
        """Whether requests end at the same replicas and times."""
        mine, theirs = (sorted(trial.ended, key=lambda request: request.id) for trial in (self, other))
        same = [(r.id, r.status, r.replica) for r in mine] == [(r.id, r.status, r.replica) for r in theirs]
        times, others = (np.array([r.end_s for r in each if r.status == FINISHED]) for each in (mine, theirs))
        return same and bool(np.allclose(times, others, rtol=_TOLERANCE, atol=1e-12))

    def tick(self) -> int:
        """Ask the policy, and look at its answer."""
        state, bounds = self._state, self._bounds
        if not bounds[0] <= state.ready + state.starting + state.draining <= bounds[2]:
            self._checked.fail(f"a pool of {bounds[0]} to {bounds[2]} replicas is out of its bounds")
        before = _facts(state) if self._watch else None
        with self._checked.complaining("`tick` failed"):
            start_ns = perf_counter_ns()
            wanted: Any = self._policy.tick()
            self._spent_ns += perf_counter_ns() - start_ns
        if before is not None and before != _facts(state):
            self._checked.fail("`tick` changes the state of the pool; an autoscaler only answers")
        if type(wanted) is not int or wanted < 0:
            self._checked.fail(f"`tick` answered {wanted!r}: expected the number of replicas wanted")
        self.answers.append((self._clock.now_s, wanted, self.max_seqs))
        found: int = wanted
        return found


class _Arrivals:
    """Requests in bursts with pauses; `outputs` changes output lengths only."""

    skipped_rows = 0

    def __init__(self, replicas: int, outputs: int, period_s: float) -> None:
        rng = np.random.default_rng([replicas, 31])
        gaps = rng.standard_gamma(0.15, _REQUESTS)
        self._arrival_s = (_PERIODS * period_s / gaps.sum() * np.cumsum(gaps)).tolist()
        self._prompts = np.clip(rng.lognormal(5.0, 1.0, _REQUESTS), 1, 900).astype(int).tolist()
        lengths = np.random.default_rng([replicas, 32, outputs]).lognormal(6.0, 0.5, _REQUESTS)
        self._outputs = np.clip(lengths, 250, 1200).astype(int).tolist()

    def requests(self) -> Iterator[Request]:
        """All of them."""
        for i, time_s in enumerate(self._arrival_s):
            yield Request(i, time_s, self._prompts[i], self._outputs[i])

    def released_by(self, request: Request, now_s: float) -> None:
        """Nothing."""


def _scenario(bounds: tuple[int, int, int], period_s: float, step_by_step: bool) -> Scenario:
    """A pool so slow that requests take a few periods."""
    least, start, most = bounds

    def periods(count: float) -> str:
        return f"{count * period_s!r} s"

    step_time = {
        "model": "affine",
        "step": periods(5e-3),
        "prompt_token": periods(1e-4),
        "prompt_pair": periods(0.0),
        "context_token": periods(1e-7),
        "sequence": periods(2e-4),
    }
    engine = {
        "kind": "generic",
        "step_by_step": step_by_step,
        "prefix_cache": False,
        "scheduler": {"policy": "vllm-v1", "max_batched_tokens": 256, "max_seqs": 24},
        "kv": {"block_tokens": 16, "capacity_tokens": 3200},
        "step_time": step_time,
    }
    pool = {
        "name": "main",
        "llm": "llama-3.1-8b",
        "accelerator": "h100-sxm",
        "replicas": start,
        "min_replicas": least,
        "max_replicas": most,
        "autoscaler": "hpa",
        "startup": {"weights": "none", "init": periods(0.7)},
        "engine": engine,
    }
    workload = {"kind": "synthetic", "requests": 1, "arrivals": {"process": "poisson", "rate": "1 req/s"}}
    lengths = {"distribution": "fixed", "value": 1}
    return Scenario.model_validate(
        {
            "schema": 1,
            "name": "check",
            "workload": {**workload, "prompt_tokens": lengths, "output_tokens": lengths},
            "slo": {"ttft": periods(2.0), "tpot": periods(0.02)},
            "pools": [pool],
            "gateway": {"router": "round-robin"},
        }
    )


def _alone(checked: Policy) -> Any:
    """The policy, built for a pool that does nothing."""
    state = PoolState(
        "main", "mixed", 1, 2, 1, 24, 3200, 1.0, lambda tokens: 1e-4 * tokens, lambda n, c: 1e-4 * n + 1e-7 * c
    )
    return checked.create(np.random.default_rng(5), state)


def _period_s(checked: Policy, policy: Any) -> float:
    period_s = getattr(policy, "period_s", None)
    if not (isinstance(period_s, float | int) and 0.0 < period_s < inf):
        checked.fail(f"its `period_s` is {period_s!r}: expected the seconds between two ticks")
    return float(period_s)


def _facts(state: PoolState) -> list[Any]:
    """All that a policy must leave as it is."""
    facts = [(name, value) for name, value in vars(state).items() if name != "window"]
    return [*facts, *((name, getattr(state.window, name)) for name in state.window.__slots__)]
