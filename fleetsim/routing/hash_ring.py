"""A ring of hashes on which replicas stand."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable
from hashlib import blake2b


class HashRing:
    """Consistent hashing: a key belongs to the next replica after its place; who comes or goes takes over adjacent arcs only.

    Parameters
    ----------
    name : str
        Part of every hash: rings of different names are independent.
    virtual_nodes : int
        Places of each replica. ≥ 1.
    """

    __slots__ = ("_name", "_places", "_virtual_nodes")

    def __init__(self, name: str, virtual_nodes: int) -> None:
        self._name = name
        self._virtual_nodes = virtual_nodes
        self._places: list[tuple[int, int]] = []

    def fill(self, replicas: Iterable[int]) -> None:
        """Let many replicas take their places at once."""
        copies = range(self._virtual_nodes)
        self._places.extend([(self.place(f"replica/{r}/{copy}"), r) for r in replicas for copy in copies])
        self._places.sort()

    def insert(self, replica: int) -> None:
        """Let a replica take its places."""
        for copy in range(self._virtual_nodes):
            insort(self._places, (self.place(f"replica/{replica}/{copy}"), replica))

    def remove(self, replica: int) -> None:
        """Let a replica leave; nothing happens if it is not there."""
        for copy in range(self._virtual_nodes):
            entry = (self.place(f"replica/{replica}/{copy}"), replica)
            at = bisect_left(self._places, entry)
            if at < len(self._places) and self._places[at] == entry:
                del self._places[at]

    def owner(self, key: str, other_than: int = -1) -> int:
        """The first replica after the key's place, or the first that is not `other_than` if there is one."""
        places = self._places
        size = len(places)
        at = bisect_right(places, (self.place(key), 1 << 62))
        for step in range(at, at + size):
            replica = places[step % size][1]
            if replica != other_than:
                return replica
        return other_than

    def place(self, name: str) -> int:
        """Where a name stands: 64 bits."""
        return int.from_bytes(blake2b(f"{self._name}/{name}".encode(), digest_size=8).digest(), "big")
