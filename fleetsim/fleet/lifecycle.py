"""Replicas that start, drain and stop, and the autoscalers that ask for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from math import inf, isfinite
from typing import TYPE_CHECKING, Any

from fleetsim.engine.kv_tiers.tier import Tier
from fleetsim.engine.replica import Replica
from fleetsim.errors import DataError, Finding, PolicyError
from fleetsim.faults.api import Fault, Site
from fleetsim.fleet.conversions import Conversions
from fleetsim.fleet.gateway_loss import GatewayLoss
from fleetsim.fleet.handover import gpu
from fleetsim.fleet.outages import Outages
from fleetsim.fleet.profile import profiles
from fleetsim.fleet.steering import Steering
from fleetsim.fleet.stranding import Stranding
from fleetsim.fleet.uptime import Uptime
from fleetsim.kernel.streams import Streams
from fleetsim.network.topology import links_at, links_between
from fleetsim.scaling.api import PoolState, Window
from fleetsim.scaling.forecasters.api import Forecaster, Series, What
from fleetsim.scaling.future import Known
from fleetsim.scenario.schema import Scenario
from fleetsim.workload.request import FINISHED, Request

if TYPE_CHECKING:
    from fleetsim.fleet.fleet import Fleet
    from fleetsim.fleet.pool import Pool

_WANTED = ("ready", "starting", "asleep", "waking")
"""States of replicas that count as those that are wanted."""
_IDLE = ("starting", "asleep", "waking")
"""States of replicas that go first."""
_UP = ("ready", "asleep", "waking")
"""States of replicas that serve, or would at once if they were asked to."""
_DRAIN_PERIOD_S = 0.5
"""Time between two looks at a replica whose running requests are to migrate away."""


class Lifecycle:
    """States of all replicas of a fleet whose number changes.

    A replica is ``off``, then ``starting`` (a machine, the image, the weights over the network, the engine), ``ready``,
    ``draining`` and ``off`` again; or ``down`` after a failure. Only ready ones take requests.

    Parameters
    ----------
    fleet : Fleet
        Built completely.
    streams : Streams
        Autoscalers draw from ``autoscaler.<pool>``.
    """

    def __init__(self, fleet: Fleet, streams: Streams, scenario: Scenario) -> None:
        self._fleet = fleet
        self._gateway = fleet.gateway
        self._streams = streams
        self.conversions = Conversions(self, fleet, scenario.conversions)
        """Replicas that become replicas of another pool."""
        self.wanted = [pool.config.replicas for pool in fleet.pools]
        """Replicas that each pool should have."""
        self.uptimes = [Uptime(pool.config.replicas) for pool in fleet.pools]
        """For how much of that there were some, by pool."""
        self.events: list[tuple[float, str, str | None, int | None, int]] = []
        """Time, kind, pool, replica over the fleet, count."""
        self.draining: dict[Replica, None] = {}
        """Replicas that take no more requests and still have some."""
        self._doomed: dict[Replica, None] = {}
        """Replicas that will fail soon, as they were warned."""
        self._starts: dict[Replica, int] = {}
        """Number of the start under way, so that steps of one that was called off do nothing."""
        self._start_count = 0
        self.faults_to_come = 0
        """Fault models that have something more to say."""
        self.stranding = Stranding(fleet)
        """Requests that nobody will ever take."""
        for replica, life in zip(fleet.replicas, fleet.lives, strict=True):
            if life.state == "off":
                self._gateway.presence.set_present(replica, False)
        if any(pool.config.drain == "migrate" for pool in fleet.pools):
            self._gateway.moves.follow()
        self.outages = Outages(fleet, self._note_reach)
        """Links that are cut or slow."""
        self.gateway_loss = GatewayLoss(fleet, self._note_all)
        """Gateways that are gone."""
        self.scalings = [Scaling(self, pool, fleet, streams) for pool in fleet.pools if pool.config.autoscaler]
        """Autoscalers at work."""
        self.steering: Steering | None = None
        """The one of all pools at work, if there is one."""
        if scenario.autoscaler is not None:
            seen = [Scaling(self, pool, fleet, streams) for pool in fleet.pools]
            self.steering = Steering(self, fleet, streams, scenario.autoscaler, seen)
        watched = self.scalings if self.steering is None else self.steering.pools
        if watched:
            self._gateway.on_first_token = self._first_token
            self._gateway.on_done = self._done
            self._by_pool = {scaling.pool.index: scaling for scaling in watched}

    def begin(self, scenario: Scenario) -> None:
        """Ask autoscalers for the first time one period from now, and let faults strike."""
        for scaling in self.scalings:
            scaling.begin()
        if self.steering is not None:
            self.steering.begin()
        site = self._site() if scenario.faults else None
        for number, choice in enumerate(scenario.faults):
            model = choice.located(self._fleet.base_dir).create(self._streams.get(f"faults.{number}"), site)
            self._strike_next(model.faults(), -inf)

    def _site(self) -> Site:
        """Where the replicas stand."""
        graph = self._fleet.network().graph
        servers: dict[str, list[int]] = {}
        racks: dict[str, list[int]] = {}
        for replica in self._fleet.replicas:
            node = graph.nodes[gpu(replica)]
            servers.setdefault(str(node["gates"][0]), []).append(replica.index)
            racks.setdefault(str(node["gates"][1]), []).append(replica.index)
        pools = {pool.name: tuple(replica.index for replica in pool.replicas) for pool in self._fleet.pools}
        sites: dict[str, list[int]] = {}
        for replica in self._fleet.replicas:
            name = self._fleet.pool_of[replica.index].config.site
            if name is not None:
                sites.setdefault(name, []).append(replica.index)
        return Site(
            pools,
            tuple(map(tuple, servers.values())),
            tuple(map(tuple, racks.values())),
            tuple(links_at(graph, gpu(replica)) for replica in self._fleet.replicas),
            tuple(links_between(graph, server, graph.nodes[server]["gates"][:1]) for server in servers),
            tuple(links_between(graph, rack, graph.nodes[rack]["gates"][:1] or ("store", "gateway")) for rack in racks),
            links_at(graph, "gateway"),
            links_at(graph, "store") if "store" in graph else (),
            {name: tuple(members) for name, members in sites.items()},
            {name: links_between(graph, f"wan:{name}", _wide(graph, name)) for name in sites},
            tuple(pool.config.parallelism.accelerators for pool in self._fleet.pool_of),
        )

    # --- faults ------------------------------------------------------------------------------------------------------

    def _strike_next(self, faults: Iterator[Fault], after_s: float) -> None:
        """Wait for the next fault of a model."""
        fault = next(faults, None)
        if fault is None:
            return
        if not max(after_s, 0.0) <= fault.time_s < inf:
            raise PolicyError(f"a fault model names {fault.time_s} s after {after_s} s")
        self.faults_to_come += 1
        self._fleet.clock.at(fault.time_s, partial(self._strike, faults, fault))

    def _strike(self, faults: Iterator[Fault], fault: Fault) -> None:
        self.faults_to_come -= 1
        if not self._fleet.active:
            return
        if fault.kind == "end":
            raise DataError(
                Finding(
                    f"a trace of faults ends at {fault.time_s:g} s, before the run does",
                    hint="repeat it (`repeat: true`), or end the run before (`run.horizon`)",
                )
            )
        if fault.kind in ("fail", "repair", "warn", "slow"):
            self._strike_replicas(fault)
        else:
            self._strike_rest(fault)
        self._strike_next(faults, fault.time_s)

    def _strike_rest(self, fault: Fault) -> None:
        """What strikes the network, the gateways or what lies below the replicas' memory."""
        if fault.kind == "link":
            self.outages.begin(fault.links, fault.factor)
        elif fault.kind == "link_back":
            self.outages.end(fault.links, fault.factor)
        elif fault.kind == "gateway":
            self.gateway_loss.begin(fault.factor)
        elif fault.kind == "gateway_back":
            self.gateway_loss.end(fault.factor)
        else:
            self._strike_tiers(fault)

    def _strike_replicas(self, fault: Fault) -> None:
        for index in fault.replicas:
            replica = self._fleet.replicas[index]
            if fault.kind == "fail":
                self.fail(replica, fault.name)
            elif fault.kind == "repair":
                self.repair(replica)
            elif fault.kind == "slow":
                self._note("replica_slow" if fault.factor != 1.0 else "replica_as_usual", replica)
                replica.at_boundary(partial(replica.slow_down, fault.factor))
            elif self._fleet.lives[index].state == "ready":
                self._note("interruption_notice", replica)
                self.conversions.failed(replica)
                self._doomed[replica] = None
                self.leave(replica)
                self._replace(replica)

    def _strike_tiers(self, fault: Fault) -> None:
        """Lose or corrupt what lies below the memory of some replicas, or in the store; the event says how many blocks."""
        struck: dict[int, Tier] = {}
        for pool in self._fleet.pools:
            for replica, tiers in zip(pool.replicas, pool.tiers, strict=False):
                if fault.tier == "store" or replica.index in fault.replicas:
                    struck |= {id(place.tier): place.tier for place in tiers.places if place.tier.name == fault.tier}
        if not struck:
            message = f"faults strike the tier {fault.tier} of replicas that have none"
            raise DataError(Finding(message, hint="give their pool engine.kv.tiers, or strike another tier"))
        lose = fault.kind == "lose_cache"
        blocks = sum(tier.lose() if lose else tier.corrupt(fault.factor) for tier in struck.values())
        kind = "cache_lost" if lose else "cache_corrupted"
        self.events.append((self._fleet.clock.now_s, kind, None, None, blocks))

    # --- from outside ------------------------------------------------------------------------------------------------

    def want(self, pool: Pool, replicas: int) -> None:
        """Have so many replicas of a pool, those that are starting included."""
        if self.wanted[pool.index] != replicas:
            self.wanted[pool.index] = replicas
            self.count_up(pool)
        replicas -= self.conversions.coming(pool)
        have = [
            r
            for r, life in zip(pool.replicas, pool.lives, strict=True)
            if life.state in _WANTED and r not in self.conversions.busy
        ]
        for _ in range(replicas - len(have)):
            replica = self._next_to_start(pool)
            if replica is None:
                return
            self.start(replica)
        for replica in self._first_to_go(have)[: max(len(have) - replicas, 0)]:
            self.leave(replica)

    def start(self, replica: Replica) -> None:
        """Begin to start a replica; one that was leaving stays."""
        life, now_s = self._fleet.lives[replica.index], self._fleet.clock.now_s
        if life.state == "draining":
            del self.draining[replica]
            self._enter(replica, "ready", "drain_cancelled")
            return
        self._start_count += 1
        self._starts[replica] = self._start_count
        self._enter(replica, "starting", "replica_starting")
        startup = self._fleet.pool_of[replica.index].config.startup
        self._fleet.clock.at(
            now_s + startup.provision + startup.image, partial(self._load_weights, replica, self._start_count)
        )

    def leave(self, replica: Replica) -> None:
        """Let a replica go: at once if it is only starting, else as its pool's `drain` says."""
        life = self._fleet.lives[replica.index]
        if life.state == "starting":
            self._starts.pop(replica, None)
            self._enter(replica, "off", "start_cancelled")
            return
        if life.state in ("asleep", "waking"):
            self._enter(replica, "off", "replica_off")
            return
        pool = self._fleet.pool_of[replica.index]
        drain = pool.config.drain
        if replica.index in pool.seats:
            pool.seats[replica.index].leave()
        self._enter(replica, "draining", "replica_draining")
        self.draining[replica] = None
        if drain == "kill":
            self._gateway.presence.kill(replica)
            self._gateway.presence.notice(replica)
        elif drain == "migrate":
            self._send_away(replica)
        self.look()

    def fail(self, replica: Replica, kind: str = "replica_failed") -> None:
        """A replica is gone with everything that is in its memory; the gateway notices after a while.

        One that is off is not there to be asked for until it is repaired.
        """
        life = self._fleet.lives[replica.index]
        if life.state == "down":
            return
        self.conversions.failed(replica)
        self.draining.pop(replica, None)
        self._doomed.pop(replica, None)
        self._starts.pop(replica, None)
        serving = life.state in ("ready", "draining")
        self._settle(replica)
        life.enter("down", self._fleet.clock.now_s)
        seat = self._fleet.pool_of[replica.index].seats.get(replica.index)
        if seat is not None:
            seat.fail()
        self.count_up(self._fleet.pool_of[replica.index])
        self._note(kind, replica)
        if self._gateway.presence.copies is not None:
            self._gateway.presence.copies.replica_failed(replica)
        if serving:
            self._gateway.presence.kill(replica)
            now_s = self._fleet.clock.now_s
            self._fleet.clock.at(now_s + self._fleet.detect_s, partial(self._notice, replica))
        else:
            self._replace(replica)

    def repair(self, replica: Replica) -> None:
        """A replica that was down may be started again: it is, if it is wanted."""
        if self._fleet.lives[replica.index].state == "down":
            self._enter(replica, "off", "replica_repaired")
            pool = self._fleet.pool_of[replica.index]
            self.want(pool, self.wanted[pool.index])

    def look(self) -> None:
        """Switch off those that have emptied."""
        for replica in [replica for replica in self.draining if replica.empty]:
            del self.draining[replica]
            self._enter(replica, "off", "replica_off")
            self.conversions.emptied(replica)

    # --- states ------------------------------------------------------------------------------------------------------

    def enter(self, replica: Replica, state: Any, kind: str) -> None:
        """Have a replica sleep or wake (`fleet/powering.py`)."""
        self._enter(replica, state, kind)

    def _settle(self, replica: Replica) -> None:
        """Let idle energy be counted before a state ends, where power is managed."""
        supply = self._fleet.pool_of[replica.index].supplies.get(replica.index)
        if supply is not None:
            supply.settle(self._fleet.clock.now_s)

    def _enter(self, replica: Replica, state: Any, kind: str, share: float = 1.0) -> None:
        self._settle(replica)
        self._fleet.lives[replica.index].enter(state, self._fleet.clock.now_s, share)
        self.count_up(self._fleet.pool_of[replica.index])
        self._note(kind, replica)
        self._gateway.presence.set_present(replica, state == "ready")

    def count_up(self, pool: Pool) -> None:
        """Note that other replicas of a pool are there, or can be reached, from now on, or that others are wanted."""
        behind = self.outages.behind
        up = sum(
            life.state in _UP and replica.index not in behind
            for replica, life in zip(pool.replicas, pool.lives, strict=True)
        )
        self.uptimes[pool.index].change(self._fleet.clock.now_s, up, self.wanted[pool.index])

    def _note(self, kind: str, replica: Replica) -> None:
        pool = self._fleet.pool_of[replica.index]
        self.events.append((self._fleet.clock.now_s, kind, pool.name, replica.index, 1))

    def _note_reach(self, kind: str, replica: Replica) -> None:
        self._note(kind, replica)
        self.count_up(self._fleet.pool_of[replica.index])

    def _note_all(self, kind: str) -> None:
        self.events.append((self._fleet.clock.now_s, kind, None, None, 1))

    @property
    def waits_for_repair(self) -> bool:
        """Whether requests go on once the network or a gateway is mended, and it may be."""
        return bool(self.faults_to_come) and (bool(self.outages.behind) or bool(self.gateway_loss.share))

    def _notice(self, replica: Replica) -> None:
        seat = self._fleet.pool_of[replica.index].seats.get(replica.index)
        if seat is not None:
            seat.noticed()
        self._gateway.presence.notice(replica)
        if self._fleet.lives[replica.index].state == "ready":  # it is back already
            if seat is not None:
                seat.back()
            self._gateway.presence.set_present(replica, True)
        self._replace(replica)

    def _replace(self, replica: Replica) -> None:
        """Start another one in place of one that is down, if there is any."""
        pool = self._fleet.pool_of[replica.index]
        self.want(pool, self.wanted[pool.index])

    def _next_to_start(self, pool: Pool) -> Replica | None:
        """A replica that is leaving, else the first that is off."""
        pairs = list(zip(pool.replicas, pool.lives, strict=True))
        taken = {**self._doomed, **self.conversions.busy}
        leaving = [r for r, life in pairs if life.state == "draining" and r not in taken]
        if leaving:
            return leaving[0]
        return next((r for r, life in pairs if life.state == "off" and r not in taken), None)

    def _first_to_go(self, replicas: Sequence[Replica]) -> list[Replica]:
        """Those that start first, then those with the least to do."""
        lives = self._fleet.lives

        def load(replica: Replica) -> tuple[bool, int, int]:
            busy = sum(len(batch.running) + len(batch.waiting) for batch in replica.batches) + len(replica.inbox)
            return lives[replica.index].state not in _IDLE, busy, -replica.index

        return sorted(replicas, key=load)

    # --- starting ----------------------------------------------------------------------------------------------------

    def _load_weights(self, replica: Replica, number: int) -> None:
        if self._starts.get(replica) != number:
            return
        pool = self._fleet.pool_of[replica.index]
        source = self._weights_at(replica)
        if source is None:
            self._init(replica, number)
            return
        seat = pool.seats.get(replica.index)
        llm = pool.llm if seat is None else seat.start().llm
        size_bytes = llm.weight_bytes(pool.config.engine.weights)
        self._fleet.network().transfer(source, gpu(replica), size_bytes, partial(self._init, replica, number))

    def _weights_at(self, replica: Replica, kind: str = "") -> str | None:
        """Endpoint in the network from which a replica's weights come; None if they are there."""
        pool, network = self._fleet.pool_of[replica.index], self._fleet.network
        kind = kind or pool.config.startup.weights
        if kind == "none":
            return None
        if kind == "store":
            return "store"
        if kind == "peer":
            for other, life in zip(pool.replicas, pool.lives, strict=True):
                if life.state == "ready" and _holds_same(pool, other, replica):
                    return gpu(other)
        host = str(network().graph.nodes[gpu(replica)]["host"])
        return host if kind == "host" else host.replace("host", "ssd")

    def _init(self, replica: Replica, number: int) -> None:
        if self._starts.get(replica) != number:
            return
        now_s = self._fleet.clock.now_s
        self._fleet.clock.at(
            now_s + self._fleet.pool_of[replica.index].config.startup.init, partial(self._ready, replica, number)
        )

    def _ready(self, replica: Replica, number: int) -> None:
        if self._starts.get(replica) != number:
            return
        del self._starts[replica]
        for batch in replica.batches:
            batch.cache.forget_all()
        seat = self._fleet.pool_of[replica.index].seats.get(replica.index)
        if seat is not None:
            seat.back()
        self._enter(replica, "ready", "replica_ready")

    # --- leaving -----------------------------------------------------------------------------------------------------

    def _send_away(self, replica: Replica) -> None:
        """Have waiting requests wait elsewhere, and running ones migrate, as far as others have room; again later for the rest."""
        if replica not in self.draining or not self._fleet.goes_on:
            return
        self._gateway.presence.send_elsewhere(replica)
        if not replica.empty:
            now_s = self._fleet.clock.now_s
            self._fleet.clock.at(now_s + _DRAIN_PERIOD_S, partial(self._send_away, replica))

    # --- what autoscalers are told -----------------------------------------------------------------------------------

    def _first_token(self, request: Request) -> None:
        scaling = self._by_pool.get(self._fleet.pool_of[request.replica].index)
        if scaling is not None and request.first_token_s == request.first_token_s:
            scaling.window.ttfts += 1
            ttft_s = request.first_token_s - request.arrival_s
            scaling.window.ttft_sum_s += ttft_s
            scaling.window.late += ttft_s > scaling.state.ttft_limit_s

    def _done(self, request: Request) -> None:
        if request.status != FINISHED:
            return
        scaling = self._by_pool.get(self._fleet.pool_of[request.replica].index)
        if scaling is None:
            return
        window = scaling.window
        window.finished += 1
        window.output_tokens += request.generated
        window.latency_sum_s += request.end_s - request.arrival_s
        if request.generated > 1:
            tpot_s = (request.end_s - request.first_token_s) / (request.generated - 1)
            window.tpots += 1
            window.tpot_sum_s += tpot_s
            window.slow += tpot_s > scaling.state.tpot_limit_s


