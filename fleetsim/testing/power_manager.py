"""Checker of power managers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fleetsim.power.api import PoolState, ReplicaState, Row, Setting
from fleetsim.scenario.schema import Scenario
from fleetsim.testing.report import Config, Policy, Report
from fleetsim.testing.ticking import Bursts, Trial, period_of, scenario, seconds, slow_engine

_REQUESTS = 160
_PATIENCE = 400
"""Periods after which all requests have long ended, however slow the replicas are made."""
_ROWS = ((1, 1), (2, 3))
"""Replicas of low and of high priority that a manager must cope with."""
_COSTS = (2, 64)
"""Numbers of replicas at which its cost is measured."""


def check_power_manager(policy: type | str, config: Config = None) -> Report:
    """Try a power manager on rows of 2 and 5 replicas of two priorities under bursts with pauses, with all laws on.

    The row has a budget that bursts exceed, sleep states, objectives and a telemetry that is late; the load is the same per period
    of the manager, whatever that is. Checked are: its period is a time; every answer can be set; it answers and changes nothing
    itself; every request ends; leaps give what step-by-step simulation gives to 1e-9, so that it depends on nothing but what it
    sees; the same seed gives the same answers, with another instance in the same process too; until the first answer ends, nothing
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
        With the time per tick at 2 and 64 replicas.

    Raises
    ------
    PolicyError
        If a check fails; the message says which and how.
    """
    checked = Policy("power_managers", policy, config, ["tick"])
    for replicas in _ROWS:
        first = _Trial(checked, replicas, watch=True)
        where = f"{sum(replicas)} replicas"
        if first.answers != _Trial(checked, replicas, beside=True).answers:
            checked.fail(f"answers otherwise with the same seed on {where}: draw only from the given `rng`")
        steps = _Trial(checked, replicas, step_by_step=True)
        if not first.ends_like(steps):
            checked.fail(f"on {where} requests end at other times in leaps than step by step")
        other = _Trial(checked, replicas, outputs=1)
        if first.knows_lengths(other):
            checked.fail("answers depend on true output lengths, which nobody knows")
    checked.passed("every answer can be set, and nothing is changed by the policy itself")
    checked.passed("every request ends, and all laws hold")
    checked.passed("the same seed gives the same answers")
    checked.passed("leaps give what step-by-step simulation gives")
    checked.passed("answers do not depend on true output lengths")
    costs = {f"{n} replicas": _Trial(checked, (n // 2, n // 2)).us_per_tick for n in _COSTS}
    return checked.report(costs)


class _Trial(Trial[tuple[Setting, ...]]):
    """One run of a manager on a row."""

    def __init__(
        self,
        checked: Policy,
        replicas: tuple[int, int],
        step_by_step: bool = False,
        outputs: int = 0,
        watch: bool = False,
        beside: bool = False,
    ) -> None:
        super().__init__(checked, watch)
        self.period_s = _period_s(checked)
        fleet = self._fleet(_scenario(replicas, self.period_s, step_by_step))
        assert fleet.powering is not None
        row = fleet.powering.rows[0]
        self._row = row.view
        self._policy = checked.create(np.random.default_rng(5), self._row)
        if beside:
            checked.create(np.random.default_rng(6), self._row)
        row.use(self)
        arrivals = Bursts(_REQUESTS, self.period_s, outputs)
        never = ": it leaves nobody for them, or makes them too slow"
        self._simulate(fleet, arrivals, _PATIENCE * self.period_s, "its row breaks", never)

    def tick(self) -> Sequence[Setting]:
        """Ask the policy, and look at its answer."""
        changes = "the state of the row; a power manager only answers"
        settings = self._ask(self._policy.tick, lambda: _facts(self._row), changes)
        if not isinstance(settings, Sequence) or isinstance(settings, str):
            self._checked.fail(f"`tick` answered {settings!r}: expected a sequence of settings")
        self.answers.append((self._clock.now_s, tuple(settings)))
        return self.answers[-1][1]


def _scenario(replicas: tuple[int, int], period_s: float, step_by_step: bool) -> Scenario:
    """Two pools so slow that requests take a few periods."""
    sleep = {"power": "30 W", "wake": seconds(2.5 * period_s)}
    pools = [
        {
            "name": name,
            "replicas": count,
            "engine": slow_engine(period_s, step_by_step),
            "power": {"sleep": sleep, "host_busy": "100 W", "host_idle": "50 W"},
        }
        for name, count in zip(("low", "high"), replicas, strict=True)
    ]
    row = {
        "manager": {"policy": "schedule", "stages": [{"at_s": 0.0}]},  # until the one under test takes over
        "low_priority": ["low"],
        "budget": f"{330 * sum(replicas)} W",
        "telemetry": seconds(0.3 * period_s),
        "actuation": seconds(0.2 * period_s),
        "brake": seconds(0.1 * period_s),
    }
    slo = {"ttft": seconds(2.0 * period_s), "tpot": seconds(0.02 * period_s)}
    return scenario(pools, "least-outstanding", slo=slo, power=[row])


def _period_s(checked: Policy) -> float:
    """Period of the policy, built for two replicas that do nothing."""
    pool = PoolState("main", False, 1, 120.0, 700.0, 24, 30.0, 1.0, _step_s, _prefill_s)
    row = Row([pool], 1400.0, 0.99)
    row.replicas = [ReplicaState(0), ReplicaState(0)]
    return period_of(checked, checked.create(np.random.default_rng(5), row))


def _step_s(ratio: float, batch: int, ctx_tokens: int) -> float:
    return 0.01 + 1e-4 * batch / ratio + 1e-7 * ctx_tokens


def _prefill_s(ratio: float, tokens: float) -> float:
    return 1e-4 * tokens / ratio


def _facts(row: Row) -> list[Any]:
    """All that a policy must leave as it is."""
    facts: list[Any] = [(name, value) for name, value in vars(row).items() if name not in ("pools", "replicas")]
    for pool in row.pools:
        facts += [(name, value) for name, value in vars(pool).items() if name != "window"]
        facts += [(name, getattr(pool.window, name)) for name in pool.window.__slots__]
    for replica in row.replicas:
        facts += [(name, repr(getattr(replica, name))) for name in replica.__slots__]
    return facts
