"""What share of a trace's prompt tokens a cache of a given size would find: requests one after the other, without time or model."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from numpy.random import Generator, default_rng

from fleetsim.engine.evictions.api import CacheView
from fleetsim.engine.prefix_cache import PrefixCache
from fleetsim.plugins import Choice, load
from fleetsim.workload.prefixes import Content
from fleetsim.workload.readers.rows import Row
from fleetsim.workload.request import Request


def hit_ratio(
    rows: Iterable[Row],
    policy: str | Choice = "lru",
    capacity_tokens: float = inf,
    block_tokens: int = 0,
    rng: Generator | None = None,
) -> float:
    """Prompt tokens found in one cache over all prompt tokens.

    Each request looks up its longest known start, uses it, adds the rest (its last block even if that is partial, as traces with
    hashes name it) and leaves before the next one comes: a trace's order of arrival and nothing else. A prompt longer than the
    cache finds nothing and leaves nothing.

    Parameters
    ----------
    rows : iterable of Row
        Requests with block hashes, in order of arrival.
    policy : str or Choice
        Eviction policy: its name, or a block of a scenario.
    capacity_tokens : float
        Size of the cache [tokens]; ``inf`` forgets nothing.
    block_tokens : int
        Tokens per block [tokens]; 0 is the trace's own.
    rng : Generator, optional
        What the policy draws from.

    Returns
    -------
    float
        Between 0 and 1.

    Raises
    ------
    ValueError
        If a row has no hashes, the blocks do not fit the trace's, or there are no prompt tokens.
    """
    replay: _Replay | None = None
    for row in rows:
        if not row.hashes:
            raise ValueError(f"row {row.number} has no block hashes: nothing says what its prompt shares")
        if replay is None:
            replay = _Replay(policy, capacity_tokens, block_tokens or row.hash_tokens, rng or default_rng(0))
        replay.serve(row)
    if replay is None or not replay.prompt_tokens:
        raise ValueError("no requests")
    return replay.found_tokens / replay.prompt_tokens


class _Replay:
    """One cache, and what was found in it so far."""

    def __init__(self, policy: str | Choice, capacity_tokens: float, block_tokens: int, rng: Generator) -> None:
        self.block_tokens = block_tokens
        self.now_s = 0.0
        self.prompt_tokens = 0
        self.found_tokens = 0
        blocks = 1 << 60 if capacity_tokens == inf else max(int(capacity_tokens) // block_tokens, 1)
        if isinstance(policy, str):
            chosen = load("evictions", policy)
            policy = Choice("evictions", policy, chosen.Config())
        self.view = CacheView(blocks, block_tokens, lambda: self.now_s, 1.0, 1.0 / 65_536)
        eviction = None if policy.name == "lru" else policy.create(rng, self.view)
        self.cache = PrefixCache(blocks, True, eviction)

    def serve(self, row: Row) -> None:
        """One request, from look-up to its end."""
        cache = self.cache
        self.now_s = row.time_s
        self.prompt_tokens += row.prompt_tokens
        path = Content(hashes=row.hashes, hash_tokens=row.hash_tokens).path(self.block_tokens)
        blocks = sum(len(segment) for segment in path)
        if blocks > cache.capacity or not blocks:
            return
        self.view.user._request = Request(
            row.number, row.time_s, row.prompt_tokens, row.output_tokens, klass=row.klass, tenant=row.tenant
        )
        hits = cache.lookup(path, blocks)
        self.found_tokens += min(hits * self.block_tokens, row.prompt_tokens)
        node = cache.acquire_hit() if hits else cache.root
        if hits < blocks:
            cache.allocate(blocks - hits)
            node = cache.extend(node, path, hits, blocks)
        cache.release(node)
