"""Replicas that become replicas of another pool on the accelerators that they have: another shape, or another role."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from fleetsim.catalog.memory import weight_bytes_per_accelerator
from fleetsim.engine.replica import Replica
from fleetsim.fleet.handover import Handover, gpu
from fleetsim.network.flows import Flow
from fleetsim.scenario import schema
from fleetsim.workload.request import REJECTED, TIMED_OUT, Request

if TYPE_CHECKING:
    from fleetsim.fleet.fleet import Fleet
    from fleetsim.fleet.lifecycle import Lifecycle
    from fleetsim.fleet.pool import Pool


class Conversions:
    """All that are under way.

    Every pool has its own replicas, most of them off; what turns is what their accelerators do. The one of the new pool stands in
    for the old one from an instant on, and until then is paid for by what it has more of.
    """

    def __init__(self, lifecycle: Lifecycle, fleet: Fleet, ways: Sequence[schema.Conversion]) -> None:
        self.lifecycle = lifecycle
        self.fleet = fleet
        pools = {pool.name: pool for pool in fleet.pools}
        self.ways = {(way.source, way.target): way for way in ways}
        self.pools = pools
        self.busy: dict[Replica, Conversion] = {}
        """Replicas that turn, and those that they will be: nobody else starts or stops them."""

    def coming(self, pool: Pool) -> int:
        """Replicas of other pools that will be this one's."""
        return len({change for change in self.busy.values() if change.pool is pool})

    def under_way(self, source: str, target: str) -> int:
        """How many are on this way."""
        return len({c for c in self.busy.values() if (c.way.source, c.way.target) == (source, target)})

    def begin(self, source: str, target: str, count: int) -> int:
        """Let ready replicas turn, those with the least to do, as far as both pools' bounds allow; how many do."""
        way, wanted = self.ways[source, target], self.lifecycle.wanted
        old, new = self.pools[source], self.pools[target]
        ready = [
            replica
            for replica, life in zip(old.replicas, old.lives, strict=True)
            if life.state == "ready" and replica not in self.busy
        ]
        begun = 0
        for replica in self.lifecycle._first_to_go(ready)[: max(count, 0)]:
            stand_in = self._stand_in(new)
            if stand_in is None or wanted[old.index] <= old.config.min_replicas:
                break
            if wanted[new.index] >= new.config.most_replicas:
                break
            wanted[old.index] -= 1
            wanted[new.index] += 1
            self.lifecycle.count_up(old)
            self.lifecycle.count_up(new)
            change = Conversion(self, way, replica, stand_in, new)
            self.busy[replica] = self.busy[stand_in] = change
            change.begin()
            begun += 1
        return begun

    def emptied(self, replica: Replica) -> None:
        """A replica that was left by its last request is off: where it turns, what it becomes can be made."""
        change = self.busy.get(replica)
        if change is not None and replica is change.source:
            change.emptied()

    def failed(self, replica: Replica) -> None:
        """A replica fails, or is warned that it will: what it was turning into, or from, does not come of it."""
        change = self.busy.get(replica)
        if change is not None:
            change.call_off(replica)

    def _stand_in(self, pool: Pool) -> Replica | None:
        pairs = zip(pool.replicas, pool.lives, strict=True)
        return next((r for r, life in pairs if life.state == "off" and r not in self.busy), None)


