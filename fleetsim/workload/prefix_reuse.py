"""How much of a trace's prompts a prefix cache without limits would hold."""

from __future__ import annotations

from collections.abc import Hashable

from fleetsim.workload.readers.rows import Row

SESSION_BLOCK_TOKENS = 16
"""Block in which the reuse of a session's history is counted where the trace has no hashes."""


class EndlessCache:
    """A cache that forgets nothing and sees requests one after the other.

    A prompt's cached tokens are those of its longest run of known blocks from the start. Only whole blocks count, and
    at least one token of each prompt is computed, so that a prompt known to its end computes its last block again.
    """

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.blocks = 0
        self.hit_blocks = 0
        self._seen: set[int] = set()
        self._history: dict[Hashable, int] = {}

    @property
    def unique_blocks(self) -> int:
        """Different whole blocks seen."""
        return len(self._seen)

    def add(self, row: Row) -> int:
        """Serve one more request; its cached tokens."""
        cached = self._of_hashes(row) if row.hashes else self._of_history(row)
        self.prompt_tokens += row.prompt_tokens
        self.cached_tokens += cached
        return cached

    def _of_hashes(self, row: Row) -> int:
        seen, size = self._seen, row.hash_tokens
        known = path = size
        hits, whole = 0, row.hashes[: row.prompt_tokens // size]
        for block in whole:
            path = hash((path, block))
            if known and path in seen:
                hits += 1
            else:
                known = 0
                seen.add(path)
        self.blocks += len(whole)
        self.hit_blocks += hits
        return min(hits, (row.prompt_tokens - 1) // size) * size

    def _of_history(self, row: Row) -> int:
        if row.session is None:
            return 0
        known = self._history.get(row.session, 0)
        self._history[row.session] = row.prompt_tokens + row.output_tokens
        if row.prompt_tokens < known:
            return 0
        return min(known, row.prompt_tokens - 1) // SESSION_BLOCK_TOKENS * SESSION_BLOCK_TOKENS
