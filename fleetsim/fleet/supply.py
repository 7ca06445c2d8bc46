"""One replica's clock, cap, temperature and sleep, and what they make of its step times and idle power."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, inf, nan
from typing import Any

from fleetsim.catalog.accelerator import HeatSink
from fleetsim.engine.replica import Replica
from fleetsim.engine.steptime.governor import REFERENCE_C
from fleetsim.fleet.life import Life
from fleetsim.fleet.pool import Pool

_LEAKAGE_STEP_K = 5.0
"""Leakage follows the temperature in steps of so many kelvins: 2 % of idle power each, and few step-time models to build."""


class Supply:
    """What a replica is set to, what is in force, and the books of its idle energy.

    Settings become a new step-time model at the next boundary between two steps; until then the old one holds. Idle power changes
    with temperature and sleep, so idle energy is counted here, whenever it changes.

    Parameters
    ----------
    note : callable
        Takes kind and count of an event of this replica.
    """

    def __init__(self, replica: Replica, pool: Pool, life: Life, note: Callable[[str, int], None]) -> None:
        self.replica = replica
        self.pool = pool
        self.life = life
        self._note = note
        power = pool.config.power
        self._usual_ratio, self._usual_cap_w = power.clock_ratio, power.cap
        self._set_ratio = power.clock_ratio
        self.cap_w: float | None = power.cap
        """Cap that is set [W]; None without."""
        self.brake_ratio: float | None = None
        """Clock that a brake holds it at; None while it is released."""
        self.heat = None if power.thermal is None else Heat(pool)
        self.clock_ratio = power.clock_ratio
        """Clock in force."""
        self._lowered = self._braked = self._hot = False
        """What holds for the settings in force."""
        self._temperature_c = power.temperature
        self._stall_s = 0.0
        self._under_way = False
        """Whether new settings wait for a boundary."""
        self.brakes = 0
        """Times it was braked."""
        self.throttles = 0
        """Times heat lowered its clock."""
        self._states_s = (0.0, 0.0, 0.0, 0.0)
        self._idle_j = self._idle_mark_s = self._on_mark_s = 0.0
        if self.heat is not None:
            self._temperature_c = self._leakage_c()
            self._become()

    # --- settings ----------------------------------------------------------------------------------------------------

    def set_clock(self, ratio: float, stall_s: float) -> None:
        """Run at this clock from the next boundary on."""
        if ratio != self._set_ratio:
            self._set_ratio = ratio
            self._note("clock_set", round(1000 * ratio))
            self._soon(stall_s)

    def set_cap(self, watts: float | None, stall_s: float) -> None:
        """Keep to this cap from the next boundary on."""
        if watts is not None and self._usual_cap_w is not None:
            watts = min(watts, self._usual_cap_w)
        elif watts is None:
            watts = self._usual_cap_w
        if watts != self.cap_w:
            self.cap_w = watts
            self._note("cap_set", round(self.pool.accelerator.power.limit_w if watts is None else watts))
            self._soon(stall_s)

    def brake(self, ratio: float | None, stall_s: float) -> None:
        """Pull or release the brake."""
        if ratio != self.brake_ratio:
            if self.brake_ratio is None:
                self.brakes += 1
            self.brake_ratio = ratio
            self._note("brake_released" if ratio is None else "brake", 1)
            self._soon(stall_s)

    def warm(self, now_s: float, period_s: float) -> None:
        """Bring the temperature up to date after a period, and throttle or go on as before."""
        heat = self.heat
        assert heat is not None
        was = heat.throttled
        heat.pass_by(self.energy_j(now_s) / self.pool.config.parallelism.accelerators, period_s)
        if heat.throttled != was:
            self.throttles += heat.throttled
            self._note("throttled" if heat.throttled else "throttle_over", round(heat.temperature_c))
        if heat.throttled != was or self._leakage_c() != self._temperature_c:
            self._soon(0.0)

    def _leakage_c(self) -> float:
        heat = self.heat
        if heat is None:
            return self._temperature_c
        return REFERENCE_C + _LEAKAGE_STEP_K * round((heat.temperature_c - REFERENCE_C) / _LEAKAGE_STEP_K)

    def _soon(self, stall_s: float) -> None:
        self._stall_s = max(self._stall_s, stall_s)
        if not self._under_way:
            self._under_way = True
            self.replica.at_boundary(self._take_effect)

    def _take_effect(self) -> None:
        """Between two steps: what is set is in force from now on."""
        self._under_way = False
        self._settle(self.replica.busy_s, self.replica.clock.now_s)
        self._temperature_c = self._leakage_c()
        self._become()
        if self._stall_s:
            self.replica.owe(self._stall_s)
            self._stall_s = 0.0

    def _become(self) -> None:
        ratio = self._set_ratio
        if self.heat is not None and self.heat.throttled:
            ratio *= self.heat.sink.throttled_ratio
        if self.brake_ratio is not None:
            ratio = min(ratio, self.brake_ratio)
        self.clock_ratio = ratio
        self._lowered = ratio < self._usual_ratio or self.cap_w != self._usual_cap_w
        self._braked, self._hot = self.brake_ratio is not None, self.throttled
        self.replica.model = self.pool.model_at(ratio, self.cap_w, self._temperature_c)

    # --- books -------------------------------------------------------------------------------------------------------

    @property
    def throttled(self) -> bool:
        """Whether heat has lowered its clock."""
        return self.heat is not None and self.heat.throttled

    @property
    def temperature_c(self) -> float:
        """Of its accelerators at the last look [°C]; NaN where it is not followed."""
        return nan if self.heat is None else self.heat.temperature_c

    @property
    def asleep(self) -> bool:
        """Whether it sleeps."""
        return self.life.state == "asleep"

    @property
    def idle_w(self) -> float:
        """Power of all its accelerators while no step runs [W]."""
        sleep = self.pool.config.power.sleep
        if sleep is not None and self.asleep:
            return sleep.power * self.pool.config.parallelism.accelerators
        return self.replica.model.idle_w

    def settle(self, now_s: float) -> None:
        """Count what was idle until now, before its state changes (not in an errand)."""
        self._settle(self.replica.meter(now_s).busy_s, now_s)

    def _settle(self, busy_s: float, now_s: float) -> None:
        on_s = self.life.on_s(now_s)
        self._idle_j += self.idle_w * (on_s - busy_s - self._idle_mark_s)
        self._idle_mark_s = on_s - busy_s
        self._states_s = self.states_s(now_s)
        self._on_mark_s = on_s

    def states_s(self, now_s: float) -> tuple[float, float, float, float]:
        """Time up to now for which it ran below its usual clock or cap, was braked, was throttled, and slept [s]."""
        passed_s = self.life.on_s(now_s) - self._on_mark_s
        asleep = self.asleep
        holds = (self._lowered and not asleep, self._braked and not asleep, self._hot and not asleep, asleep)
        capped, braked, hot, slept = [
            before + held * passed_s for before, held in zip(self._states_s, holds, strict=True)
        ]
        return capped, braked, hot, slept

    def idle_j(self, now_s: float) -> float:
        """Energy of its accelerators while no step ran, up to now [J]."""
        return self.idle_at_j(self.replica.meter(now_s).busy_s, now_s)

    def idle_at_j(self, busy_s: float, now_s: float) -> float:
        """The same where the time in which steps ran is known."""
        return self._idle_j + self.idle_w * (self.life.on_s(now_s) - busy_s - self._idle_mark_s)

    def energy_j(self, now_s: float) -> float:
        """Energy of its accelerators up to now [J]."""
        return self.replica.meter(now_s).energy_j + self.idle_j(now_s)


class Heat:
    """Temperature of a replica's accelerators, all alike.

    Heat flows to the air in proportion to the difference in temperature: ``capacity dT/dt = power - (T - ambient) / resistance``.
    """

    def __init__(self, pool: Pool) -> None:
        thermal = pool.config.power.thermal
        assert thermal is not None
        self.sink = heat_sink(pool)
        self.ambient_c = thermal.ambient
        self.temperature_c = self.ambient_c + self.sink.resistance_k_per_w * pool.accelerator.power.idle_w
        """At the start, that of chips that have been idle for long."""
        self.throttled = False
        self.hottest_c = self.temperature_c
        self._energy_j = 0.0

    def pass_by(self, energy_j: float, period_s: float) -> None:
        """Let a period pass at whose end one accelerator has drawn so much in all."""
        sink = self.sink
        watts = (energy_j - self._energy_j) / period_s
        self._energy_j = energy_j
        steady_c = self.ambient_c + sink.resistance_k_per_w * watts
        kept = exp(-period_s / (sink.resistance_k_per_w * sink.capacity_j_per_k))
        self.temperature_c = steady_c + (self.temperature_c - steady_c) * kept
        self.hottest_c = max(self.hottest_c, self.temperature_c)
        limit_c = sink.resume_c if self.throttled else sink.throttle_c
        self.throttled = self.temperature_c >= limit_c


def heat_sink(pool: Pool) -> HeatSink:
    """How a pool's accelerators are cooled: what its scenario says, else what the catalogue does."""
    thermal, known = pool.config.power.thermal, pool.accelerator.heat_sink
    assert thermal is not None

    def first(given: float | None, name: str) -> float:
        return given if given is not None else float(getattr(known, name))

    return HeatSink(
        first(thermal.resistance, "resistance_k_per_w"),
        first(thermal.capacity, "capacity_j_per_k"),
        first(thermal.throttle, "throttle_c"),
        first(thermal.resume, "resume_c"),
        first(thermal.throttled_clock, "throttled_ratio"),
    )


def cap_of(supply: Supply) -> float:
    """Cap of one accelerator that is set [W]; infinite without."""
    return inf if supply.cap_w is None else supply.cap_w


def idle_j(pool: Pool, replica: Replica, life: Any, now_s: float) -> float:
    """Energy of a replica's accelerators while no step ran, up to now [J]."""
    supply = pool.supplies.get(replica.index)
    if supply is not None:
        known: float = supply.idle_j(now_s)
        return known
    spent_s: float = life.on_s(now_s) - replica.meter(now_s).busy_s
    return replica.model.idle_w * spent_s
