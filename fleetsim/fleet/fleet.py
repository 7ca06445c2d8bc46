"""The fleet at run time: gateway, pools and replicas, wired to a clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleetsim.engine.api import Scheduler
from fleetsim.engine.batch import Batch
from fleetsim.engine.compressions.between_turns import BetweenTurns
from fleetsim.engine.encoding import EncodeStage
from fleetsim.engine.evictions.api import CacheView, prefill_cost
from fleetsim.engine.kv_tiers.build import attach_tiers, shared_store
from fleetsim.engine.kv_tiers.replica_tiers import ReplicaTiers
from fleetsim.engine.kv_tiers.tier import Tier
from fleetsim.engine.orders.order import Outlook
from fleetsim.engine.replica import Replica
from fleetsim.engine.swap import Swap
from fleetsim.errors import LawError
from fleetsim.fleet.copies import Copies
from fleetsim.fleet.gateway import Gateway
from fleetsim.fleet.ledger import Ledger
from fleetsim.fleet.life import Life
from fleetsim.fleet.lifecycle import Lifecycle
from fleetsim.fleet.pool import Pool, describe_pool
from fleetsim.fleet.powering import Powering
from fleetsim.fleet.rebalance import Rebalancing, rebalancings
from fleetsim.fleet.swapping import Swapping
from fleetsim.fleet.tariffs import Tariffs, places_of
from fleetsim.fleet.ways import Ways
from fleetsim.kernel.clock import Clock
from fleetsim.kernel.streams import Streams
from fleetsim.network.flows import Network
from fleetsim.placement.on_demand import OnDemandConfig
from fleetsim.plugins import Choice
from fleetsim.routing.places import Places
from fleetsim.scaling.future import Future
from fleetsim.scenario.schema import KvTiers, Scenario, Slo
from fleetsim.workload.request import FINISHED, UNFINISHED, Request, Workload, each_released

if TYPE_CHECKING:
    from fleetsim.fleet.answering import Answering


class Fleet:
    """Takes requests from a workload, lets the router choose, and reports each request when it ends.

    Parameters
    ----------
    scenario : Scenario
        The validated scenario.
    base_dir : Path
        Where relative paths begin.
    clock : Clock
        The event queue.
    streams : Streams
        Named random streams; routers draw from ``router.<LLM>``.
    on_end : callable
        Called with every request that reached a terminal state.
    verify_every : int
        Recount all books at every n-th boundary of each replica; 0 never.
    future : Future, optional
        What will come; only for policies that say that they know it.
    """

    def __init__(
        self,
        scenario: Scenario,
        base_dir: Path,
        clock: Clock,
        streams: Streams,
        on_end: Callable[[Request], None],
        verify_every: int = 0,
        future: Future | None = None,
    ) -> None:
        self.clock = clock
        self.future = future
        """What will come, where a policy of the scenario says that it knows."""
        self.base_dir = base_dir
        self._scenario = scenario
        self._streams = streams
        self.on_end = on_end
        self.pools = [describe_pool(config, index, base_dir) for index, config in enumerate(scenario.pools)]
        self.replicas: list[Replica] = []
        self.pool_of: list[Pool] = []
        self.lives: list[Life] = []
        """State of each replica."""
        self.arrived = 0
        self.ended = 0
        self.last_end_s = 0.0
        self.unlocked = 0
        """Requests computed again because replicas waited for each other's room."""
        self.exhausted = False
        """Whether the workload has no more arrivals of its own."""
        self.expected = 0
        """Later turns that have been released and have not arrived yet."""
        self._verify_every = verify_every
        self._network: Network | None = None
        self._stores: dict[tuple[str, str, int], Tier] = {}
        """The remote store's part for each LLM, type of keys and values, and block size."""
        self.tariffs = Tariffs(scenario, base_dir, [pool.accelerator for pool in self.pools])
        """What machines and energy cost, where and when."""
        self.ledger: Ledger | None = None
        """Charges at these prices, where they change over time or from site to site."""
        for pool in self.pools:
            self._build(pool)
        self.gateway = Gateway(scenario, clock, streams, self.replicas, self.pool_of, self.network, self.end)
        if not self.tariffs.constant:
            self.ledger = self.gateway.ledger = Ledger(self, self.tariffs)
        self.ways: Ways | None = None
        """How far it is between sites, where there are any."""
        if scenario.sites:
            self.ways = self.gateway.ways = Ways(scenario, self.pool_of)
        if self.ways is not None or self.tariffs.reports_carbon or self.tariffs.reports_electricity:
            self.gateway.places = self._places
        self.take = self.front = self.gateway.take
        """Where requests come in; `front` is where, as long as a gateway is there."""
        self.copies: Copies | None = None
        """Copies of keys and values of running requests, where any are made."""
        if scenario.gateway.on_failure.copies is not None:
            self.copies = Copies(self, scenario.gateway.on_failure.copies)
        for replica in self.replicas:
            replica.on_finish = self.gateway.done
        self.lifecycle: Lifecycle | None = None
        """Starts and stops replicas, where their number changes."""
        grows = any(p.config.autoscaler is not None or len(p.replicas) > p.config.replicas for p in self.pools)
        if grows or scenario.faults or scenario.power or scenario.autoscaler is not None:
            self.lifecycle = Lifecycle(self, streams, scenario)
        self.powering: Powering | None = None
        """Sets clocks, caps and sleep states, and follows temperatures, where any of that changes."""
        if scenario.power or any(pool.config.power.thermal is not None for pool in self.pools):
            self.powering = Powering(scenario, self, streams)
        self.swapping = self._swapping()
        """Replicas that change their LLM, if there are any."""
        self._rebalancings: list[Rebalancing] = []
        for rebalancing in rebalancings(scenario, streams, self):
            self.rebalance(rebalancing)
        self.answering: Answering | None = None
        """Lets a model router decide who answers, where there is one."""
        if scenario.gateway.model_router is not None:
            from fleetsim.fleet.answering import Answering  # which loads SciPy: other fleets need not

            self.answering = Answering(self, scenario, streams)
            self.take = self.front = self.answering.take
        self._workload: Workload | None = None
        self._source: Iterator[Request] = iter(())
        self._next: Request | None = None

    # --- construction ------------------------------------------------------------------------------------------------

    def _build(self, pool: Pool) -> None:
        config, engine = pool.config, pool.config.engine
        scheduler = engine.scheduler.create()
        outlook = Outlook(pool.model, getattr(scheduler, "max_batched_tokens", 0))
        for number in range(config.most_replicas):
            batches = [self._batch(pool, len(self.replicas), rank, outlook) for rank in range(config.parallelism.dp)]
            replica = Replica(
                len(self.replicas),
                self.clock,
                pool.model,
                scheduler,
                batches,
                pool.gaps,
                self.end,
                engine.step_by_step,
                self._verify_every,
                pool.llm.layers,
                pool.suspended_tokens,
            )
            if config.encoder is not None:
                replica.encoder = EncodeStage(
                    replica,
                    pool.encode_time,
                    config.encoder.max_images,
                    config.encoder.order == "last",
                    config.encoder.step_target,
                    config.encoder.max_wait,
                    pool.pay_encoding if self.tariffs.constant else partial(self._pay_encoding, len(self.replicas)),
                )
            life = Life("ready" if number < config.replicas else "off")
            self.replicas.append(replica)
            self.lives.append(life)
            self.pool_of.append(pool)
            pool.replicas.append(replica)
            pool.lives.append(life)
            if engine.kv.tiers is not None:
                pool.tiers.append(self._with_tiers(pool, replica, engine.kv.tiers))
            if engine.kv.compression is not None:
                config_of: Any = engine.kv.compression.config
                if getattr(config_of, "kept_episodes", 0):
                    pool.between_turns.append(self._with_sessions(pool, replica, config_of))
            if engine.kv.preemption.mode == "swap":
                pool.swaps.append(self._with_swap(pool, replica))

    def _places(self, chosen: Sequence[int]) -> Places:
        """What policies may know of where some replicas stand."""
        return places_of(self.tariffs, self.ways, self.pool_of, chosen, partial(self._spent_g, chosen))

    def _spent_g(self, chosen: Sequence[int]) -> float:
        """Greenhouse gases of the steps of some replicas until now, with servers and cooling [g]."""
        now_s = self.clock.now_s
        if self.ledger is not None:
            return self.ledger.total(chosen, now_s)[0].carbon_g
        grams = 0.0
        for index in chosen:
            pool, meter = self.pool_of[index], self.replicas[index].meter(now_s)
            rates = self.tariffs.rates(pool.index, now_s)
            grams += rates.g_per_j * rates.pue * (meter.energy_j + pool.host_busy_w * meter.busy_s)
        return grams

    def _pay_encoding(self, replica: int, request: Request, seconds: float) -> None:
        """Charge a request for its share of a pass of an encoder, where prices change."""
        assert self.ledger is not None
        self.ledger.charge_encoding(replica, request, seconds)

    def _swapping(self) -> Swapping | None:
        """What decides about replicas that change their LLM, and about requests for them."""
        chosen = [replica for replica in self.replicas if self.pool_of[replica.index].swapping]
        if not chosen:
            return None
        choice = self._scenario.gateway.placement or Choice("placements", "on-demand", OnDemandConfig())
        pools = [self.pool_of[replica.index] for replica in chosen]
        rng = self._streams.get("placement")
        swapping = Swapping(
            self.gateway,
            self.clock,
            chosen,
            pools,
            choice,
            rng,
            self.network,
            self._engine_of,
            self._carbon_of,
            lambda: self.stranded,
        )
        self.gateway.swapping = swapping
        return swapping

    def _carbon_of(self, pool: Pool) -> float:
        """Carbon intensity where a pool stands, now and with cooling; 0 where nobody says [g/kWh]."""
        prices = self.tariffs.energy[pool.index]
        return 0.0 if prices.carbon is None else prices.pue * prices.carbon.at(self.clock.now_s)

    def _engine_of(self, pool: Pool, replica: int) -> tuple[Scheduler, list[Batch]]:
        """A scheduler and empty batches for a replica."""
        scheduler: Scheduler = pool.config.engine.scheduler.create()
        outlook = Outlook(pool.model, getattr(scheduler, "max_batched_tokens", 0))
        return scheduler, [self._batch(pool, replica, rank, outlook) for rank in range(pool.config.parallelism.dp)]

    def _with_tiers(self, pool: Pool, replica: Replica, config: KvTiers) -> ReplicaTiers:
        """Give a replica the tiers below its memory."""
        kv, network = pool.config.engine.kv, self.network()
        block_bytes = kv.block_tokens * pool.kv_bytes_per_token
        store = None
        if config.store is not None and self._scenario.network.store is not None:
            key = (pool.llm.name, kv.dtype, kv.block_tokens)
            store = self._stores.get(key)
            if store is None:
                store = self._stores[key] = shared_store(self._scenario.network.store.capacity, block_bytes)
        host = str(network.graph.nodes[f"gpu:{replica.index}"]["host"])
        return attach_tiers(replica, config, network, host, block_bytes, pool.llm.layers, store)

    def _with_sessions(self, pool: Pool, replica: Replica, config: Any) -> BetweenTurns:
        """Let a replica keep compressed caches of conversations between their turns."""
        network = self.network()
        compression = replica.batches[0].compression
        assert compression is not None
        return BetweenTurns(
            replica,
            network,
            str(network.graph.nodes[f"gpu:{replica.index}"]["host"]),
            compression,
            config.host_capacity,
            config.kept_episodes,
            config.accuracy,
            self._scenario.seed,
            pool.kv_bytes_per_token,
        )

    def _with_swap(self, pool: Pool, replica: Replica) -> Swap:
        """Let a replica copy what preempted requests had to its host."""
        kv, network = pool.config.engine.kv, self.network()
        block_bytes = kv.block_tokens * pool.kv_bytes_per_token
        room = kv.preemption.capacity * pool.config.parallelism.accelerators
        host = str(network.graph.nodes[f"gpu:{replica.index}"]["host"])
        swap = Swap(kv.preemption, network, replica, host, int(room / block_bytes), block_bytes, pool.llm.layers)
        replica.swap = swap
        for batch in replica.batches:
            batch.swap = swap
        return swap

    def network(self) -> Network:
        """What carries keys and values between replicas, built when it is first needed."""
        if self._network is None:
            from fleetsim.network.topology import build_graph  # costs start-up time where nothing is ever sent

            self._network = Network(self.clock, build_graph(self._scenario))
        return self._network

    @property
    def network_bytes(self) -> float:
        """What arrived over the network so far [bytes]."""
        return 0.0 if self._network is None else self._network.arrived_bytes

    def _batch(self, pool: Pool, replica: int, rank: int, outlook: Outlook) -> Batch:
        """One rank's running set, queue and cache; first come, first served and least recently used need no objects."""
        engine = pool.config.engine
        kv = engine.kv
        eviction = view = None
        if engine.prefix_cache and kv.eviction.name != "lru":
            clock = self.clock
            view = CacheView(pool.capacity_blocks, kv.block_tokens, lambda: clock.now_s, *prefill_cost(pool.model))
            eviction = kv.eviction.create(self._streams.get(f"eviction.{replica}.{rank}"), view)
        order = None if engine.order.name == "fcfs" else engine.order.create(outlook)
        if order is not None and getattr(order, "draws", False):
            order.rng = self._streams.get(f"order.{replica}.{rank}")
        compression = None if kv.compression is None else kv.compression.create(pool.llm.layers)
        return Batch(
            pool.capacity_blocks,
            kv.block_tokens,
            engine.prefix_cache,
            kv.retain_unmatched,
            order,
            eviction,
            view,
            compression,
            None if kv.reuse is None else kv.reuse.create(self._scenario.seed),
        )

    def rebalance(self, rebalancing: Rebalancing) -> None:
        """Let a rebalancer move requests from the beginning of the run on."""
        self.gateway.moves.follow()
        self._rebalancings.append(rebalancing)

    # --- arrivals ----------------------------------------------------------------------------------------------------

    def feed(self, workload: Workload) -> None:
        """Begin to take requests from `workload`: one pending arrival at a time."""
        self._workload = workload
        self._source = workload.requests()
        self.clock.on_arrival = self._arrival
        self._pull()
        for rebalancing in self._rebalancings:
            rebalancing.begin()
        if self.lifecycle is not None:
            self.lifecycle.begin(self._scenario)
        if self.powering is not None:
            self.powering.begin()
        if self.ledger is not None:
            self.ledger.begin()
        if self.answering is not None:
            self.answering.begin()

    @property
    def detect_s(self) -> float:
        """Time until the gateway notices that a replica is gone [s]."""
        return self._scenario.gateway.on_failure.detect

    @property
    def slo(self) -> Slo | None:
        """The service-level objective."""
        return self._scenario.slo

    def uptime(self, pool: Pool, now_s: float) -> tuple[float, float]:
        """Replica time that a pool wanted until now, and of that available [s]."""
        if self.lifecycle is None:
            return pool.config.replicas * now_s, pool.config.replicas * now_s
        return self.lifecycle.uptimes[pool.index].until(now_s)

    def wanted(self, pool: Pool) -> int:
        """Replicas that a pool should have."""
        return pool.config.replicas if self.lifecycle is None else self.lifecycle.wanted[pool.index]

    @property
    def active(self) -> bool:
        """Whether requests are under way or to come."""
        return not self.exhausted or bool(self.in_flight) or bool(self.expected)

    @property
    def goes_on(self) -> bool:
        """Whether clocks that tick while requests are about should go on ticking."""
        if not self.active:
            return False
        if self.at_rest:
            return bool(self.gateway.presence.waiting_room)
        return not self.stranded

    @property
    def stranded(self) -> bool:
        """Whether all requests that are under way wait for replicas that are gone for good."""
        return self.lifecycle is not None and self.lifecycle.stranding.over()

    def _pull(self) -> None:
        """Wait for the next arrival."""
        request = next(self._source, None)
        self._next = request
        if request is None:
            self.exhausted = True
            self.clock.arrival_s = inf
        else:
            self.clock.arrival_s = request.arrival_s

    def _arrival(self) -> None:
        request = self._next
        assert request is not None
        self._admit(request)
        self._pull()

    def _admit(self, request: Request) -> None:
        self.arrived += 1
        self.take(request)

    def end(self, request: Request) -> None:
        """Record a request that ended, and take what its end releases."""
        self.ended += 1
        self.last_end_s = self.clock.now_s
        if self.ledger is not None:
            self.ledger.charge(request)
        unnamed = self.swapping is not None and self.swapping.name_answer(request)
        self.on_end(request)
        if self.lifecycle is not None and self.lifecycle.draining:
            self.lifecycle.look()
        if self._workload is not None:
            released = self._workload.released_by(request, self._answered_s(request))
            if released is not None:
                for follower in each_released(released):
                    self.expected += 1
                    if unnamed:
                        follower.model = None  # nor do later turns name one
                    self.clock.at(follower.arrival_s, partial(self._admit_later_turn, follower))

    def _answered_s(self, request: Request) -> float:
        """When the answer of a request that ends now is where the request came from."""
        if self.ways is None or request.replica < 0:
            return self.clock.now_s
        return self.clock.now_s + self.ways.back_s(request.origin, request.replica)

    def _admit_later_turn(self, request: Request) -> None:
        self.expected -= 1
        self._admit(request)

    @property
    def at_rest(self) -> bool:
        """Whether nothing will happen any more by itself."""
        if not self.exhausted or self.expected or self.gateway.outside or self.gateway.images.encoding:
            return False
        if self.answering is not None and self.answering.thinking:
            return False
        if self.lifecycle is not None and self.lifecycle.waits_for_repair:
            return False
        moving = self._network is not None and self._network.busy
        return not moving and all(replica.timer is None and not replica.held for replica in self.replicas)

    def unlock(self) -> bool:
        """Where nothing happens any more although requests are under way, do something about it; False if that cannot help.

        Requests that nobody will ever take fail. Else one is computed again: replicas that hand requests over to each other may be
        full of blocks that wait for room on the other one. The oldest request that waits so gives up what was computed of it.
        """
        if self.lifecycle is not None and self.lifecycle.stranding.fail():
            return True
        waiting = [
            r for replica in self.replicas for batch in replica.batches for r in batch.waiting if r.carrier is not None
        ]
        if not waiting:
            return False
        request = min(waiting, key=lambda r: (r.arrival_s, r.id))
        assert request.carrier is not None
        request.carrier.release()
        request.carrier = None
        request.carried_tokens = 0
        request.preemptions += 1
        self.unlocked += 1
        return True

    # --- the end -----------------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Requests that arrived and have not ended."""
        return self.arrived - self.ended

    @property
    def unsettled(self) -> bool:
        """Whether copies of requests are computed in vain that nobody has stopped."""
        return self.lifecycle is not None and bool(self.lifecycle.outages.ghosts)

    def stop(self) -> None:
        """End the run here: what waits or runs is unfinished."""
        self._workload = None
        now_s = self.clock.now_s
        gateway = self.gateway
        left = [request for replica in self.replicas for request in replica.stop(now_s)]
        if self.lifecycle is not None:
            left = self.lifecycle.outages.stop(left)
        left = gateway.patience.without_copies([*left, *gateway.left()])
        if self.answering is not None:
            left = self.answering.parents_of(left)
        for request in left:
            if request.status != FINISHED:
                request.status = UNFINISHED
            self.ended += 1
            if self.ledger is not None:
                self.ledger.charge(request)
            if self.swapping is not None:
                self.swapping.name_answer(request)
            self.on_end(request)

    def _verify_loans(self) -> None:
        """Check that blocks which requests have elsewhere are kept there, once each, and that none are when all have ended."""
        batches = [batch for replica in self.replicas for batch in replica.batches]
        hosted = [id(loan) for batch in batches for loan in batch.hosted]
        borrowed = [id(loan) for batch in batches for loans in batch.borrowed.values() for loan in loans]
        if len(set(hosted)) < len(hosted) or len(set(borrowed)) < len(borrowed) or not set(borrowed) <= set(hosted):
            raise LawError("law 3 (KV blocks): a request has blocks elsewhere that nobody keeps for it, or keeps twice")
        if hosted and not any(batch.running for batch in batches) and self._workload is not None:
            raise LawError("law 3 (KV blocks): blocks are kept for requests of other replicas that have ended")

    def verify_conservation(self) -> None:
        """Check that every request that arrived has ended: always, since a row would be missing without a word.

        Raises
        ------
        LawError
            If a request was lost.
        """
        if self.in_flight:
            raise LawError(f"law 1 (conservation): {self.arrived} requests arrived, {self.ended} ended")

    def verify(self, end_s: float) -> None:
        """Check the laws that hold at the end of a run.

        Raises
        ------
        LawError
            If one does not.
        """
        self.verify_conservation()
        if self._network is not None:
            self._network.verify()
        for tiers in (tiers for pool in self.pools for tiers in pool.tiers):
            for place in tiers.places:
                place.tier.verify()
        for between in (between for pool in self.pools for between in pool.between_turns):
            between.verify()
        for swap in (swap for pool in self.pools for swap in pool.swaps):
            swap.verify()
        self._verify_loans()
        for part in (self.answering, self.swapping, self.powering):
            if part is not None:
                part.verify(end_s)
        for replica in self.replicas:
            meter = replica.meter(end_s)
            on_s = self.lives[replica.index].on_s(end_s)
            if not -1e-9 <= meter.busy_s <= on_s * (1 + 1e-9) + 1e-9:
                raise LawError(f"law 4 (busy time): replica {replica.index} busy {meter.busy_s} s of {on_s} s")
            for batch in replica.batches:
                batch.verify()
                if batch.cache.used and not (batch.running or batch.parked or batch.reserved or batch.hosted):
                    raise LawError(f"law 3 (KV blocks): replica {replica.index} leaks {batch.cache.used} blocks")
