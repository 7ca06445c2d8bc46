"""What a replica does with the tiers below its memory: reads when it admits a request, prefetches while one waits, and writes.

Loads, prefetches and writes share links with everything else on the network. A request that is admitted holds all its blocks while
the part of its prompt that lies below is copied to it; with `overlap` it computes as soon as what is still to come is hidden behind
its own layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import TYPE_CHECKING

from fleetsim.engine.kv_tiers.tier import Tier, Writer
from fleetsim.engine.prefix_cache import Node
from fleetsim.kernel.clock import Timer
from fleetsim.network.flows import Flow, Network
from fleetsim.scenario.schema import KvTiers, StoreTier
from fleetsim.workload.prefixes import Path, Segment
from fleetsim.workload.request import Request

if TYPE_CHECKING:
    from fleetsim.engine.replica import Replica


@dataclass(slots=True)
class Place:
    """A tier as one replica reaches it."""

    tier: Tier
    endpoint: str
    """Node of the network."""
    limit: float = inf
    """Most that the software of one replica moves to or from it [B/s]."""
    read_tokens: int = 0
    """Prompt tokens that this replica's requests got from it."""


@dataclass(slots=True)
class Part:
    """Blocks `first` to `end` of a request's path, read from one place."""

    place: Place
    node: Node
    first: int
    end: int


class Load:
    """One request's blocks on their way up: a `Carrier`."""

    __slots__ = ("_first", "_flows", "_missing", "_parts", "_path", "_started_s", "_tiers", "blocks")

    def __init__(self, tiers: ReplicaTiers, path: Path, parts: list[Part]) -> None:
        self._tiers = tiers
        self._path = path
        self._parts = parts
        self._flows: list[Flow] = []
        self._missing = 0
        self._started_s = 0.0
        self._first = 0
        self.blocks = parts[-1].end
        """Blocks of the path that its parts reach to."""

    def fetch(self, request: Request, tokens: int) -> None:
        """Begin to copy the last `tokens` of the request's carried tokens."""
        tiers = self._tiers
        self._started_s = tiers.replica.clock.now_s
        first = self._first = self.blocks - tokens // tiers.block_tokens
        wanted = []
        for part in self._parts:
            if part.end > first:
                wanted.append((part, part.end - first))
                first = part.end
        if not wanted:
            self._finish(request)
            return
        sizes = [blocks * part.place.tier.block_bytes for part, blocks in wanted]
        exposed = tiers.exposed_share(request, [part.place for part, _ in wanted], sizes)
        self._missing = len(wanted)
        for (part, blocks), size in zip(wanted, sizes, strict=True):
            place = part.place
            place.read_tokens += blocks * tiers.block_tokens
            place.tier.read_blocks += blocks
            request.loaded_tokens += blocks * tiers.block_tokens
            done = partial(self._arrived, request, place, size * (1.0 - exposed))
            self._flows.append(
                tiers.network.transfer(place.endpoint, tiers.gpu, size * exposed, done, limit=place.limit)
            )

    def drop(self, request: Request) -> None:
        """Stop copying; the tiers keep what is wanted for another try."""
        for flow in self._flows:
            self._tiers.network.cancel(flow)
        self._flows.clear()
        request.load_s += self._tiers.replica.clock.now_s - self._started_s

    def release(self) -> None:
        """Give up: nothing is kept any more."""
        for flow in self._flows:
            self._tiers.network.cancel(flow)
        self._flows.clear()
        for part in self._parts:
            part.place.tier.unpin(part.node)
        self._parts = []

    @property
    def blocked(self) -> bool:
        """Whether a cut lies on the way."""
        tiers = self._tiers
        return any(tiers.network.is_cut(part.place.endpoint, tiers.gpu) for part in self._parts)

    @property
    def stalled(self) -> bool:
        """Whether some of it has come to a cut in the network."""
        return any(self._tiers.network.is_stalled(flow) for flow in self._flows)

    def _arrived(self, request: Request, place: Place, rest_bytes: float) -> None:
        """The exposed part has come; the rest comes while the request computes."""
        tiers = self._tiers
        if rest_bytes:
            tiers.network.transfer(place.endpoint, tiers.gpu, rest_bytes, _nothing, limit=place.limit)
        self._missing -= 1
        if not self._missing:
            self._flows.clear()
            request.load_s += tiers.replica.clock.now_s - self._started_s
            parts = self._usable(request)
            self._finish(request)
            tiers.keep(self._path, parts)
            tiers.replica.loaded(request)

    def _usable(self, request: Request) -> list[Part]:
        """What was read up to the first corrupt block; the request computes the rest."""
        parts, tiers = self._parts, self._tiers
        if all(part.place.tier.damage is None for part in parts):
            return parts
        end = self.blocks
        for part in parts:
            first = max(part.first, self._first)
            if first < part.end:
                end = min(end, part.place.tier.read(self._path, first, part.end))
        if end < self.blocks:
            tokens = end * tiers.block_tokens
            if request.cached_tokens == request.carried_tokens:
                request.cached_tokens = tokens
            request.carried_tokens = tokens
        return [Part(p.place, p.node, p.first, min(p.end, end)) for p in parts if p.first < end]

    def _finish(self, request: Request) -> None:
        self.release()
        request.carrier = None


