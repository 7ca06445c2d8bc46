"""Checker of autoscalers."""

from __future__ import annotations

from typing import Any

import numpy as np

from fleetsim.scaling.api import PoolState
from fleetsim.scaling.future import Future, Known
from fleetsim.scenario.schema import Scenario
from fleetsim.testing.report import Config, Policy, Report
from fleetsim.testing.ticking import Bursts, Trial, period_of, scenario, seconds, slow_engine

_REQUESTS = 240
_PATIENCE = 400
"""Periods after which all requests have long ended, unless nobody is there for them."""
_POOLS = ((0, 1, 3), (1, 2, 6))
"""Fewest replicas, those at the start, and most."""
_COSTS = (4, 64)
"""Most replicas at which its cost is measured."""


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
        if first.knows_lengths(other) and not knows_future(checked):
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


class _Trial(Trial[tuple[int, int | None]]):
    """One run of an autoscaler on a pool."""

    def __init__(
        self,
        checked: Policy,
        bounds: tuple[int, int, int],
        step_by_step: bool = False,
        outputs: int = 0,
        watch: bool = False,
        beside: bool = False,
    ) -> None:
        super().__init__(checked, watch)
        self._bounds = bounds
        self.period_s = period_of(checked, _alone(checked))
        fleet = self._fleet(_scenario(bounds, self.period_s, step_by_step))
        assert fleet.lifecycle is not None
        scaling = fleet.lifecycle.scalings[0]
        self._state = scaling.state
        arrivals = Bursts(_REQUESTS, self.period_s, outputs, (bounds[2],))
        if knows_future(checked):
            self._state.future = Known(Future(arrivals.requests()), "llama-3.1-8b")
        self._policy = checked.create(np.random.default_rng(5), self._state)
        if beside:
            checked.create(np.random.default_rng(6), self._state)
        scaling.use(self)
        never = f": it has nobody for them (bounds {bounds})"
        self._simulate(fleet, arrivals, _PATIENCE * self.period_s, "its pool breaks", never)

    @property
    def max_seqs(self) -> int | None:
        """Requests that may run at a time, if the policy says so."""
        seats: int | None = getattr(self._policy, "max_seqs", None)
        return seats

    def tick(self) -> int:
        """Ask the policy, and look at its answer."""
        state, bounds = self._state, self._bounds
        if not bounds[0] <= state.ready + state.starting + state.draining <= bounds[2]:
            self._checked.fail(f"a pool of {bounds[0]} to {bounds[2]} replicas is out of its bounds")
        changes = "the state of the pool; an autoscaler only answers"
        wanted = self._ask(self._policy.tick, lambda: _facts(state), changes)
        if type(wanted) is not int or wanted < 0:
            self._checked.fail(f"`tick` answered {wanted!r}: expected the number of replicas wanted")
        self.answers.append((self._clock.now_s, (wanted, self.max_seqs)))
        return wanted


def _scenario(bounds: tuple[int, int, int], period_s: float, step_by_step: bool) -> Scenario:
    """A pool so slow that requests take a few periods."""
    least, start, most = bounds
    pool = {
        "name": "main",
        "replicas": start,
        "min_replicas": least,
        "max_replicas": most,
        "autoscaler": "hpa",
        "startup": {"weights": "none", "init": seconds(0.7 * period_s)},
        "engine": slow_engine(period_s, step_by_step),
    }
    slo = {"ttft": seconds(2.0 * period_s), "tpot": seconds(0.02 * period_s)}
    return scenario([pool], "round-robin", slo=slo)


def _alone(checked: Policy) -> Any:
    """The policy, built for a pool that does nothing."""
    state = PoolState(
        "main", "mixed", 1, 2, 1, 24, 3200, 1.0, lambda tokens: 1e-4 * tokens, lambda n, c: 1e-4 * n + 1e-7 * c
    )
    return checked.create(np.random.default_rng(5), state)


def _facts(state: PoolState) -> list[Any]:
    """All that a policy must leave as it is."""
    facts = [(name, value) for name, value in vars(state).items() if name != "window"]
    return [*facts, *((name, getattr(state.window, name)) for name in state.window.__slots__)]
