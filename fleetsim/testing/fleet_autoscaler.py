"""Checker of autoscalers of whole fleets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple, replace
from math import inf
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

from fleetsim.elasticity.api import Action, Convert, FleetState, Scale, Seat
from fleetsim.fleet.fleet import Fleet
from fleetsim.kernel.clock import Clock
from fleetsim.kernel.streams import Streams
from fleetsim.scenario.schema import Scenario
from fleetsim.testing.report import Config, Policy, Report
from fleetsim.workload.request import FINISHED, Request

_REQUESTS = 200
_PERIODS = 40
"""Periods of the autoscaler over which requests arrive."""
_PATIENCE = 600
"""Periods after which all requests have long ended, unless nobody is there for them."""
_TOLERANCE = 1e-9
_LIKE_ROLES = {"prefill": "prefill", "decode": "decode"}
"""Pools of these names have these roles."""


def check_fleet_autoscaler(
    policy: type | str, config: Config = None, pools: Sequence[str] = ("main", "other"), most: int = 4
) -> Report:
    """Try an autoscaler of a fleet on these pools under bursts with pauses, with all laws on.

    Each pool has one replica at the start and up to `most`, replicas of each may turn into those of any other (handing requests
    over where roles are the same), and a third of the requests are of the class ``batch``. The load is the same per period of the
    autoscaler, whatever that is. Checked are: its period is a time; it answers with actions that name pools, conversions and
    replicas that there are; pools stay within their bounds; it changes nothing itself; every request ends; leaps give what
    step-by-step simulation gives to 1e-9; the same seed gives the same answers, with another instance in the same process too;
    until the first answer ends, nothing depends on the true output lengths.

    Parameters
    ----------
    policy : type or str
        The class, its registered name or ``module:Class``.
    config : BaseModel or mapping, optional
        Its parameters.
    pools : sequence of str
        Names of the pools; those called ``prefill`` and ``decode`` have that role.
    most : int
        Most replicas of each.

    Returns
    -------
    Report
        With the time per tick.

    Raises
    ------
    PolicyError
        If a check fails; the message says which and how.
    """
    checked = Policy("fleet_autoscalers", policy, config, ["tick"])
    first = _Trial(checked, pools, most, watch=True)
    if first.answers != _Trial(checked, pools, most, beside=True).answers:
        checked.fail("answers otherwise with the same seed: draw only from the given `rng`")
    steps = _Trial(checked, pools, most, step_by_step=True)
    if first.answers != steps.answers or not first.ends_like(steps):
        checked.fail("answers or ends are others in leaps than step by step")
    other = _Trial(checked, pools, most, outputs=1)
    until_s = min(first.first_end_s, other.first_end_s)
    if first.answers_until(until_s) != other.answers_until(until_s):
        checked.fail("answers depend on true output lengths, which nobody knows")
    checked.passed("every answer is a list of actions on what there is, and pools stay within their bounds")
    checked.passed("nothing is changed by the policy itself")
    checked.passed("every request ends, and all laws hold")
    checked.passed("the same seed gives the same answers")
    checked.passed("leaps give what step-by-step simulation gives")
    checked.passed("answers do not depend on true output lengths")
    return checked.report({f"{len(pools)} pools of up to {most} replicas": first.us_per_tick})


class _Trial:
    """One run of an autoscaler on a fleet; what it answered, when requests ended, and what its ticks took."""

    def __init__(
        self,
        checked: Policy,
        pools: Sequence[str],
        most: int,
        step_by_step: bool = False,
        outputs: int = 0,
        watch: bool = False,
        beside: bool = False,
    ) -> None:
        self._checked = checked
        self._watch = watch
        self._most = most
        self._spent_ns = 0
        self._clock = Clock()
        self.answers: list[tuple[float, tuple[Action, ...]]] = []
        self.ended: list[Request] = []
        # the period is known once the policy is built, which needs a fleet, whose load goes by the period
        idle = _fleet(_scenario(pools, most, 1.0, step_by_step), Clock(), [])
        assert idle.lifecycle is not None
        assert idle.lifecycle.steering is not None
        alone = checked.create(np.random.default_rng(5), idle.lifecycle.steering.state)
        self.period_s = _period_s(checked, alone)
        fleet = _fleet(_scenario(pools, most, self.period_s, step_by_step), self._clock, self.ended)
        assert fleet.lifecycle is not None
        steering = fleet.lifecycle.steering
        assert steering is not None
        self._state = steering.state
        self._policy = checked.create(np.random.default_rng(5), self._state)
        if beside:
            checked.create(np.random.default_rng(6), self._state)
        steering.use(self)
        with checked.complaining("its fleet breaks"):
            fleet.feed(_Arrivals(outputs, self.period_s))
            self._clock.run(_PATIENCE * self.period_s)
            if fleet.in_flight:
                checked.fail(f"{fleet.in_flight} requests never end: it has nobody for them")
            fleet.verify(self._clock.now_s)
        checked.decisions += len(self.answers)

    @property
    def us_per_tick(self) -> float:
        """Mean time of a tick [µs]."""
        return self._spent_ns / max(len(self.answers), 1) / 1e3

    @property
    def first_end_s(self) -> float:
        """When the first request ended."""
        return min((request.end_s for request in self.ended), default=inf)

    def answers_until(self, time_s: float) -> list[tuple[float, tuple[Action, ...]]]:
        """Answers before a time."""
        return [answer for answer in self.answers if answer[0] < time_s]

    def ends_like(self, other: _Trial) -> bool:
        """Whether requests end at the same replicas and times."""
        mine, theirs = (sorted(trial.ended, key=lambda request: request.id) for trial in (self, other))
        same = [(r.id, r.status, r.replica) for r in mine] == [(r.id, r.status, r.replica) for r in theirs]
        times, others = (np.array([r.end_s for r in each if r.status == FINISHED]) for each in (mine, theirs))
        return same and bool(np.allclose(times, others, rtol=_TOLERANCE, atol=1e-12))

    def tick(self) -> Sequence[Action]:
        """Ask the policy, and look at its answer."""
        state = self._state
        for name, pool in state.pools.items():
            if pool.ready + pool.starting > self._most:
                self._checked.fail(f"the pool {name} of up to {self._most} replicas is out of its bounds")
        before = _facts(state) if self._watch else None
        with self._checked.complaining("`tick` failed"):
            start_ns = perf_counter_ns()
            answer: Any = self._policy.tick()
            self._spent_ns += perf_counter_ns() - start_ns
        if before is not None and before != _facts(state):
            self._checked.fail("`tick` changes the state of the fleet; an autoscaler only answers")
        if not isinstance(answer, Sequence):
            self._checked.fail(f"`tick` answered {answer!r}: expected a list of actions")
        for action in answer:
            self._look_at(action)
        # times of the same tick may differ in the last bit
        self.answers.append((round(self._clock.now_s / self.period_s, 6) * self.period_s, tuple(answer)))
        found: Sequence[Action] = answer
        return found

    def _look_at(self, action: Any) -> None:
        state, known = self._state, True
        if isinstance(action, Scale):
            known = action.pool in state.pools and type(action.replicas) is int
        elif isinstance(action, Convert):
            known = (action.source, action.target) in state.ways and type(action.replicas) is int
        elif isinstance(action, Seat):
            there = {replica.number for replicas in state.replicas.values() for replica in replicas}
            known = action.replica in there and type(action.max_seqs) is int
        else:
            known = False
        if not known:
            self._checked.fail(f"`tick` answered {action!r}: expected Scale, Convert or Seat of what there is")


def _fleet(scenario: Scenario, clock: Clock, ended: list[Request]) -> Fleet:
    return Fleet(scenario, Path(), clock, Streams(1), ended.append, 1)


class _Arrivals:
    """Requests in bursts with pauses; `outputs` changes output lengths only."""

    skipped_rows = 0

    def __init__(self, outputs: int, period_s: float) -> None:
        rng = np.random.default_rng(31)
        gaps = rng.standard_gamma(0.15, _REQUESTS)
        self._arrival_s = (_PERIODS * period_s / gaps.sum() * np.cumsum(gaps)).tolist()
        self._prompts = np.clip(rng.lognormal(5.0, 1.0, _REQUESTS), 1, 900).astype(int).tolist()
        lengths = np.random.default_rng([32, outputs]).lognormal(6.0, 0.5, _REQUESTS)
        self._outputs = np.clip(lengths, 250, 1200).astype(int).tolist()

    def requests(self) -> Iterator[Request]:
        """All of them."""
        for i, time_s in enumerate(self._arrival_s):
            klass = None if i % 3 else "batch"
            yield Request(i, time_s, self._prompts[i], self._outputs[i], None, -1, 0, klass)

    def released_by(self, request: Request, now_s: float) -> None:
        """Nothing."""


def _scenario(names: Sequence[str], most: int, period_s: float, step_by_step: bool) -> Scenario:
    """Pools so slow that requests take a few periods."""

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
    roles = {name: _LIKE_ROLES.get(name, "mixed") for name in names}
    pools = [
        {
            "name": name,
            "llm": "llama-3.1-8b",
            "accelerator": "h100-sxm",
            "role": role,
            "min_replicas": 1 if role != "mixed" else 0,
            "max_replicas": most,
            "startup": {"weights": "none", "init": periods(0.7)},
            "engine": engine,
        }
        for name, role in roles.items()
    ]
    ways = [
        {
            "source": one,
            "target": other,
            "requests": "hand-over" if roles[one] == roles[other] else "wait",
            "init": periods(0.4),
        }
        for one in names
        for other in names
        if one != other
    ]
    workload = {"kind": "synthetic", "requests": 1, "arrivals": {"process": "poisson", "rate": "1 req/s"}}
    lengths = {"distribution": "fixed", "value": 1}
    return Scenario.model_validate(
        {
            "schema": 1,
            "name": "check",
            "workload": {**workload, "prompt_tokens": lengths, "output_tokens": lengths},
            "slo": {
                "ttft": periods(2.0),
                "tpot": periods(0.02),
                "classes": {"batch": {"ttft": periods(30.0)}},
            },
            "autoscaler": {"policy": "timetable", "changes": [{"at_s": 0.0, "pool": names[0], "replicas": 1}]},
            "conversions": ways,
            "pools": pools,
            "gateway": {"router": "chiron" if set(roles.values()) == {"mixed"} else "least-outstanding"},
        }
    )


def _period_s(checked: Policy, policy: Any) -> float:
    period_s = getattr(policy, "period_s", None)
    if not (isinstance(period_s, float | int) and 0.0 < period_s < inf):
        checked.fail(f"its `period_s` is {period_s!r}: expected the seconds between two ticks")
    return float(period_s)


def _facts(state: FleetState) -> list[Any]:
    """All that a policy must leave as it is."""
    facts: list[Any] = [state.now_s, state.elapsed_s, list(state.held), dict(state.limits)]
    facts += [replace(way) for way in state.ways.values()]
    for name, pool in state.pools.items():
        facts += [(key, value) for key, value in vars(pool).items() if key != "window"]
        facts += [getattr(pool.window, key) for key in pool.window.__slots__]
        facts += [astuple(replica) for replica in state.replicas[name]]
    return facts
