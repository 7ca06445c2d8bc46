"""Power managers at work: what they see, and what becomes of what they answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

from fleetsim.engine.replica import Replica
from fleetsim.errors import LawError, PolicyError
from fleetsim.fleet.lifecycle import let_run
from fleetsim.fleet.pool import Pool
from fleetsim.fleet.probe import PrefillTime
from fleetsim.fleet.supply import Supply, cap_of
from fleetsim.kernel.streams import Streams
from fleetsim.power.api import Brake, Cap, Clock, PoolState, ReplicaState, Row, Seats, Setting, Sleep, Wake, Window
from fleetsim.scenario.schema import PowerRow, Scenario
from fleetsim.workload.request import FINISHED, Request

if TYPE_CHECKING:
    from fleetsim.fleet.fleet import Fleet

_CHUNK_TOKENS = 8192
"""Prompt tokens per step where the scheduler says none: for the prediction of prefill times only."""


class Powering:
    """Power managers of a fleet, and the heat of its pools.

    Parameters
    ----------
    fleet : Fleet
        Built completely.
    streams : Streams
        The n-th manager draws from ``power.<n>``.
    """

    def __init__(self, scenario: Scenario, fleet: Fleet, streams: Streams) -> None:
        self._fleet = fleet
        self.events: list[tuple[float, str, str, int, int]] = []
        """Time, kind, pool, replica over the fleet, count."""
        by_name = {pool.name: pool for pool in fleet.pools}
        names = [row.pools or tuple(by_name) for row in scenario.power]
        managed = {name for row in names for name in row}
        self._warm = [pool for pool in fleet.pools if pool.config.power.thermal is not None]
        for pool in fleet.pools:
            if pool.name in managed or pool in self._warm:
                for replica, life in zip(pool.replicas, pool.lives, strict=True):
                    note = partial(self._note, pool, replica)
                    pool.supplies[replica.index] = Supply(replica, pool, life, note)
        self.rows = [
            RowAtWork(self, row, [by_name[name] for name in own], fleet, streams.get(f"power.{number}"))
            for number, (row, own) in enumerate(zip(scenario.power, names, strict=True))
        ]
        if self.rows:
            self._row_of = {pool.index: row for row in self.rows for pool in row.pools}
            gateway = fleet.gateway
            gateway.on_first_token = _both(gateway.on_first_token, self._first_token)
            gateway.on_done = _both(gateway.on_done, self._done)

    @property
    def budget_peak_ratio(self) -> float | None:
        """Largest power of a row over its budget that its manager's telemetry showed; None without a budget."""
        peaks = [row.peak_w / row.view.budget_w for row in self.rows if row.view.budget_w < inf]
        return max(peaks, default=None)

    def begin(self) -> None:
        """Look for the first time one period from now."""
        for row in self.rows:
            row.begin()
        for pool in self._warm:
            self._heat_later(pool)

    def verify(self, end_s: float) -> None:
        """Check that no replica idled for less than nothing, or was slowed down or asleep for longer than it was on.

        Raises
        ------
        LawError
            If one did.
        """
        for pool in self._fleet.pools:
            for index, supply in pool.supplies.items():
                on_s, idle_j = supply.life.on_s(end_s), supply.idle_j(end_s)
                capped_s, braked_s, hot_s, slept_s = supply.states_s(end_s)
                room_s = on_s * (1 + 1e-9) + 1e-9
                if idle_j < -1e-6 or slept_s + max(capped_s, braked_s, hot_s) > room_s:
                    raise LawError(
                        f"law 4 (busy time): replica {index}, on for {on_s} s, idled for {idle_j} J, was capped for {capped_s} s, "
                        f"braked for {braked_s} s, throttled for {hot_s} s and slept for {slept_s} s"
                    )

    def _note(self, pool: Pool, replica: Replica, kind: str, count: int) -> None:
        self.events.append((self._fleet.clock.now_s, kind, pool.name, replica.index, count))

    # --- heat --------------------------------------------------------------------------------------------------------

    def _heat_later(self, pool: Pool) -> None:
        assert pool.config.power.thermal is not None
        period_s = pool.config.power.thermal.period
        self._fleet.clock.at(self._fleet.clock.now_s + period_s, partial(self._heat, pool, period_s))

    def _heat(self, pool: Pool, period_s: float) -> None:
        if self._fleet.at_rest or not self._fleet.goes_on:
            return
        for supply in pool.supplies.values():
            supply.warm(self._fleet.clock.now_s, period_s)
        self._heat_later(pool)

    # --- what managers are told --------------------------------------------------------------------------------------

    def _first_token(self, request: Request) -> None:
        row = self._row_of.get(self._fleet.pool_of[request.replica].index)
        if row is not None and request.first_token_s == request.first_token_s:
            row.first_token(request)

    def _done(self, request: Request) -> None:
        if request.status == FINISHED and request.generated > 1:
            row = self._row_of.get(self._fleet.pool_of[request.replica].index)
            if row is not None:
                row.done(request)


