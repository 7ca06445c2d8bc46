"""Named random streams: adding or removing one changes no other."""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np
from numpy.random import Generator


@cache
def _spawn_key(name: str) -> tuple[int, ...]:
    digest = hashlib.sha256(name.encode()).digest()
    return tuple(int.from_bytes(digest[i : i + 4], "little") for i in range(0, len(digest), 4))


class Streams:
    """Independent random generators, each fixed by the run's seed and its own name alone."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.contents = 0
        """Where the numbers of the workload's content streams begin."""
        self._generators: dict[str, Generator] = {}

    def get(self, name: str) -> Generator:
        """The generator called `name`; asking again gives the same object, where it stands."""
        generator = self._generators.get(name)
        if generator is None:
            sequence = np.random.SeedSequence(self.seed, spawn_key=_spawn_key(name))
            generator = self._generators[name] = Generator(np.random.PCG64(sequence))
        return generator