class Scaling:
    """One pool's autoscaler at work; without one of its own, what that of the fleet sees of the pool."""

    def __init__(self, lifecycle: Lifecycle, pool: Pool, fleet: Fleet, streams: Streams) -> None:
        self.pool = pool
        self.window = Window()
        self._lifecycle = lifecycle
        self._fleet = fleet
        config = pool.config
        self.state = PoolState(
            pool.name,
            config.role,
            config.min_replicas,
            config.most_replicas,
            config.parallelism.accelerators,
            int(getattr(config.engine.scheduler.config, "max_seqs", 256)) * config.parallelism.dp,
            pool.capacity_tokens * config.parallelism.dp,
            lifecycle_startup_s(fleet, pool),
            lambda tokens: pool.prefill_time().seconds(tokens, 0.0),
            lambda batch, tokens: pool.decode_time().seconds(batch, tokens),
        )
        self._streams = streams
        if config.forecaster is not None:
            self.state.new_forecaster = self._new_forecaster
        self.state.max_seqs = self.state.slots // config.parallelism.dp
        self.state.at_clock = profiles(pool)
        if config.autoscaler is not None and config.autoscaler.says("knows_future") and fleet.future is not None:
            self.state.future = Known(fleet.future, pool.llm.name)
        slo = fleet.slo
        if slo is not None:
            self.state.ttft_limit_s = inf if slo.ttft is None else slo.ttft
            self.state.tpot_limit_s = inf if slo.tpot is None else slo.tpot
        if config.autoscaler is not None:
            self.use(config.autoscaler.create(streams.get(f"autoscaler.{pool.name}"), self.state))
        self._seats = self.state.max_seqs
        self._busy_s = self._on_s = self._last_s = 0.0
        self._came = self._came_tokens = 0
        self._busy_each_s = [0.0] * len(pool.replicas)
        self._were_off = [False] * len(pool.replicas)

    def use(self, policy: Any) -> None:
        """Ask this policy from now on.

        Raises
        ------
        PolicyError
            If its period is no time.
        """
        period_s = policy.period_s
        if not (isinstance(period_s, float | int) and 0.0 < period_s < inf):
            raise PolicyError(f"autoscaler {type(policy).__name__} wants to be asked every {period_s!r} s")
        self._policy, self._period_s = policy, float(period_s)

    def _new_forecaster(self, what: What, period_s: float) -> Forecaster:
        """One of the kind that the scenario names."""
        choice, fleet, llm = self.pool.config.forecaster, self._fleet, self.pool.llm.name
        assert choice is not None
        truth = None
        if choice.says("knows_future") and fleet.future is not None:
            truth = partial(Known(fleet.future, llm).between, what)
        rng = self._streams.get(f"forecaster.{self.pool.name}.{what}")
        forecaster: Forecaster = choice.create(rng, Series(period_s, truth))
        return forecaster

    def begin(self) -> None:
        """Ask for the first time one period from now."""
        self._fleet.clock.at(self._fleet.clock.now_s + self._period_s, self._tick)

    def _tick(self) -> None:
        fleet = self._fleet
        if not fleet.goes_on:
            return
        self.observe()
        answer = self._policy.tick()
        if not (isinstance(answer, int | float) and isfinite(answer)):
            raise PolicyError(f"the autoscaler of {self.pool.name} wants {answer!r} replicas")
        wanted = self.state.clip(int(answer))
        if wanted != self.state.wanted:
            note = (fleet.clock.now_s, "replicas_wanted", self.pool.name, -1, wanted)
            self._lifecycle.events.append(note)
        self._lifecycle.want(self.pool, wanted)
        self._seat()
        self.begin()

    def _seat(self) -> None:
        """Let as many requests run at a time as the policy says, if it does, from the next step on."""
        seats = getattr(self._policy, "max_seqs", None)
        if seats is None or seats == self._seats:
            return
        if type(seats) is not int or not 1 <= seats <= self.state.max_seqs:
            raise PolicyError(f"the autoscaler of {self.pool.name} lets {seats!r} of 1 to {self.state.max_seqs} run")
        self._seats, self.state.slots = seats, seats * self.pool.config.parallelism.dp
        let_run(self.pool, seats)

    def _outside(self) -> list[Request]:
        """Requests that wait at the gateway for a replica to come, or to have room."""
        gateway = self._fleet.gateway
        return [*gateway.presence.waiting_room, *gateway.holding.requests()]

    def _seen(self, now_s: float) -> list[Replica]:
        """Replicas that are not off, with what all have been busy for brought up to date: those that are off do nothing."""
        pool, there = self.pool, []
        for place, (replica, life) in enumerate(zip(pool.replicas, pool.lives, strict=True)):
            off = life.state == "off"
            if not off:
                there.append(replica)
            if not off or not self._were_off[place]:
                self._busy_each_s[place] = replica.meter(now_s).busy_s
                self._were_off[place] = off
        return there

    def observe(self) -> None:
        """Bring the state up to date, and begin a new window."""
        state, pool, now_s, gateway = self.state, self.pool, self._fleet.clock.now_s, self._fleet.gateway
        states = [life.state for life in pool.lives]
        state.elapsed_s, self._last_s = now_s - self._last_s, now_s
        state.now_s = now_s
        state.wanted = self._lifecycle.wanted[pool.index]
        state.ready, state.starting = states.count("ready"), states.count("starting")
        state.draining = states.count("draining")
        there = self._seen(now_s)
        state.running = sum(len(batch.running) for r in there for batch in r.batches)
        state.waiting = sum(len(batch.waiting) for r in there for batch in r.batches)
        state.waiting += sum(len(r.inbox) + len(r.held) for r in there)
        outside = [
            r.prompt_tokens
            for r in (self._outside() if pool.config.role != "decode" else ())
            if r.model is None or r.model == pool.llm.name
        ]
        state.waiting_outside = len(outside)
        here = [r for r, life in zip(pool.replicas, pool.lives, strict=True) if life.state == "ready"]
        used = [r.kv_used_blocks(now_s) for r in here]
        room = pool.capacity_blocks * pool.config.parallelism.dp
        state.kv_used_ratio = sum(used) / (len(used) * room) if used else 0.0
        busy_s = sum(self._busy_each_s)
        on_s = pool.on_s(now_s)
        state.busy_ratio = (busy_s - self._busy_s) / (on_s - self._on_s) if on_s > self._on_s else 0.0
        self._busy_s, self._on_s = busy_s, on_s
        window, self.window = self.window, Window()
        came, tokens = gateway.sent[pool.index] + len(outside), gateway.sent_tokens[pool.index] + sum(outside)
        window.arrivals, self._came = max(came - self._came, 0), came
        window.prompt_tokens, self._came_tokens = max(tokens - self._came_tokens, 0), tokens
        state.window = window


