"""Draws that depend on the seed, a name and the number of a request alone: the same world for every router."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

_BLOCK = 256
"""Requests whose draws are made at a time."""
_KEPT = 16
"""Blocks that are kept: requests come nearly in the order of their numbers."""
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def key_of(seed: int, name: str) -> int:
    """A number that stands for a named stream of a seed."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "little")


def uniform(key: int, number: int) -> float:
    """A draw from (0, 1) that depends on both numbers alone (splitmix64)."""
    z = (key + (number + 1) * _GOLDEN) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return (((z ^ (z >> 31)) >> 11) + 0.5) / 2.0**53


class Draws:
    """Uniform draws of requests, one column for each name; made for many requests at a time.

    Parameters
    ----------
    seed : int
        The run's.
    names : sequence of str
        Of the columns: what a column draws does not depend on the others.
    """

    def __init__(self, seed: int, names: Sequence[str]) -> None:
        self._keys = np.array([key_of(seed, name) for name in names], dtype=np.uint64)

    def block(self, first: int, count: int) -> Any:
        """Draws of requests `first` to `first` + `count` - 1: one row each."""
        numbers = np.arange(first + 1, first + count + 1, dtype=np.uint64)
        z = self._keys[None, :] + numbers[:, None] * np.uint64(_GOLDEN)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
        return ((z >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53


class Blocks:
    """What is made for a block of requests at a time and looked up one by one.

    Parameters
    ----------
    make : callable
        From the first number and a count to whatever stands for those requests.
    """

    def __init__(self, make: Any) -> None:
        self._make = make
        self._blocks: dict[int, Any] = {}

    def of(self, number: int) -> tuple[Any, int]:
        """The block of a request, and its row there."""
        index, row = divmod(number, _BLOCK)
        block = self._blocks.get(index)
        if block is None:
            while len(self._blocks) >= _KEPT:
                del self._blocks[next(iter(self._blocks))]
            block = self._blocks[index] = self._make(index * _BLOCK, _BLOCK)
        return block, row