class Conversion:
    """One replica on its way from one pool to another."""

    def __init__(
        self, conversions: Conversions, way: schema.Conversion, source: Replica, target: Replica, pool: Pool
    ) -> None:
        self.way = way
        self.source = source
        self.target = target
        self.pool = pool
        """The new one."""
        self._conversions = conversions
        self._lifecycle = conversions.lifecycle
        self._fleet = conversions.fleet
        self._old = self._fleet.pool_of[source.index]
        self._switched = False
        self._off = False
        """Whether it was called off."""
        self._flow: Flow | None = None
        """Weights on their way."""

    def begin(self) -> None:
        """Make what it becomes, at once or when the last request has ended."""
        lifecycle = self._lifecycle
        lifecycle._note("conversion_begun", self.source)
        if self.way.requests == "hand-over":
            self._make()
            return
        lifecycle._enter(self.source, "draining", "replica_draining")
        lifecycle.draining[self.source] = None
        if self.way.requests == "restart":
            lifecycle._gateway.presence.kill(self.source)
            lifecycle._gateway.presence.notice(self.source)
        lifecycle.look()

    def emptied(self) -> None:
        """The old replica is off."""
        if self._conversions.busy.get(self.source) is self:
            del self._conversions.busy[self.source]
        if not self._switched and self._fleet.active:
            self._make()

    def call_off(self, failed: Replica) -> None:
        """Come to nothing: one of both fails.

        Where the old one fails, its accelerators are gone, and another replica of the new pool is started once that is noticed, if
        there is any. Where those that join fail, the old one goes on as before, if it still serves.
        """
        lifecycle, fleet = self._lifecycle, self._fleet
        self._off = True
        busy = self._conversions.busy
        serves = busy.get(self.source) is self  # it may have stopped since, and be another change's by now
        for replica in (self.source, self.target):
            if busy.get(replica) is self:
                del busy[replica]
        if self._flow is not None:
            fleet.network().cancel(self._flow)
            self._flow = None
        if self._switched:
            return
        lifecycle._note("conversion_called_off", self.source)
        if failed is self.source:
            if fleet.lives[self.target.index].state == "starting":
                lifecycle._enter(self.target, "off", "start_cancelled")
            fleet.clock.at(fleet.clock.now_s + fleet.detect_s, partial(lifecycle._replace, self.target))
            return
        if serves and fleet.lives[self.source.index].state == "draining":
            lifecycle.start(self.source)
        if serves and fleet.lives[self.source.index].state == "ready":
            lifecycle.wanted[self._old.index] += 1
            lifecycle.wanted[self.pool.index] -= 1
            for pool in (self._old, self.pool):
                lifecycle.count_up(pool)

    # --- phases --------------------------------------------------------------------------------------------------------

    def _make(self) -> None:
        """Plan, bring weights, and get ready; meanwhile what is not the old replica's is paid for."""
        old, new = (pool.config.parallelism.accelerators for pool in (self._old, self.pool))
        share = 1.0
        if self.way.requests == "hand-over" and self.way.accelerators == "shared":
            share = max(new - old, 0) / new
        self._lifecycle._enter(self.target, "starting", "replica_starting", share)
        self._after(self.way.plan, self._bring)

    def _bring(self) -> None:
        way, network = self.way, self._fleet.network
        if way.weights == "none":
            self._brought()
        elif way.weights == "peer":
            each, total = moved_weight_bytes(self._old, self.pool)
            if way.bandwidth is not None:
                self._after(each / way.bandwidth, self._brought)
            elif total:
                self._flow = network().transfer(gpu(self.source), gpu(self.target), total, self._brought)
            else:
                self._brought()
        else:
            where = self._lifecycle._weights_at(self.target, way.weights)
            assert where is not None
            size_bytes = self.pool.llm.weight_bytes(self.pool.config.engine.weights)
            self._flow = network().transfer(where, gpu(self.target), size_bytes, self._brought)

    def _brought(self) -> None:
        self._flow = None
        self._after(self.way.init, self._made)

    def _after(self, seconds: float, then: Callable[[], None]) -> None:
        if not self._fleet.active:
            return  # all is over: nobody will need it
        if seconds:
            self._fleet.clock.at(self._fleet.clock.now_s + seconds, partial(self._unless_off, then))
        else:
            then()

    def _unless_off(self, then: Callable[[], None]) -> None:
        if not self._off:
            then()

    def _made(self) -> None:
        """All is there: the new replica serves, from the next boundary of the old one if that still has requests."""
        if not self._fleet.active:
            return
        if self.way.requests == "hand-over":
            self.source.at_boundary(self._switch)
        else:
            self._forget()
            self._ready()

    def _forget(self) -> None:
        for batch in self.target.batches:
            batch.cache.forget_all()

    def _ready(self) -> None:
        del self._conversions.busy[self.target]
        self._lifecycle._enter(self.target, "ready", "replica_converted")

    # --- the switch ----------------------------------------------------------------------------------------------------

    def _switch(self) -> None:
        """Between two steps of the old replica: whatever it has goes on at the new one.

        What cannot leave (one of two copies, who has blocks elsewhere, who is migrating) ends at the old one.
        """
        if self._off:
            return
        lifecycle, gateway, source = self._lifecycle, self._fleet.gateway, self.source
        self._switched = True
        lifecycle._enter(source, "draining", "replica_draining")
        lifecycle.draining[source] = None
        there = [r for batch in source.batches for r in (*batch.running, *batch.waiting)] + [
            *source.inbox,
            *source.held,
        ]
        there = [
            r
            for r in there
            if r not in gateway.patience.twins and r not in gateway.moves.under_way and r.reason is None
        ]
        there = [r for r in there if not gateway.lending.of(r)]
        decoding = [r for r in there if source.is_decoding(r, r.rank)]
        others = [r for r in there if not source.is_decoding(r, r.rank)]
        self._forget()
        at_once = {request for request in decoding if self._reserve(request)}
        self._ready()
        for request in decoding:
            self._hand_over(request, request in at_once)
        for request in sorted(others, key=lambda r: (r.arrival_s, r.id, r.attempt)):
            gateway.withdraw(request, self._begin_again)
        now_s = self._fleet.clock.now_s
        lifecycle.events.append((now_s, "requests_handed_over", self.pool.name, self.target.index, len(decoding)))
        self._fleet.clock.at(now_s, lifecycle.look)

    @property
    def _same_cut(self) -> bool:
        """Whether both shapes divide each layer alike, so that a rank's accelerators hold what they held."""
        old, new = self._old.config.parallelism, self.pool.config.parallelism
        return (old.tp, old.pp) == (new.tp, new.pp)

    def _stays(self, request: Request) -> bool:
        """Whether the new replica has the accelerators that a request is on."""
        return self._same_cut and request.rank < len(self.target.batches)

    def _reserve(self, request: Request) -> bool:
        """Keep room for a request on the accelerators that it is on, if the new replica has them."""
        if not self._stays(request):
            return False
        batch = self.target.batches[request.rank]
        to_come = request.finish_step - self.source.batches[request.rank].step
        tokens = request.prompt_tokens + request.output_tokens - to_come
        return batch.reserve(request, -(-tokens // batch.block_tokens))

    def _hand_over(self, request: Request, at_once: bool) -> None:
        """Let a decoding request go on at the new replica, with its keys and values where they are or brought there.

        Where its accelerators have no room in the books of the new one, which shares no prefixes yet, it waits for it there.
        """
        gateway, source, target = self._fleet.gateway, self.source, self.target
        if request.prompt_tokens + request.output_tokens > self.pool.capacity_tokens:
            gateway.withdraw(request, self._begin_again)
            return
        rank = request.rank
        parked = source.depart(request)
        gateway.leave(request)
        request.carried_tokens = request.computed
        rank_there = rank if self._stays(request) else -1
        if at_once:
            source.batches[rank].unpark(parked)
        else:
            token_bytes = self._old.kv_bytes_per_token * (0.0 if rank_there >= 0 else self._moved_share())
            request.carrier = Handover(self._fleet.network(), source, rank, parked, target, token_bytes)
        gateway.arrive(request, target, rank_there)

    def _moved_share(self) -> float:
        """Part of a request's keys and values that come to lie on other accelerators."""
        if self._same_cut:
            return 1.0
        old, new = (p.config.parallelism.tp * p.config.parallelism.pp for p in (self._old, self.pool))
        return 1.0 - min(old, new) / max(old, new) if old != new else 1.0

    def _begin_again(self, request: Request) -> None:
        """Compute a request at the new replica from its beginning; what it had is given up."""
        gateway = self._fleet.gateway
        if request.reason is not None:
            gateway.end(request, TIMED_OUT)
        elif request.prompt_tokens + request.output_tokens > self.pool.capacity_tokens:
            request.reason = "longer than the KV cache of its replica's new shape"
            gateway.end(request, REJECTED)
        else:
            if not request.generated:
                request.cached_tokens = 0
            gateway.forward(request, self.target, max(self._fleet.clock.now_s, request.ready_s))


def moved_weight_bytes(old: Pool, new: Pool) -> tuple[float, float]:
    """Weights that a change of shape brings from peers, to the accelerator that gets most, and altogether [bytes].

    Accelerators that join get all that is theirs; those that stay get what they hold more of than before. What they hold less of
    is dropped.
    """
    before, after = (
        weight_bytes_per_accelerator(pool.llm, pool.config.parallelism, pool.config.engine.weights)
        for pool in (old, new)
    )
    olds, news = (pool.config.parallelism.accelerators for pool in (old, new))
    more = max(after - before, 0.0)
    joined = max(news - olds, 0)
    return (after if joined else more), joined * after + min(olds, news) * more


def way_s(fleet: Fleet, way: schema.Conversion) -> float:
    """Time that a conversion takes when nothing else moves and nothing is waited for [s]."""
    pools = {pool.name: pool for pool in fleet.pools}
    old, new = pools[way.source], pools[way.target]
    seconds = way.plan + way.init
    if way.weights == "none":
        return seconds
    network, source, target = fleet.network(), gpu(old.replicas[0]), gpu(new.replicas[0])
    if way.weights == "peer":
        each, total = moved_weight_bytes(old, new)
        if way.bandwidth is not None:
            return seconds + each / way.bandwidth
        return seconds + (network.idle_s(source, target, total) if total else 0.0)
    host = str(network.graph.nodes[target]["host"])
    where = {"host": host, "store": "store"}.get(way.weights, host.replace("host", "ssd"))
    return seconds + network.idle_s(where, target, new.llm.weight_bytes(new.config.engine.weights))
