"""A ring of hashes on which replicas stand."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
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

    __slots__ = ("_name", "_owners", "_places", "_virtual_nodes")

    def __init__(self, name: str, virtual_nodes: int) -> None:
        self._name = name
        self._virtual_nodes = virtual_nodes
        self._places = array("Q")  # side by side in memory: a search of a long ring waits for little else
        self._owners: list[int] = []

    def fill(self, replicas: Iterable[int]) -> None:
        """Let many replicas take their places on an empty ring at once."""
        copies = range(self._virtual_nodes)
        entries = sorted([(self.place(f"replica/{r}/{copy}"), r) for r in replicas for copy in copies])
        self._places = array("Q", [place for place, _ in entries])
        self._owners = [replica for _, replica in entries]

    def insert(self, replica: int) -> None:
        """Let a replica take its places."""
        for copy in range(self._virtual_nodes):
            place = self.place(f"replica/{replica}/{copy}")
            at = bisect_left(self._places, place)
            self._places.insert(at, place)
            self._owners.insert(at, replica)

    def remove(self, replica: int) -> None:
        """Let a replica leave; nothing happens if it is not there."""
        if replica in self._owners:
            kept = [(p, r) for p, r in zip(self._places, self._owners, strict=True) if r != replica]
            self._places = array("Q", [place for place, _ in kept])
            self._owners = [other for _, other in kept]

    def owner(self, key: str, other_than: int = -1) -> int:
        """The first replica after the key's place, or the first that is not `other_than` if there is one."""
        owners = self._owners
        size = len(owners)
        at = bisect_right(self._places, self.place(key))
        for step in range(at, at + size):
            replica = owners[step % size]
            if replica != other_than:
                return replica
        return other_than

    def place(self, name: str) -> int:
        """Where a name stands: 64 bits."""
        return int.from_bytes(blake2b(f"{self._name}/{name}".encode(), digest_size=8).digest(), "big")
