"""The replica with the highest score, where a score falls as the KV cache fills."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fleetsim.routing.api import FleetView


class MemoryScan:
    """Finds the highest score without asking every replica how full its cache is now.

    A cache fills while a replica does not change, and so the board's figure is a lower bound. Scores by that are upper bounds: the
    highest is corrected until the first one is exact. The result is that of a full scan; of equal scores the first one counts.

    Parameters
    ----------
    fleet : FleetView
        The view; its loads are asked for.
    score : callable
        Score of a replica with this part of its cache in use: (position, used) -> score; it must not rise with `used`.
    """

    __slots__ = ("_fleet", "_score")

    def __init__(self, fleet: FleetView, score: Callable[[int, float], float]) -> None:
        self._fleet = fleet
        self._score = score

    def best(self, scores: Any) -> int:
        """Number of the replica with the highest score.

        Parameters
        ----------
        scores : numpy array
            Upper bounds, one per replica; changed.
        """
        while True:
            position = int(scores.argmax())
            exact = self._score(position, self._fleet.kv_used(position))
            if exact >= scores[position]:
                return position
            scores[position] = exact
