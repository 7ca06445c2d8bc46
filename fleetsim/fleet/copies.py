"""Copies of keys and values of running requests, from which they go on where their replica fails.

Every `every`, each replica sends what its decoding requests have got since their last copy to another memory, over the network and
against whatever else moves there. A request that has to begin again takes its copy along, and computes only what that lacks; with
`use: cheaper` only if bringing it is faster than computing it, by the network's and the step times' own estimates, request by
request as xLLM chooses between both.

A copy lies in the memory of a server, and is lost when all replicas of that server are down, or in the remote store. What was on
its way when its replica failed is lost.
"""

from __future__ import annotations

from functools import partial
from math import floor
from typing import TYPE_CHECKING

from fleetsim.engine.replica import Replica
from fleetsim.fleet.handover import gpu
from fleetsim.network.flows import Flow
from fleetsim.network.topology import host_of
from fleetsim.workload.request import Request

if TYPE_CHECKING:
    from fleetsim.fleet.fleet import Fleet
    from fleetsim.fleet.pool import Pool
    from fleetsim.scenario.schema import KvCopies


class Copy:
    """What lies elsewhere of one request."""

    __slots__ = ("flow", "place", "pool", "source", "tokens")

    def __init__(self, pool: Pool, place: str) -> None:
        self.pool = pool
        """Of the replica that made it."""
        self.place = place
        """Node of the network."""
        self.tokens = 0
        """First tokens of prompt and answer whose keys and values are there."""
        self.flow: Flow | None = None
        """The next ones on their way."""
        self.source: Replica | None = None
        """From where."""


class Restore:
    """Brings a copy to the replica that admitted its request: a `Carrier`."""

    __slots__ = ("_copies", "_flow", "_place", "_target")

    def __init__(self, copies: Copies, place: str, target: Replica) -> None:
        self._copies = copies
        self._place = place
        self._target = target
        self._flow: Flow | None = None

    def fetch(self, request: Request, tokens: int) -> None:
        """Begin to bring the last `tokens`."""
        if not tokens:
            request.carrier = None
            return
        size_bytes = tokens * self._copies.token_bytes(self._target)
        done = partial(self._arrived, request, tokens)
        self._flow = self._copies.network.transfer(self._place, gpu(self._target), size_bytes, done)

    def drop(self, request: Request) -> None:
        """Stop, for another try."""
        self.release()

    def release(self) -> None:
        """Stop."""
        if self._flow is not None:
            self._copies.network.cancel(self._flow)
            self._flow = None

    @property
    def stalled(self) -> bool:
        """Whether it has come to a cut in the network."""
        return self._flow is not None and self._copies.network.is_stalled(self._flow)

    def _arrived(self, request: Request, tokens: int) -> None:
        self._flow = None
        request.carrier = None
        self._copies.restored_tokens += tokens
        self._target.loaded(request)


