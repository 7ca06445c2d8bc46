"""Checker of rebalancers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

from fleetsim.fleet.fleet import Fleet
from fleetsim.fleet.rebalance import Rebalancing, state_of
from fleetsim.kernel.clock import Clock
from fleetsim.kernel.streams import Streams
from fleetsim.rebalancing.api import Move, ReplicaState
from fleetsim.scenario.schema import Scenario
from fleetsim.testing.report import Config, Policy, Report
from fleetsim.workload.request import FINISHED, Request

_REQUESTS = 150
_FLEETS = (1, 2, 5)
"""Numbers of replicas that a rebalancer must cope with."""
_UNTIL_S = 3000.0
"""By then all requests have long ended unless they are moved for ever."""
_TOLERANCE = 1e-9
_COSTS = (4, 64)
"""Numbers of replicas at which its cost is measured."""


def check_rebalancer(policy: type | str, config: Config = None) -> Report:
    """Try a rebalancer on fleets of 1 to 5 replicas whose caches run full, with all laws on.

    Checked are: its period is a time; every move names a request and two different replicas; it answers and changes nothing
    itself; every request ends; leaps give what step-by-step simulation gives to 1e-9, so that it depends on nothing but what it
    sees; the same seed gives the same moves, with another instance in the same process too; until the first answer ends, nothing
    depends on the true output lengths.

    Parameters
    ----------
    policy : type or str
        The class, its registered name or ``module:Class``.
    config : BaseModel or mapping, optional
        Its parameters.

    Returns
    -------
    Report
        With the time per tick at 4 and 64 replicas.

    Raises
    ------
    PolicyError
        If a check fails; the message says which and how.
    """
    checked = Policy("rebalancers", policy, config, ["tick"])
    for replicas in _FLEETS:
        first = _Trial(checked, replicas, watch=True)
        if first.moves != _Trial(checked, replicas, beside=True).moves:
            checked.fail(f"moves otherwise with the same seed on {replicas} replicas: draw only from the given `rng`")
        steps = _Trial(checked, replicas, step_by_step=True)
        if not first.ends_like(steps):
            checked.fail(f"on {replicas} replicas requests end at other times in leaps than step by step")
        other = _Trial(checked, replicas, outputs=1)
        until_s = min(first.first_end_s, other.first_end_s)
        if first.moves_until(until_s) != other.moves_until(until_s):
            checked.fail("moves depend on true output lengths, which nobody knows")
    checked.passed("every move names a request and two replicas, and nothing is changed by the policy itself")
    checked.passed("every request ends, and all laws hold")
    checked.passed("the same seed gives the same moves")
    checked.passed("leaps give what step-by-step simulation gives")
    checked.passed("moves do not depend on true output lengths")
    costs = {f"{n} replicas": _Trial(checked, n).us_per_tick for n in _COSTS}
    return checked.report(costs)


class _Trial:
    """One run of a rebalancer on a fleet; what it moved, when requests ended, and what its ticks took."""

    def __init__(
        self,
        checked: Policy,
        replicas: int,
        step_by_step: bool = False,
        outputs: int = 0,
        watch: bool = False,
        beside: bool = False,
    ) -> None:
        self._checked = checked
        self._watch = watch
        self._replicas = replicas
        self._spent_ns = 0
        self._ticks = 0
        self._clock = Clock()
        self.moves: list[tuple[float, Move]] = []
        self.ended: list[Request] = []
        fleet = Fleet(_scenario(replicas, step_by_step), Path(), self._clock, Streams(1), self.ended.append, 1)
        moving = Rebalancing(fleet.replicas, fleet)
        self._states = [state_of(replica, fleet) for replica in fleet.replicas]
        self._policy = checked.create(np.random.default_rng(5), self._states, moving)
        if beside:
            checked.create(np.random.default_rng(6), self._states, moving)
        self.period_s = _period_s(checked, self._policy)
        moving.policy = self
        fleet.rebalance(moving)
        with checked.complaining(f"a fleet of {replicas} replicas breaks"):
            fleet.feed(_Arrivals(replicas, outputs))
            self._clock.run(_UNTIL_S)
            if fleet.in_flight:
                checked.fail(f"{fleet.in_flight} requests never end on {replicas} replicas: they are moved for ever")
            fleet.verify(self._clock.now_s)
        checked.decisions += self._ticks

    @property
    def us_per_tick(self) -> float:
        """Mean time of a tick [µs]."""
        return self._spent_ns / max(self._ticks, 1) / 1e3

    @property
    def first_end_s(self) -> float:
        """When the first request ended."""
        return min((request.end_s for request in self.ended), default=inf)

    def moves_until(self, time_s: float) -> list[tuple[float, Move]]:
        """Moves asked for before a time."""
        return [(at_s, move) for at_s, move in self.moves if at_s < time_s]

    def ends_like(self, other: _Trial) -> bool:
        """Whether requests end at the same replicas and times."""
        mine, theirs = (sorted(trial.ended, key=lambda request: request.id) for trial in (self, other))
        same = [(r.id, r.status, r.replica) for r in mine] == [(r.id, r.status, r.replica) for r in theirs]
        times, others = (np.array([r.end_s for r in each if r.status == FINISHED]) for each in (mine, theirs))
        return same and bool(np.allclose(times, others, rtol=_TOLERANCE, atol=1e-12))

    def tick(self) -> Sequence[Move]:
        """Ask the policy, and look at its answer."""
        before = _facts(self._states) if self._watch else None
        self._ticks += 1
        with self._checked.complaining("`tick` failed"):
            start_ns = perf_counter_ns()
            moves: Any = self._policy.tick()
            self._spent_ns += perf_counter_ns() - start_ns
        if before is not None and before != _facts(self._states):
            self._checked.fail("`tick` changes replicas or requests; a rebalancer only answers")
        for move in moves:
            if not isinstance(move, Move):
                self._checked.fail(f"`tick` answered {move!r}: expected `MoveQueued`, `Migrate`, `Borrow` or `Recall`")
            ends = (move.source, move.target)
            if not all(type(each) is int and 0 <= each < self._replicas for each in ends) or len(set(ends)) == 1:
                self._checked.fail(f"`tick` answered {move}: there are replicas 0 to {self._replicas - 1}")
        self.moves += [(self._clock.now_s, move) for move in moves]
        found: Sequence[Move] = moves
        return found


class _Arrivals:
    """Requests in bursts; `outputs` changes output lengths only."""

    skipped_rows = 0

    def __init__(self, replicas: int, outputs: int) -> None:
        rng = np.random.default_rng([replicas, 23])
        self._arrival_s = np.cumsum(rng.standard_gamma(0.3, _REQUESTS)).tolist()
        self._arrival_s = [0.25 * time_s / replicas for time_s in self._arrival_s]
        self._prompts = np.clip(rng.lognormal(5.0, 1.0, _REQUESTS), 1, 900).astype(int).tolist()
        lengths = np.random.default_rng([replicas, 24, outputs]).lognormal(4.5, 1.0, _REQUESTS)
        self._outputs = np.clip(lengths, 2, 1200).astype(int).tolist()

    def requests(self) -> Iterator[Request]:
        """All of them."""
        for i, time_s in enumerate(self._arrival_s):
            yield Request(i, time_s, self._prompts[i], self._outputs[i])

    def released_by(self, request: Request, now_s: float) -> None:
        """Nothing."""


def _scenario(replicas: int, step_by_step: bool) -> Scenario:
    engine = {
        "kind": "generic",
        "step_by_step": step_by_step,
        "prefix_cache": False,
        "scheduler": {"policy": "vllm-v1", "max_batched_tokens": 256, "max_seqs": 24},
        "kv": {"block_tokens": 16, "capacity_tokens": 3200},
    }
    pool = {
        "name": "main",
        "llm": "llama-3.1-8b",
        "accelerator": "h100-sxm",
        "replicas": replicas,
        "engine": engine,
    }
    workload = {"kind": "synthetic", "requests": 1, "arrivals": {"process": "poisson", "rate": "1 req/s"}}
    lengths = {"distribution": "fixed", "value": 1}
    return Scenario.model_validate(
        {
            "schema": 1,
            "name": "check",
            "workload": {**workload, "prompt_tokens": lengths, "output_tokens": lengths},
            "pools": [pool],
            "gateway": {"router": "round-robin"},
        }
    )


def _period_s(checked: Policy, policy: Any) -> float:
    period_s = getattr(policy, "period_s", None)
    if not (isinstance(period_s, float | int) and 0.0 < period_s < inf):
        checked.fail(f"its `period_s` is {period_s!r}: expected the seconds between two ticks")
    return float(period_s)


def _facts(states: Sequence[ReplicaState]) -> list[Any]:
    """All that a policy must leave as it is."""
    return [
        (
            state.used_blocks,
            state.preemptions,
            [(r.id, r.context_tokens, r.decoding, r.remote_blocks, r.priority, r.deadline_s) for r in state.running()],
            [(r.id, r.context_tokens, r.priority, r.deadline_s) for r in state.waiting()],
        )
        for state in states
    ]