@dataclass(slots=True)
class _Snapshot:
    """What telemetry showed at a time."""

    seen_s: float
    elapsed_s: float
    power_w: float
    host_w: float
    replicas: list[ReplicaState]
    windows: list[Window]
    outside: list[int]


class RowAtWork:
    """One manager with what it looks after."""

    def __init__(self, powering: Powering, config: PowerRow, pools: Sequence[Pool], fleet: Fleet, rng: Any) -> None:
        self.pools = tuple(pools)
        self._config = config
        self._fleet = fleet
        self.supplies = [supply for pool in pools for supply in pool.supplies.values()]
        self._place = {pool.index: place for place, pool in enumerate(pools)}
        self._number = {supply.replica.index: number for number, supply in enumerate(self.supplies)}
        slo = fleet.slo
        self.view = Row(
            [_pool_state(pool, config) for pool in pools],
            inf if config.budget is None else config.budget,
            1.0 if slo is None else slo.attainment,
        )
        self.view.replicas = [ReplicaState(self._place[supply.pool.index]) for supply in self.supplies]
        if slo is not None:
            for state in self.view.pools:
                state.ttft_limit_s = inf if slo.ttft is None else slo.ttft
                state.tpot_limit_s = inf if slo.tpot is None else slo.tpot
        self.peak_w = 0.0
        """Largest power that was seen [W]."""
        self._windows = [Window() for _ in pools]
        self._first_tokens = [(0, 0)] * len(self.supplies)
        """First tokens of each replica, and those beyond the objective."""
        self._energy_j = [0.0] * len(self.supplies)
        self._busy_s = [0.0] * len(self.supplies)
        self._on_s = [0.0] * len(self.supplies)
        self._prompt = [0] * len(self.supplies)
        self._output = [0] * len(self.supplies)
        self._idle_s = [0.0] * len(self.supplies)
        self._seen_s = 0.0
        self._waking: dict[Supply, int] = {}
        self._wakes = 0
        self.use(config.manager.create(rng, self.view))

    def use(self, policy: Any) -> None:
        """Ask this policy from now on.

        Raises
        ------
        PolicyError
            If its period is no time.
        """
        period_s = policy.period_s
        if not (isinstance(period_s, float | int) and 0.0 < period_s < inf):
            raise PolicyError(f"power manager {type(policy).__name__} wants to be asked every {period_s!r} s")
        self._policy, self._period_s = policy, float(period_s)

    def begin(self) -> None:
        """Look for the first time one period from now."""
        self._fleet.clock.at(self._fleet.clock.now_s + self._period_s, self._tick)

    # --- what it sees ------------------------------------------------------------------------------------------------

    def first_token(self, request: Request) -> None:
        """Note a first token of a request of its pools."""
        place = self._place[self._fleet.pool_of[request.replica].index]
        window, ttft_s = self._windows[place], request.first_token_s - request.arrival_s
        window.ttfts += 1
        window.ttft_sum_s += ttft_s
        late = ttft_s > self.view.pools[place].ttft_limit_s
        window.late += late
        number = self._number[request.replica]
        came, missed = self._first_tokens[number]
        self._first_tokens[number] = (came + 1, missed + late)
        window.longest_prompt = max(window.longest_prompt, request.prompt_tokens)

    def done(self, request: Request) -> None:
        """Note a request of its pools that finished."""
        place = self._place[self._fleet.pool_of[request.replica].index]
        window = self._windows[place]
        tpot_s = (request.end_s - request.first_token_s) / (request.generated - 1)
        window.tpots += 1
        window.tpot_sum_s += tpot_s
        window.slow += tpot_s > self.view.pools[place].tpot_limit_s

    def _tick(self) -> None:
        fleet = self._fleet
        if not fleet.goes_on:
            return
        snapshot = self._look(fleet.clock.now_s)
        if self._config.telemetry:
            fleet.clock.at(fleet.clock.now_s + self._config.telemetry, partial(self._decide, snapshot))
        else:
            self._decide(snapshot)
        self.begin()

    def _look(self, now_s: float) -> _Snapshot:
        """What telemetry shows now; begins new windows."""
        elapsed_s, self._seen_s = now_s - self._seen_s, now_s
        replicas, host_j = [], 0.0
        for number, supply in enumerate(self.supplies):
            replica, pool = supply.replica, supply.pool
            state = ReplicaState(self._place[pool.index])
            meter, on_s = replica.meter(now_s), supply.life.on_s(now_s)
            energy_j = meter.energy_j + supply.idle_j(now_s)
            busy_s = meter.busy_s - self._busy_s[number]
            host_j += pool.host_busy_w * busy_s + pool.host_idle_w * (on_s - self._on_s[number] - busy_s)
            state.power_w = (energy_j - self._energy_j[number]) / elapsed_s
            state.busy_ratio = busy_s / elapsed_s
            state.prompt_tokens = meter.prompt_tokens - self._prompt[number]
            state.output_tokens = meter.output_tokens - self._output[number]
            self._energy_j[number], self._busy_s[number], self._on_s[number] = energy_j, meter.busy_s, on_s
            self._prompt[number], self._output[number] = meter.prompt_tokens, meter.output_tokens
            _queue(state, replica, now_s)
            (state.ttfts, state.missed), self._first_tokens[number] = self._first_tokens[number], (0, 0)
            active = state.running or state.waiting or busy_s > 0.0 or supply.life.state != "ready"
            state.idle_s = self._idle_s[number] = 0.0 if active else self._idle_s[number] + elapsed_s
            state.state = str(supply.life.state)
            state.clock_ratio, state.cap_w = supply.clock_ratio, cap_of(supply)
            state.braked, state.throttled = supply.brake_ratio is not None, supply.throttled
            state.temperature_c = supply.temperature_c
            replicas.append(state)
        host_w = host_j / elapsed_s
        power_w = host_w + sum([state.power_w for state in replicas])
        self.peak_w = max(self.peak_w, power_w)
        windows, self._windows = self._windows, [Window() for _ in self.pools]
        room = self._fleet.gateway.presence.waiting_room
        outside = [sum(r.model in (None, pool.llm.name) for r in room) for pool in self.pools]
        return _Snapshot(now_s, elapsed_s, power_w, host_w, replicas, windows, outside)

    # --- what it answers ---------------------------------------------------------------------------------------------

    def _decide(self, seen: _Snapshot) -> None:
        """Ask the manager, and have done what it says after a while."""
        if not self._fleet.active:
            return
        view, now_s = self.view, self._fleet.clock.now_s
        view.now_s, view.seen_s, view.elapsed_s = now_s, seen.seen_s, seen.elapsed_s
        view.power_w, view.host_w, view.replicas = seen.power_w, seen.host_w, seen.replicas
        for state, window, outside in zip(view.pools, seen.windows, seen.outside, strict=True):
            state.window, state.waiting_outside = window, outside
        settings: dict[float, list[Setting]] = {}
        for setting in self._policy.tick():
            self._require_possible(setting)
            lag_s = self._config.brake if isinstance(setting, Brake) else self._config.actuation
            settings.setdefault(lag_s, []).append(setting)
        for lag_s, together in settings.items():
            self._fleet.clock.at(now_s + lag_s, partial(self._act, together))

    def _require_possible(self, setting: Any) -> None:
        """Refuse what cannot be set."""
        reason = _impossible(setting, self.view)
        if reason:
            raise PolicyError(f"power manager {type(self._policy).__name__} answered {setting!r}: {reason}")

    def _act(self, settings: Sequence[Setting]) -> None:
        if not self._fleet.active:
            return
        stall_s = self._config.stall
        for setting in settings:
            if isinstance(setting, Seats):
                self._seat(setting)
                continue
            supply = self.supplies[setting.replica]
            if isinstance(setting, Clock):
                supply.set_clock(setting.ratio, stall_s)
            elif isinstance(setting, Cap):
                supply.set_cap(setting.watts, stall_s)
            elif isinstance(setting, Brake):
                supply.brake(setting.ratio, stall_s)
            elif isinstance(setting, Sleep):
                self._sleep(supply)
            else:
                self._wake(supply)

    def _seat(self, setting: Seats) -> None:
        state = self.view.pools[setting.pool]
        if setting.count != state.slots:
            state.slots = setting.count
            pool = self.pools[setting.pool]
            let_run(pool, setting.count)
            assert self._fleet.powering is not None
            self._fleet.powering.events.append((self._fleet.clock.now_s, "seats_set", pool.name, -1, setting.count))

    def _sleep(self, supply: Supply) -> None:
        if supply.life.state != "ready" or not supply.replica.empty:
            return
        lifecycle, sleep = self._fleet.lifecycle, supply.pool.config.power.sleep
        assert lifecycle is not None
        assert sleep is not None
        if not sleep.keeps_cache:
            for batch in supply.replica.batches:
                batch.cache.forget_all()
        lifecycle.enter(supply.replica, "asleep", "replica_asleep")

    def _wake(self, supply: Supply) -> None:
        if supply.life.state != "asleep":
            return
        lifecycle = self._fleet.lifecycle
        assert lifecycle is not None
        lifecycle.enter(supply.replica, "waking", "replica_waking")
        self._wakes += 1
        self._waking[supply] = self._wakes
        wake_s = self.view.pools[self._place[supply.pool.index]].wake_s
        self._fleet.clock.at(self._fleet.clock.now_s + wake_s, partial(self._awake, supply, self._wakes))

    def _awake(self, supply: Supply, number: int) -> None:
        if self._waking.get(supply) != number or supply.life.state != "waking" or not self._fleet.active:
            return  # it was switched off, or failed, meanwhile; or nobody is left
        del self._waking[supply]
        lifecycle = self._fleet.lifecycle
        assert lifecycle is not None
        lifecycle.enter(supply.replica, "ready", "replica_awake")


