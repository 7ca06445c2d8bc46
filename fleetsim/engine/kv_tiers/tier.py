"""One place below a replica's own memory that holds keys and values: host memory, drives, or a store that replicas share."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

from fleetsim.engine.kv_tiers.damage import Damage
from fleetsim.engine.prefix_cache import Node, PrefixCache
from fleetsim.errors import LawError
from fleetsim.network.flows import Network
from fleetsim.workload.prefixes import Path


class Tier:
    """Which runs of blocks a place holds; least recently used ones go first.

    Parameters
    ----------
    name : str
        ``host``, ``ssd`` or ``store``.
    capacity_blocks : int
        ≥ 1.
    block_bytes : float
        Keys and values of a block, over all layers and accelerators [bytes].
    """

    def __init__(self, name: str, capacity_blocks: int, block_bytes: float) -> None:
        self.name = name
        self.block_bytes = block_bytes
        self.index = PrefixCache(capacity_blocks)
        self.pinned: dict[Node, int] = {}
        """Nodes that are being read, and by how many."""
        self.damage: Damage | None = None
        """What is corrupt, where anything ever was."""
        self.read_blocks = 0
        self.written_blocks = 0

    def holds(self, path: Path, limit: int) -> int:
        """How many of the first `limit` blocks of `path` are here."""
        held = self.index.lookup(path, limit)
        return held if self.damage is None else self.damage.sound(path, held)

    def read(self, path: Path, first: int, end: int) -> int:
        """Have read blocks `first` to `end` of a path; up to which block they are what they should be."""
        return end if self.damage is None else self.damage.read(path, first, end)

    def corrupt(self, share: float) -> int:
        """Let a share of the blocks hold something else; how many."""
        if self.damage is None:
            self.damage = Damage()
        return self.damage.strike(self.index, share)

    def lose(self) -> int:
        """Hold nothing any more; how many blocks that were. What is being read is found to be corrupt."""
        blocks = self.index.cached
        if self.index.used:
            if self.damage is None:
                self.damage = Damage()
            blocks += self.damage.strike(self.index, 1.0, used_only=True)
        self.index.forget_all()
        return blocks

    def pin(self, path: Path, blocks: int) -> Node:
        """Keep the first `blocks` blocks of a path, which are here, until `unpin`."""
        self.index.lookup(path, blocks)
        node = self.index.acquire_hit()
        self.pinned[node] = self.pinned.get(node, 0) + 1
        return node

    def unpin(self, node: Node) -> None:
        """Stop keeping a path; it was used just now."""
        self.pinned[node] -= 1
        if not self.pinned[node]:
            del self.pinned[node]
        self.index.release(node)

    def touch(self, path: Path, limit: int) -> None:
        """Note that the first blocks of a path were used, as far as they are here."""
        if self.index.lookup(path, limit):
            self.index.release(self.index.acquire_hit())

    def insert(self, path: Path, first: int, blocks: int) -> int:
        """Put blocks `first` to `blocks` of a path here, as many as find room; how many are new.

        None do if those before them have gone.
        """
        index = self.index
        have = index.lookup(path, blocks)
        if have < first:
            return 0
        if self.damage is not None:
            self.damage.written(path, first, blocks)
        node = index.acquire_hit() if have else index.root
        new = min(blocks - have, index.capacity - index.used)
        if new > 0:
            index.allocate(new)
            node = index.extend(node, path, have, have + new)
        if node is not index.root:
            index.release(node)
        return max(new, 0)

    def demote(self, path: Path, blocks: int) -> None:
        """Let the first `blocks` blocks of a path, which are held above now, go before all others here."""
        index = self.index
        held = index.lookup(path, blocks)
        if not held:
            return
        node: Node | None = index.acquire_hit()
        assert node is not None
        index.release(node)
        alone = []
        below: Node | None = None
        while node is not None and node.length and not node.users:
            if any(child is not below for child in (node.children or {}).values()):
                break
            alone.append(node)
            below, node = node, node.parent
        for node in reversed(alone):
            index.idle.move_to_end(node, last=False)

    def verify(self) -> None:
        """Recount the blocks (law 3).

        Raises
        ------
        LawError
            If a running total differs from the recount, or something is kept for nobody.
        """
        index = self.index
        nodes = list(index.nodes())
        used = sum(node.length for node in nodes if node.users)
        cached = sum(node.length for node in index.idle)
        if (index.used, index.cached) != (used, cached) or index.free < 0:
            raise LawError(
                f"law 3 (KV tier {self.name}): {index.used} used and {index.cached} cached of {index.capacity}, "
                f"counted {used} and {cached}"
            )
        if any(node.users < 0 for node in nodes) or (index.used and not self.pinned):
            raise LawError(f"law 3 (KV tier {self.name}): {index.used} blocks are kept for nobody")


class Writer:
    """Copies blocks into a tier, one run after the other over the network.

    Parameters
    ----------
    network, source, target
        Where the copies travel.
    tier : Tier
        Where they end.
    limit : float
        Most that it takes [B/s].
    after : callable or None
        Told each run that has arrived.
    holds : callable or None
        How much of a path the source still holds when its turn comes; None where what is written was kept for it.
    """

    def __init__(
        self,
        network: Network,
        source: str,
        target: str,
        tier: Tier,
        limit: float,
        after: Callable[[Path, int], None] | None,
        holds: Callable[[Path, int], int] | None,
    ) -> None:
        self.tier = tier
        self.bytes = 0.0
        """Sent so far."""
        self._network = network
        self._source = source
        self._target = target
        self._limit = limit
        self._after = after
        self._holds = holds
        self._queue: deque[tuple[Path, int]] = deque()
        self._busy = False

    def add(self, path: Path, blocks: int) -> None:
        """Let the first `blocks` blocks of a path be written, as far as they are not there when their turn comes."""
        self._queue.append((path, blocks))
        if not self._busy:
            self._next()

    def _next(self) -> None:
        self._busy = False
        while self._queue:
            path, blocks = self._queue.popleft()
            if self._holds is not None:
                blocks = self._holds(path, blocks)
            have = self.tier.holds(path, blocks)
            if blocks > have:
                self._busy = True
                size = (blocks - have) * self.tier.block_bytes
                done = partial(self._arrived, path, have, blocks)
                self._network.transfer(self._source, self._target, size, done, limit=self._limit)
                return
            self.tier.touch(path, blocks)

    def _arrived(self, path: Path, first: int, blocks: int) -> None:
        tier = self.tier
        self.bytes += (blocks - first) * tier.block_bytes
        tier.written_blocks += tier.insert(path, first, blocks)
        if self._after is not None:
            self._after(path, blocks)
        self._next()