@dataclass(slots=True)
class _Prefetch:
    """A queued request's blocks on their way from the store to the host."""

    path: Path
    first: int
    end: int
    flow: Flow | None = None
    node: Node | None = None
    timers: list[Timer] = field(default_factory=list)


class ReplicaTiers:
    """The tiers of one replica.

    Parameters
    ----------
    config : KvTiers
        What the scenario says.
    network : Network
        Where everything travels.
    replica : Replica
        Whose tiers they are.
    gpu : str
        Its memory in the network.
    places : sequence of Place
        Tiers and their endpoints, nearest first.
    block_tokens : int
        Tokens of a block.
    layers : int
        Layers of the LLM.
    """

    def __init__(
        self,
        config: KvTiers,
        network: Network,
        replica: Replica,
        gpu: str,
        places: Sequence[Place],
        block_tokens: int,
        layers: int,
    ) -> None:
        self.config = config
        self.network = network
        self.replica = replica
        self.gpu = gpu
        self.places = list(places)
        self.block_tokens = block_tokens
        self.layers = layers
        self.page_blocks = max((config.page_tokens or 1) // block_tokens, 1)
        """Blocks that are written and read together."""
        self.avoids_cuts = False
        """Whether it computes what it cannot reach, where links may fail."""
        self.own = [place for place in places if place.tier.name != "store"]
        """Places that are this replica's alone."""
        self.store = next((place for place in places if place.tier.name == "store"), None)
        prefetching = self.store is not None and config.store is not None and config.store.prefetch != "never"
        self.readable = self.own if prefetching else self.places
        """Places from which an admitted request loads."""
        self._fetching: StoreTier | None = config.store if prefetching else None
        self._prefetches: dict[Request, _Prefetch] = {}
        self.writes_back = config.write == "write_back"
        self.writers = self._writers()

    def _writers(self) -> list[Writer]:
        """One per tier, each feeding the next."""
        writers: list[Writer] = []
        after: Callable[[Path, int], None] | None = None
        for i in reversed(range(len(self.places))):
            place = self.places[i]
            above = self.places[i - 1] if i else None
            source = above.endpoint if above else self.gpu
            holds = None if above is None or self.writes_back else above.tier.holds
            writer = Writer(self.network, source, place.endpoint, place.tier, place.limit, after, holds)
            writers.insert(0, writer)
            if self.writes_back:
                if above is not None:
                    above.tier.index.on_evict = partial(self.evicted, writer)
            else:
                after = writer.add
        return writers

    # --- reads -------------------------------------------------------------------------------------------------------

    def offer(self, request: Request, path: Path, held: int, limit: int) -> None:
        """Let a request that is about to be admitted take more of its first `limit` blocks from here than the `held` ones.

        What is offered is settled, and kept, when the request is first tried.
        """
        load = request.carrier
        if isinstance(load, Load):
            cut = self.avoids_cuts and load.blocked
            if load.blocks > held and not cut:
                return
            load.release()
            request.carrier = load = None
            request.carried_tokens = 0
            if not cut:
                return
        if load is not None or request.carried_tokens:
            return
        self._take_prefetched(request)
        parts = []
        least = max(self.config.min_load_tokens // self.block_tokens, 1)
        for place in self.readable:
            if self.avoids_cuts and self.network.is_cut(place.endpoint, self.gpu):
                continue
            blocks = self._pages(place.tier.holds(path, limit))
            if blocks - held >= least:
                parts.append(Part(place, place.tier.pin(path, blocks), held, blocks))
                held = blocks
        if parts:
            request.carrier = Load(self, path, parts)
            request.carried_tokens = held * self.block_tokens

    def exposed_share(self, request: Request, places: Sequence[Place], sizes: Sequence[float]) -> float:
        """Share of a load that the request waits for; the rest is hidden behind the layers that it computes.

        Layer l computes when layer l is there. With L layers, a load of T and a first step of C alone, the wait is
        ``T / L + (L - 1) / L * max(T - C, 0)``. Others in the step make it longer than C, so this hides rather too little.
        """
        if not self.config.overlap:
            return 1.0
        load_s = max(
            self.network.estimate_s(place.endpoint, self.gpu, size, limit=place.limit)
            for place, size in zip(places, sizes, strict=True)
        )
        carried = request.carried_tokens
        tokens = request.target - carried
        tokens = min(tokens, getattr(self.replica.scheduler, "max_batched_tokens", tokens))
        pairs = tokens * carried + tokens * (tokens + 1) // 2
        compute_s, _ = self.replica.model.mixed(tokens, 1, pairs, carried + tokens, 1, 0, 0, tokens)
        return (1 + (self.layers - 1) * max(1 - compute_s / load_s, 0.0)) / self.layers

    def keep(self, path: Path, parts: Sequence[Part]) -> None:
        """Note what was read: the host keeps a copy of what came through it, or, where tiers are exclusive, it goes first there."""
        for part in parts:
            if part.place is self.store:
                continue  # goes to the replica past the host
            if self.config.inclusive:
                for place in self.own[: self.own.index(part.place)]:
                    place.tier.insert(path, 0, part.end)
            else:
                part.place.tier.demote(path, part.end)

    def give_up_stalled(self) -> int:
        """Have computed what has come to a cut on its way here; how many requests waited for it."""
        batches = self.replica.batches
        stalled = [r for batch in batches for r in batch.loading if isinstance(r.carrier, Load) and r.carrier.stalled]
        for request in stalled:
            self.replica.at_boundary(partial(self._compute_instead, request))
        fetched = [
            request
            for request, entry in self._prefetches.items()
            if entry.flow is not None and self.network.is_stalled(entry.flow)
        ]
        for request in fetched:
            self._prefetched(request)
        return len(stalled) + len(fetched)

    def _compute_instead(self, request: Request) -> None:
        """Between two steps: let a request that loads wait again, first in its queue, and load nothing."""
        batch, load = self.replica.batches[request.rank], request.carrier
        if request not in batch.loading or not isinstance(load, Load):
            return
        batch.preempt(request)
        load.release()
        request.carrier = None
        request.carried_tokens = 0

    # --- prefetches --------------------------------------------------------------------------------------------------

    def prefetch(self, request: Request, ready_s: float) -> bool:
        """Look in the store when a request joins the queue; whether the replica must hold it back until it is told."""
        if self._fetching is None or request.content is None or request.carried_tokens or request in self._prefetches:
            return False
        entry = _Prefetch((), 0, 0)
        entry.timers.append(self.replica.clock.at(ready_s, partial(self._look, request, entry)))
        self._prefetches[request] = entry
        return self._fetching.prefetch != "best_effort"

    def forget(self, request: Request) -> None:
        """Stop prefetching for a request that is taken back."""
        entry = self._prefetches.pop(request, None)
        if entry is not None:
            self._end(entry)

    def _look(self, request: Request, entry: _Prefetch) -> None:
        store, config, content = self.store, self._fetching, request.content
        assert store is not None
        assert config is not None
        assert content is not None
        path = content.path(self.block_tokens)
        limit = (request.prompt_tokens - 1) // self.block_tokens
        entry.path = path
        entry.first = max(place.tier.holds(path, limit) for place in self.own)
        entry.end = self._pages(store.tier.holds(path, limit))
        blocks = entry.end - entry.first
        tokens = blocks * self.block_tokens
        cut = self.avoids_cuts and self.network.is_cut(store.endpoint, self.own[0].endpoint)
        if blocks <= 0 or tokens < config.min_tokens or cut:
            self._prefetched(request)
            return
        entry.node = store.tier.pin(path, entry.end)
        size = blocks * store.tier.block_bytes
        entry.flow = self.network.transfer(
            store.endpoint, self.own[0].endpoint, size, partial(self._prefetched, request), limit=store.limit
        )
        if config.prefetch == "timeout":
            now_s = self.replica.clock.now_s
            deadline_s = now_s + config.timeout_base + config.timeout_per_1024_tokens * tokens / 1024
            entry.timers.append(self.replica.clock.at(deadline_s, partial(self._prefetched, request)))

    def _prefetched(self, request: Request) -> None:
        """A prefetch is over: all has come, there was nothing to fetch, or its time is up."""
        self._take_prefetched(request)
        self.replica.join(request)

    def _take_prefetched(self, request: Request) -> None:
        """Stop a request's prefetch, if there is one, and keep the whole pages that have come."""
        entry = self._prefetches.pop(request, None)
        if entry is None:
            return
        if entry.flow is not None:
            assert self.store is not None
            tier = self.store.tier
            blocks = entry.end - entry.first
            missing = -(-self.network.remaining_bytes(entry.flow) // tier.block_bytes)
            come = max(self._pages(entry.end - int(missing)) - entry.first, 0) if missing else blocks
            self.store.read_tokens += come * self.block_tokens
            tier.read_blocks += come
            come = self._pages(tier.read(entry.path, entry.first, entry.first + come)) - entry.first
            self.own[0].tier.insert(entry.path, entry.first, entry.first + come)
        self._end(entry)

    def _end(self, entry: _Prefetch) -> None:
        for timer in entry.timers:
            timer.cancel()
        if entry.flow is not None:
            self.network.cancel(entry.flow)
        if entry.node is not None:
            assert self.store is not None
            self.store.tier.unpin(entry.node)

    # --- writes ------------------------------------------------------------------------------------------------------

    def used(self, path: Path, blocks: int, hit_blocks: int) -> None:
        """Note that a request has used the first `blocks` blocks of a path, of which it had found `hit_blocks`."""
        for place in self.own if self.config.inclusive else ():
            place.tier.touch(path, blocks)
        if self.writes_back:
            return
        blocks = self._pages(hit_blocks if self.config.write == "selective" else blocks)
        if blocks:
            self.writers[0].add(path, blocks)

    def evicted(self, writer: Writer, node: Node) -> None:
        """Write back what a tier above is about to lose: the end of a node's path."""
        path = path_of(node)
        blocks = self._pages(sum(len(segment) for segment in path))
        if blocks:
            writer.add(path, blocks)

    def _pages(self, blocks: int) -> int:
        """Blocks in whole pages."""
        return blocks - blocks % self.page_blocks


def path_of(node: Node) -> Path:
    """Keys from the root to the end of a node, in as few segments as a request's path has; none where nobody can find it."""
    segments: list[Segment] = []
    current: Node | None = node
    while current is not None and current.length:
        keys: Segment = current.keys
        if segments:
            below = segments[-1]
            if isinstance(keys, tuple) and isinstance(below, tuple):
                keys = (*keys, *segments.pop())
            elif (
                isinstance(keys, range)
                and isinstance(below, range)
                and below.start == keys.stop
                and below.step == keys.step
            ):
                segments.pop()
                keys = range(keys.start, below.stop, keys.step)
        segments.append(keys)
        current = current.parent
    return () if current is None else tuple(reversed(segments))


def _nothing() -> None:
    """What happens when the hidden end of a load has come."""