def _queue(state: ReplicaState, replica: Replica, now_s: float) -> None:
    """Note who runs and who waits at a replica."""
    done = 0 if replica.has_chunks else replica.steps_done(now_s)
    # what came during a leap is in the queue already, although the replica looks at it at the next boundary only
    waiting = [r for r in (*replica.inbox, *replica.held) if r.queued_s <= now_s]
    first_s = now_s
    for batch in replica.batches:
        state.running += len(batch.running)
        state.ctx_tokens += batch.ctx_tokens + done * batch.growing
        waiting += batch.waiting
        for request in batch.prefilling:
            state.waiting_tokens += request.target - request.computed
            if not request.generated:
                first_s = min(first_s, request.arrival_s)
    state.waiting = len(waiting)
    for request in waiting:
        state.waiting_tokens += request.prompt_tokens + request.generated
        if not request.generated:
            first_s = min(first_s, request.arrival_s)
    state.oldest_s = now_s - first_s


def _pool_state(pool: Pool, config: PowerRow) -> PoolState:
    """What a manager knows of a pool from the beginning."""
    power, chip = pool.config.power, pool.accelerator.power
    scheduler = pool.config.engine.scheduler.config
    chunk_tokens = getattr(scheduler, "max_batched_tokens", _CHUNK_TOKENS)
    prompts: dict[float, PrefillTime] = {}

    def step_s(ratio: float, batch: int, ctx_tokens: int) -> float:
        line = pool.model_at(ratio, power.cap, power.temperature).decode(batch, ctx_tokens, batch)
        return line.time_s + line.time_per_ctx_s * ctx_tokens

    def prefill_s(ratio: float, tokens: float) -> float:
        fit = prompts.get(ratio)
        if fit is None:
            model = pool.model_at(ratio, power.cap, power.temperature)
            fit = prompts[ratio] = PrefillTime(model, chunk_tokens)
        return fit.seconds(tokens, 0.0)

    return PoolState(
        pool.name,
        pool.name in config.low_priority,
        pool.config.parallelism.accelerators,
        chip.idle_w,
        chip.limit_w if power.cap is None else power.cap,
        int(getattr(scheduler, "max_seqs", 256)),
        None if power.sleep is None else power.sleep.power,
        0.0 if power.sleep is None else power.sleep.wake,
        step_s,
        prefill_s,
    )


