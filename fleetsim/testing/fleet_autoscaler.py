"""Checker of autoscalers of whole fleets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np

from fleetsim.elasticity.api import Action, Convert, FleetState, Scale, Seat
from fleetsim.fleet.fleet import Fleet
from fleetsim.kernel.clock import Clock
from fleetsim.kernel.streams import Streams
from fleetsim.scenario.schema import Scenario
from fleetsim.testing.report import Config, Policy, Report
from fleetsim.testing.ticking import Bursts, Trial, period_of, scenario, seconds, slow_engine
from fleetsim.workload.request import Request

_REQUESTS = 200
_PATIENCE = 600
"""Periods after which all requests have long ended, unless nobody is there for them."""
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
    if first.knows_lengths(other):
        checked.fail("answers depend on true output lengths, which nobody knows")
    checked.passed("every answer is a list of actions on what there is, and pools stay within their bounds")
    checked.passed("nothing is changed by the policy itself")
    checked.passed("every request ends, and all laws hold")
    checked.passed("the same seed gives the same answers")
    checked.passed("leaps give what step-by-step simulation gives")
    checked.passed("answers do not depend on true output lengths")
    return checked.report({f"{len(pools)} pools of up to {most} replicas": first.us_per_tick})


class _Trial(Trial[tuple[Action, ...]]):
    """One run of an autoscaler on a fleet."""

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
        super().__init__(checked, watch)
        self._most = most
        # the period is known once the policy is built, which needs a fleet, whose load goes by the period
        self.period_s = period_of(checked, _policy(checked, _state(_idle(_scenario(pools, most, 1.0, step_by_step)))))
        fleet = self._fleet(_scenario(pools, most, self.period_s, step_by_step))
        assert fleet.lifecycle is not None
        steering = fleet.lifecycle.steering
        assert steering is not None
        self._state = steering.state
        self._policy = _policy(checked, self._state)
        if beside:
            checked.create(np.random.default_rng(6), self._state)
        steering.use(self)
        arrivals = Bursts(_REQUESTS, self.period_s, outputs, third="batch")
        never = ": it has nobody for them"
        self._simulate(fleet, arrivals, _PATIENCE * self.period_s, "its fleet breaks", never)

    def tick(self) -> Sequence[Action]:
        """Ask the policy, and look at its answer."""
        state = self._state
        for name, pool in state.pools.items():
            if pool.ready + pool.starting > self._most:
                self._checked.fail(f"the pool {name} of up to {self._most} replicas is out of its bounds")
        changes = "the state of the fleet; an autoscaler only answers"
        answer = self._ask(self._policy.tick, lambda: _facts(state), changes)
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


def _idle(scenario: Scenario) -> Fleet:
    return Fleet(scenario, Path(), Clock(), Streams(1), list[Request]().append, 1)


def _state(fleet: Fleet) -> FleetState:
    assert fleet.lifecycle is not None
    assert fleet.lifecycle.steering is not None
    return fleet.lifecycle.steering.state


def _policy(checked: Policy, state: FleetState) -> Any:
    return checked.create(np.random.default_rng(5), state)


def _scenario(names: Sequence[str], most: int, period_s: float, step_by_step: bool) -> Scenario:
    """Pools so slow that requests take a few periods."""
    roles = {name: _LIKE_ROLES.get(name, "mixed") for name in names}
    pools = [
        {
            "name": name,
            "role": role,
            "min_replicas": 1 if role != "mixed" else 0,
            "max_replicas": most,
            "startup": {"weights": "none", "init": seconds(0.7 * period_s)},
            "engine": slow_engine(period_s, step_by_step),
        }
        for name, role in roles.items()
    ]
    ways = [
        {
            "source": one,
            "target": other,
            "requests": "hand-over" if roles[one] == roles[other] else "wait",
            "init": seconds(0.4 * period_s),
        }
        for one in names
        for other in names
        if one != other
    ]
    return scenario(
        pools,
        "chiron" if set(roles.values()) == {"mixed"} else "least-outstanding",
        slo={
            "ttft": seconds(2.0 * period_s),
            "tpot": seconds(0.02 * period_s),
            "classes": {"batch": {"ttft": seconds(30.0 * period_s)}},
        },
        autoscaler={"policy": "timetable", "changes": [{"at_s": 0.0, "pool": names[0], "replicas": 1}]},
        conversions=ways,
    )


def _facts(state: FleetState) -> list[Any]:
    """All that a policy must leave as it is."""
    facts: list[Any] = [state.now_s, state.elapsed_s, list(state.held), dict(state.limits)]
    facts += [replace(way) for way in state.ways.values()]
    for name, pool in state.pools.items():
        facts += [(key, value) for key, value in vars(pool).items() if key != "window"]
        facts += [getattr(pool.window, key) for key in pool.window.__slots__]
        facts += [astuple(replica) for replica in state.replicas[name]]
    return facts
