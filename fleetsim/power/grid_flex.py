"""Demand response: less power for a while, because the grid asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.power.api import Cap, Clock, PoolState, Row, Seats, Setting


class Call(PolicyConfig):
    """One call of the grid for less power."""

    start_s: Annotated[float, Field(ge=0)]
    """When it begins [s]."""
    duration_s: Annotated[float, Field(gt=0)]
    """For how long [s]."""
    curtail_ratio: Annotated[float, Field(gt=0, lt=1)]
    """Power given up, over that before the call."""


class GridFlexConfig(PolicyConfig):
    """Parameters of grid-flex."""

    calls: Annotated[tuple[Call, ...], Field(min_length=1)]
    """When the grid calls; calls must not overlap."""
    by: Literal["cap", "clock", "seats"] = "cap"
    """What is turned down: the cap of each accelerator, the clock, or the requests that run at a time."""
    baseline_s: Annotated[float, Field(gt=0)] = 60.0
    """Power is counted from its mean over so long before the call: an assumption; utilities take hours or days [s]."""
    deadband_ratio: Annotated[float, Field(ge=0, lt=0.5)] = 0.02
    """So much below the target nothing is given back: an assumption."""
    gain: Annotated[float, Field(gt=0, le=2)] = 1.0
    """Exponent of target over power in each correction of the level: an assumption."""
    hold: bool = False
    """Give nothing more up while a larger share of requests than the scenario's objective allows miss theirs."""
    period_s: Annotated[float, Field(gt=0)] = 2.0
    """Time between two looks at the row's power: an assumption [s]."""


class GridFlex:
    """Curtails a row's power by a given share for as long as the grid asks, with even caps, lower clocks or smaller batches.

    Rule: during a call the target is (1 - `curtail_ratio`) x the mean power of the `baseline_s` before it. A level between 0 and 1
    starts where it begins to bite (power over board limits, the largest share of seats taken, the usual clock) and is multiplied
    every `period_s` by (target over power) ^ `gain`, both less the servers' share; upwards only if power is `deadband_ratio` below
    the target. It is turned into a cap between idle power and board limit, into a clock, or into seats as share of the scheduler's
    own. After the call all is as before. With `hold`, the level does not fall while objectives are missed: the power then promised
    may not be given up.

    Charged: the row's `telemetry` and `actuation`; longer steps and waits.

    References
    ----------
    Chen et al., "Workload-Router-Pool", arXiv:2603.21354, and its fleet simulator: the calls and the question, not this controller.
    """

    Config: ClassVar = GridFlexConfig

    def __init__(self, config: GridFlexConfig, rng: Generator, row: Row) -> None:
        self.period_s = config.period_s
        self._config = config
        self._row = row
        self._calls = sorted(config.calls, key=lambda call: call.start_s)
        self._seen: list[tuple[float, float, float]] = []
        """Time, length and power of the looks of the last `baseline_s`."""
        self._target_w: float | None = None
        """During a call."""
        self._level = 1.0

    def tick(self) -> Sequence[Setting]:
        """What to set."""
        row, calls = self._row, self._calls
        while calls and row.seen_s >= calls[0].start_s + calls[0].duration_s:
            del calls[0]
            self._target_w = None
        if not calls or row.seen_s < calls[0].start_s:
            self._remember()
            if self._level == 1.0:
                return ()
            self._level = 1.0
            return self._settings()
        if self._target_w is None:
            self._remember()
            span_s = sum([length_s for _, length_s, _ in self._seen])
            mean_w = sum([length_s * watts for _, length_s, watts in self._seen]) / span_s
            self._target_w = (1.0 - calls[0].curtail_ratio) * mean_w
            self._level = self._utilisation()
        if not self._correct(self._target_w):
            return ()
        return self._settings()

    def _remember(self) -> None:
        row = self._row
        self._seen.append((row.seen_s, row.elapsed_s, row.power_w))
        self._seen = [look for look in self._seen if look[0] > row.seen_s - self._config.baseline_s]

    def _utilisation(self) -> float:
        """Where the level begins to bite: power over the board limits, or the largest share of the seats that is taken."""
        row = self._row
        if self._config.by == "clock":
            return 1.0
        if self._config.by == "seats":
            return min(max([r.running / row.pools[r.pool].most_slots for r in row.replicas]), 1.0)
        most_w = sum(
            [row.pools[r.pool].limit_w * row.pools[r.pool].accelerators for r in row.replicas if _there(r.state)]
        )
        return min((row.power_w - row.host_w) / most_w, 1.0) if most_w else 1.0

    def _correct(self, target_w: float) -> bool:
        """Bring the level nearer to what meets the target; whether it moved."""
        row, config = self._row, self._config
        spare_w, used_w = target_w - row.host_w, row.power_w - row.host_w
        if used_w <= 0.0:
            return False
        ratio = max(spare_w / used_w, 0.1)
        if ratio < 1.0 and config.hold and self._missing():
            return False
        if 1.0 <= ratio <= 1.0 + config.deadband_ratio:
            return False
        self._level = min(max(self._level * ratio**config.gain, 0.01), 1.0)
        return True

    def _missing(self) -> bool:
        allowed = 1.0 - self._row.attainment
        return any(
            pool.window.late > allowed * pool.window.ttfts or pool.window.slow > allowed * pool.window.tpots
            for pool in self._row.pools
        )

    def _settings(self) -> Sequence[Setting]:
        row, level = self._row, self._level
        if self._config.by == "seats":
            return [Seats(number, max(1, round(level * pool.most_slots))) for number, pool in enumerate(row.pools)]
        pools = [row.pools[replica.pool] for replica in row.replicas]
        if self._config.by == "clock":
            return [Clock(number, max(round(level, 2), pool.lowest_ratio)) for number, pool in enumerate(pools)]
        return [Cap(number, _cap_w(pool, level)) for number, pool in enumerate(pools)]


def _there(state: str) -> bool:
    return state not in ("off", "down")


def _cap_w(pool: PoolState, level: float) -> float | None:
    """Cap of an accelerator at a level, in whole watts; none at 1."""
    if level >= 1.0:
        return None
    return float(min(max(round(level * pool.limit_w), int(pool.idle_w) + 1), int(pool.limit_w)))