def let_run(pool: Pool, seats: int) -> None:
    """Let so many requests run at a time on each data-parallel rank of a pool, from the next step on."""
    for replica in pool.replicas:
        scheduler: Any = replica.scheduler
        scheduler.max_seqs = seats
        for batch in replica.batches:
            batch.seats = seats
        if replica.inbox or any(batch.waiting for batch in replica.batches):
            replica.at_boundary(_look)


def _wide(graph: Any, site: str) -> list[str]:
    """Where the links of a site to all others end."""
    return [node for node in graph.successors(f"wan:{site}") if node.startswith("wan:")]


def _holds_same(pool: Pool, other: Replica, replica: Replica) -> bool:
    """Whether a replica holds the LLM that another one of its pool will hold."""
    seat = pool.seats.get(other.index)
    return seat is None or bool(seat.place.holds == pool.seats[replica.index].place.last)


def _look() -> None:
    """Nothing but an end of the leap."""


def lifecycle_startup_s(fleet: Fleet, pool: Pool) -> float:
    """Time to start one replica of a pool when nothing else moves [s]."""
    startup = pool.config.startup
    seconds = startup.provision + startup.image + startup.init
    if startup.weights == "none":
        return seconds
    network, replica = fleet.network(), pool.replicas[0]
    host = str(network.graph.nodes[gpu(replica)]["host"])
    source = {"host": host, "store": "store"}.get(startup.weights, host.replace("host", "ssd"))
    return seconds + network.idle_s(source, gpu(replica), pool.llm.weight_bytes(pool.config.engine.weights))