def _impossible(setting: Any, view: Row) -> str:
    """Why something cannot be set; empty if it can."""
    if isinstance(setting, Seats):
        if not 0 <= setting.pool < len(view.pools):
            return f"there are {len(view.pools)} pools"
        most = view.pools[setting.pool].most_slots
        return "" if type(setting.count) is int and 1 <= setting.count <= most else f"1 to {most} may run"
    if not isinstance(setting, Clock | Cap | Brake | Sleep | Wake):
        return "no setting"
    if not 0 <= setting.replica < len(view.replicas):
        return f"there are {len(view.replicas)} replicas"
    pool = view.pools[view.replicas[setting.replica].pool]
    if isinstance(setting, Clock) and not pool.lowest_ratio <= setting.ratio <= 1.0:
        return f"clocks go from {pool.lowest_ratio:g} to 1"
    if isinstance(setting, Cap) and setting.watts is not None and not pool.idle_w < setting.watts <= pool.limit_w:
        return f"caps go from above {pool.idle_w:g} W to {pool.limit_w:g} W"
    if isinstance(setting, Brake) and setting.ratio is not None and not 0.0 < setting.ratio <= 1.0:
        return "a brake's clock is above 0 and at most 1"
    if isinstance(setting, Sleep) and pool.sleep_w is None:
        return f'pool "{pool.name}" has no `power.sleep`'
    return ""


def _both(first: Callable[[Request], None] | None, second: Callable[[Request], None]) -> Callable[[Request], None]:
    """Call both, if there are two."""
    if first is None:
        return second
    before = first

    def call(request: Request) -> None:
        before(request)
        second(request)

    return call
