"""Checker of rebalancers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fleetsim.fleet.rebalance import Rebalancing, state_of
from fleetsim.rebalancing.api import Move, ReplicaState
from fleetsim.testing.report import Config, Policy, Report
from fleetsim.testing.ticking import Trial, engine, period_of, scenario
from fleetsim.workload.request import Request

_REQUESTS = 150
_FLEETS = (1, 2, 5)
"""Numbers of replicas that a rebalancer must cope with."""
_UNTIL_S = 3000.0
"""By then all requests have long ended unless they are moved for ever."""
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
        if first.answers != _Trial(checked, replicas, beside=True).answers:
            checked.fail(f"moves otherwise with the same seed on {replicas} replicas: draw only from the given `rng`")
        steps = _Trial(checked, replicas, step_by_step=True)
        if not first.ends_like(steps):
            checked.fail(f"on {replicas} replicas requests end at other times in leaps than step by step")
        other = _Trial(checked, replicas, outputs=1)
        if first.knows_lengths(other):
            checked.fail("moves depend on true output lengths, which nobody knows")
    checked.passed("every move names a request and two replicas, and nothing is changed by the policy itself")
    checked.passed("every request ends, and all laws hold")
    checked.passed("the same seed gives the same moves")
    checked.passed("leaps give what step-by-step simulation gives")
    checked.passed("moves do not depend on true output lengths")
    costs = {f"{n} replicas": _Trial(checked, n).us_per_tick for n in _COSTS}
    return checked.report(costs)


class _Trial(Trial[Move]):
    """One run of a rebalancer on a fleet; its answers are the single moves."""

    def __init__(
        self,
        checked: Policy,
        replicas: int,
        step_by_step: bool = False,
        outputs: int = 0,
        watch: bool = False,
        beside: bool = False,
    ) -> None:
        super().__init__(checked, watch)
        self._replicas = replicas
        pool = {"name": "main", "replicas": replicas, "engine": engine(step_by_step)}
        fleet = self._fleet(scenario([pool], "round-robin"))
        moving = Rebalancing(fleet.replicas, fleet)
        self._states = [state_of(replica, fleet) for replica in fleet.replicas]
        self._policy = checked.create(np.random.default_rng(5), self._states, moving)
        if beside:
            checked.create(np.random.default_rng(6), self._states, moving)
        self.period_s = period_of(checked, self._policy)
        moving.policy = self
        fleet.rebalance(moving)
        breaks, never = f"a fleet of {replicas} replicas breaks", f" on {replicas} replicas: they are moved for ever"
        self._simulate(fleet, _Arrivals(replicas, outputs), _UNTIL_S, breaks, never)

    def tick(self) -> Sequence[Move]:
        """Ask the policy, and look at its answer."""
        changes = "replicas or requests; a rebalancer only answers"
        moves: Sequence[Move] = self._ask(self._policy.tick, lambda: _facts(self._states), changes)
        for move in moves:
            if not isinstance(move, Move):
                self._checked.fail(f"`tick` answered {move!r}: expected `MoveQueued`, `Migrate`, `Borrow` or `Recall`")
            ends = (move.source, move.target)
            if not all(type(each) is int and 0 <= each < self._replicas for each in ends) or len(set(ends)) == 1:
                self._checked.fail(f"`tick` answered {move}: there are replicas 0 to {self._replicas - 1}")
        self.answers += [(self._clock.now_s, move) for move in moves]
        return moves


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
