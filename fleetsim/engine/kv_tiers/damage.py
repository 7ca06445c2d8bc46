"""Blocks of a tier that hold something else than they should, which only reading them shows."""

from __future__ import annotations

from collections.abc import Iterator

from fleetsim.engine.prefix_cache import PrefixCache
from fleetsim.workload.draws import share_of
from fleetsim.workload.prefixes import Path


class Damage:
    """Which blocks of a tier are corrupt, by their keys, and of which of them somebody knows.

    A checksum is read with each block: what is corrupt costs its way, is then not used, and is written again when somebody has
    computed it.
    """

    def __init__(self) -> None:
        self.found_blocks = 0
        """Blocks that were read in vain."""
        self._hidden: set[int] = set()
        self._known: set[int] = set()

    def strike(self, index: PrefixCache, share: float, used_only: bool = False) -> int:
        """Corrupt a share of the blocks that are held now, or of those in use; how many."""
        before = len(self._hidden)
        for node in index.nodes():
            if node.users or not used_only:
                self._hidden.update(key for key in node.keys[: node.length] if share_of(key) < share)
        self._hidden -= self._known
        return len(self._hidden) - before

    def sound(self, path: Path, blocks: int) -> int:
        """How many of the first blocks of a path come before the first one that is known to be corrupt."""
        if not self._known:
            return blocks
        return next((place for place, key in _keys(path, 0, blocks) if key in self._known), blocks)

    def read(self, path: Path, first: int, end: int) -> int:
        """Read blocks `first` to `end` of a path: those before the first corrupt one are usable, and up to there counts."""
        if not self._hidden:
            return end
        usable = end
        for place, key in _keys(path, first, end):
            if key in self._hidden:
                self._hidden.discard(key)
                self._known.add(key)
                self.found_blocks += 1
                usable = min(usable, place)
        return usable

    def written(self, path: Path, first: int, end: int) -> None:
        """Blocks `first` to `end` of a path have been written anew."""
        if self._hidden or self._known:
            for _, key in _keys(path, first, end):
                self._hidden.discard(key)
                self._known.discard(key)


def _keys(path: Path, first: int, end: int) -> Iterator[tuple[int, int]]:
    """Places and keys of blocks `first` to `end` of a path."""
    place = 0
    for segment in path:
        if place >= end:
            return
        low, high = max(first - place, 0), min(end - place, len(segment))
        for offset in range(low, high):
            yield place + offset, segment[offset]
        place += len(segment)