class Copies:
    """All copies of a fleet.

    Parameters
    ----------
    fleet : Fleet
        Built completely, its lifecycle excepted.
    config : KvCopies
        Where they go, and how often.
    """

    def __init__(self, fleet: Fleet, config: KvCopies) -> None:
        self._fleet = fleet
        self._config = config
        self.network = fleet.network()
        self.copied_bytes = 0.0
        """Sent to the places of copies, what did not arrive included."""
        self.restored_tokens = 0
        """Tokens whose keys and values came back."""
        self._copies: dict[int, Copy] = {}
        """By request, by its id."""
        self._watched: set[int] = set()
        """Replicas that will be looked at, by number."""
        self._held_bytes: dict[str, float] = {}
        """Of copies, what lies at each place or is on its way there."""
        self._places = {replica.index: self._place_for(replica) for replica in fleet.replicas}
        fleet.gateway.presence.copies = self

    def _place_for(self, replica: Replica) -> str:
        """Where a replica's copies go: for other servers, the next one of its pool."""
        graph = self.network.graph
        own = host_of(graph, replica.index)
        if self._config.to == "store":
            return "store"
        if self._config.to == "host":
            return own
        hosts = list(dict.fromkeys(host_of(graph, r.index) for r in self._fleet.pool_of[replica.index].replicas))
        return hosts[(hosts.index(own) + 1) % len(hosts)]

    def token_bytes(self, replica: Replica) -> float:
        """Keys and values of a token there [bytes]."""
        return self._fleet.pool_of[replica.index].kv_bytes_per_token

    # --- making them --------------------------------------------------------------------------------------------------

    def watch(self, replica: Replica) -> None:
        """Look at a replica from now on, as long as it has something to do."""
        if replica.index in self._watched:
            return
        self._watched.add(replica.index)
        every_s, now_s = self._config.every, self._fleet.clock.now_s
        number = floor(now_s / every_s) + 1
        if number * every_s <= now_s:  # rounding
            number += 1
        self._fleet.clock.at(number * every_s, partial(self._look, replica))

    def _look(self, replica: Replica) -> None:
        self._watched.discard(replica.index)
        if replica.timer is None and not replica.paused and not self.network.busy:
            return  # it waits for what only others can bring, who have it looked at again
        for batch in replica.batches:
            for request in batch.running:
                if request.finish_step >= 0:
                    self._send(replica, request)
        if not replica.empty:
            self.watch(replica)

    def _send(self, replica: Replica, request: Request) -> None:
        """Copy what a decoding request has got since its last copy."""
        config, pool = self._config, self._fleet.pool_of[replica.index]
        place = self._places[replica.index]
        copy = self._copies.get(request.id)
        if copy is not None and (copy.pool is not pool or copy.place != place) and copy.flow is None:
            self._drop(request.id)  # it has moved: what it needs is best near its new place
            copy = None
        tokens = replica.context_tokens(request) - 1
        missing = tokens - (0 if copy is None else copy.tokens)
        if missing < config.min_tokens or (copy is not None and copy.flow is not None):
            return
        size_bytes = missing * pool.kv_bytes_per_token
        held = self._held_bytes.get(place, 0.0) + size_bytes
        if (config.capacity is not None and held > config.capacity) or self.network.is_cut(gpu(replica), place):
            return
        if copy is None:
            copy = self._copies[request.id] = Copy(pool, place)
        self._held_bytes[place] = held
        self.copied_bytes += size_bytes
        copy.source = replica
        copy.flow = self.network.transfer(gpu(replica), place, size_bytes, partial(self._copied, copy, tokens))

    def _copied(self, copy: Copy, tokens: int) -> None:
        copy.flow = copy.source = None
        copy.tokens = tokens

    def forget(self, request: Request) -> None:
        """A request has ended."""
        if request.id in self._copies:
            self._drop(request.id)

    def _drop(self, number: int) -> None:
        copy = self._copies.pop(number)
        on_its_way = 0.0
        if copy.flow is not None:
            on_its_way = copy.flow.size_bytes
            self.network.cancel(copy.flow)
        self._held_bytes[copy.place] -= copy.tokens * copy.pool.kv_bytes_per_token + on_its_way

    # --- losing and using them ----------------------------------------------------------------------------------------

    def replica_failed(self, replica: Replica) -> None:
        """Lose what was on its way from a replica, and the copies on its server if no replica of that is left."""
        for copy in [copy for copy in self._copies.values() if copy.source is replica]:
            assert copy.flow is not None
            self._held_bytes[copy.place] -= copy.flow.size_bytes
            self.network.cancel(copy.flow)
            copy.flow = copy.source = None
        host = host_of(self.network.graph, replica.index)
        fleet = self._fleet
        here = [r for r in fleet.replicas if host_of(self.network.graph, r.index) == host]
        if all(fleet.lives[r.index].state == "down" for r in here):
            for number in [number for number, copy in self._copies.items() if copy.place == host]:
                self._drop(number)

    def attach(self, request: Request, replica: Replica) -> None:
        """Let a request that goes to a replica take its copy along, if that is worth it."""
        copy = self._copies.get(request.id)
        if copy is None or not copy.tokens or request.carrier is not None or request.carried_tokens:
            return
        pool = self._fleet.pool_of[replica.index]
        if pool.llm.name != copy.pool.llm.name or pool.kv_bytes_per_token != copy.pool.kv_bytes_per_token:
            return
        target = request.prompt_tokens + request.generated
        tokens = min(copy.tokens, target - 1)
        if tokens <= 0 or self.network.is_cut(copy.place, gpu(replica)):
            return
        if self._config.use == "cheaper":
            time = pool.prefill_time()
            saved_s = time.seconds(target, 0) - time.seconds(target - tokens, tokens)
            if self.network.estimate_s(copy.place, gpu(replica), tokens * pool.kv_bytes_per_token) >= saved_s:
                return
        request.carried_tokens = tokens
        request.carrier = Restore(self, copy.place, replica)
