"""Checker of power managers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf
from pathlib import Path
from time import process_time_ns
from typing import Any

import numpy as np

from fleetsim.fleet.fleet import Fleet
from fleetsim.kernel.clock import Clock
from fleetsim.kernel.streams import Streams
from fleetsim.power.api import PoolState, ReplicaState, Row, Setting
from fleetsim.scenario.schema import Scenario
from fleetsim.testing.report import Config, Policy, Report
from fleetsim.workload.request import FINISHED, Request

_REQUESTS = 160
_PERIODS = 40
"""Periods of the manager over which requests arrive."""
_PATIENCE = 400
"""Periods after which all requests have long ended, however slow the replicas are made."""
_ROWS = ((1, 1), (2, 3))
"""Replicas of low and of high priority that a manager must cope with."""
_COSTS = (2, 64)
"""Numbers of replicas at which its cost is measured."""
_TOLERANCE = 1e-9


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
        until_s = min(first.first_end_s, other.first_end_s)
        if first.answers_until(until_s) != other.answers_until(until_s):
            checked.fail("answers depend on true output lengths, which nobody knows")
    checked.passed("every answer can be set, and nothing is changed by the policy itself")
    checked.passed("every request ends, and all laws hold")
    checked.passed("the same seed gives the same answers")
    checked.passed("leaps give what step-by-step simulation gives")
    checked.passed("answers do not depend on true output lengths")
    costs = {f"{n} replicas": _Trial(checked, (n // 2, n // 2)).us_per_tick for n in _COSTS}
    return checked.report(costs)


class _Trial:
    """One run of a manager on a row; what it answered, when requests ended, and what its ticks took."""

    def __init__(
        self,
        checked: Policy,
        replicas: tuple[int, int],
        step_by_step: bool = False,
        outputs: int = 0,
        watch: bool = False,
        beside: bool = False,
    ) -> None:
        self._checked = checked
        self._watch = watch
        self._spent_ns = 0
        self._clock = Clock()
        self.answers: list[tuple[float, tuple[Setting, ...]]] = []
        self.ended: list[Request] = []
        self.period_s = _period_s(checked)
        scenario = _scenario(replicas, self.period_s, step_by_step)
        fleet = Fleet(scenario, Path(), self._clock, Streams(1), self.ended.append, 1)
        assert fleet.powering is not None
        row = fleet.powering.rows[0]
        self._row = row.view
        self._policy = checked.create(np.random.default_rng(5), self._row)
        if beside:
            checked.create(np.random.default_rng(6), self._row)
        row.use(self)
        with checked.complaining("its row breaks"):
            fleet.feed(_Arrivals(outputs, self.period_s))
            self._clock.run(_PATIENCE * self.period_s)
            if fleet.in_flight:
                checked.fail(f"{fleet.in_flight} requests never end: it leaves nobody for them, or makes them too slow")
            fleet.verify(self._clock.now_s)
        checked.decisions += len(self.answers)

    @property
    def us_per_tick(self) -> float:
        """Mean processor time of a tick [µs]."""
        return self._spent_ns / max(len(self.answers), 1) / 1e3

    @property
    def first_end_s(self) -> float:
        """When the first request ended."""
        return min((request.end_s for request in self.ended), default=inf)

    def answers_until(self, time_s: float) -> list[tuple[float, tuple[Setting, ...]]]:
        """Answers before a time."""
        return [answer for answer in self.answers if answer[0] < time_s]

    def ends_like(self, other: _Trial) -> bool:
        """Whether requests end at the same replicas and times."""
        mine, theirs = (sorted(trial.ended, key=lambda request: request.id) for trial in (self, other))
        same = [(r.id, r.status, r.replica) for r in mine] == [(r.id, r.status, r.replica) for r in theirs]
        times, others = (np.array([r.end_s for r in each if r.status == FINISHED]) for each in (mine, theirs))
        return same and bool(np.allclose(times, others, rtol=_TOLERANCE, atol=1e-12))

    def tick(self) -> Sequence[Setting]:
        """Ask the policy, and look at its answer."""
        before = _facts(self._row) if self._watch else None
        with self._checked.complaining("`tick` failed"):
            start_ns = process_time_ns()
            settings: Any = self._policy.tick()
            self._spent_ns += process_time_ns() - start_ns
        if before is not None and before != _facts(self._row):
            self._checked.fail("`tick` changes the state of the row; a power manager only answers")
        if not isinstance(settings, Sequence) or isinstance(settings, str):
            self._checked.fail(f"`tick` answered {settings!r}: expected a sequence of settings")
        self.answers.append((self._clock.now_s, tuple(settings)))
        return self.answers[-1][1]


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
            yield Request(i, time_s, self._prompts[i], self._outputs[i])

    def released_by(self, request: Request, now_s: float) -> None:
        """Nothing."""


def _scenario(replicas: tuple[int, int], period_s: float, step_by_step: bool) -> Scenario:
    """Two pools so slow that requests take a few periods."""

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
    pools = [
        {
            "name": name,
            "llm": "llama-3.1-8b",
            "accelerator": "h100-sxm",
            "replicas": count,
            "engine": engine,
            "power": {"sleep": {"power": "30 W", "wake": periods(2.5)}, "host_busy": "100 W", "host_idle": "50 W"},
        }
        for name, count in zip(("low", "high"), replicas, strict=True)
    ]
    workload = {"kind": "synthetic", "requests": 1, "arrivals": {"process": "poisson", "rate": "1 req/s"}}
    lengths = {"distribution": "fixed", "value": 1}
    row = {
        "manager": {"policy": "schedule", "stages": [{"at_s": 0.0}]},  # until the one under test takes over
        "low_priority": ["low"],
        "budget": f"{330 * sum(replicas)} W",
        "telemetry": periods(0.3),
        "actuation": periods(0.2),
        "brake": periods(0.1),
    }
    return Scenario.model_validate(
        {
            "schema": 1,
            "name": "check",
            "workload": {**workload, "prompt_tokens": lengths, "output_tokens": lengths},
            "slo": {"ttft": periods(2.0), "tpot": periods(0.02)},
            "pools": pools,
            "power": [row],
            "gateway": {"router": "least-outstanding"},
        }
    )


def _period_s(checked: Policy) -> float:
    """Period of the policy, built for two replicas that do nothing."""
    pool = PoolState("main", False, 1, 120.0, 700.0, 24, 30.0, 1.0, _step_s, _prefill_s)
    row = Row([pool], 1400.0, 0.99)
    row.replicas = [ReplicaState(0), ReplicaState(0)]
    period_s = getattr(checked.create(np.random.default_rng(5), row), "period_s", None)
    if not (isinstance(period_s, float | int) and 0.0 < period_s < inf):
        checked.fail(f"its `period_s` is {period_s!r}: expected the seconds between two ticks")
    return float(period_s)


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
