"""For how much of the replicas that a pool should have some are there and can be reached."""

from __future__ import annotations


class Uptime:
    """Replica time wanted, and of that available, of one pool.

    Parameters
    ----------
    replicas : int
        Wanted, and available, from the beginning.
    """

    __slots__ = ("_available", "_available_s", "_since_s", "_wanted", "_wanted_s")

    def __init__(self, replicas: int) -> None:
        self._wanted = self._available = replicas
        self._since_s = self._wanted_s = self._available_s = 0.0

    def change(self, now_s: float, available: int, wanted: int) -> None:
        """From now on so many are wanted and so many there; more than are wanted make up for nothing."""
        self._wanted_s, self._available_s = self.until(now_s)
        self._since_s = now_s
        self._wanted, self._available = wanted, min(available, wanted)

    def until(self, now_s: float) -> tuple[float, float]:
        """Replica time wanted until now, and of that available [s]."""
        passed_s = max(now_s - self._since_s, 0.0)
        return self._wanted_s + self._wanted * passed_s, self._available_s + self._available * passed_s


def availability(wanted_s: float, available_s: float) -> float | None:
    """Available over wanted; None where nothing was wanted."""
    return available_s / wanted_s if wanted_s > 0.0 else None
