"""Chiron's routing: interactive work is packed, batch work fills what is left or waits."""

from __future__ import annotations

from typing import ClassVar

from numpy.random import Generator

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import HOLD, FleetView, Hold, RequestView


class ChironConfig(PolicyConfig):
    """Parameters of the router."""

    interactive: str = "interactive"
    """Pool of replicas for interactive requests."""
    mixed: str = "mixed"
    """Pool of replicas for both; so are replicas of all pools that are not named here."""
    batch: str = "batch"
    """Pool of replicas for batch requests."""
    batch_classes: tuple[str, ...] = ("batch",)
    """Classes of batch requests; all others are interactive."""


class Chiron:
    """Packs interactive requests onto few replicas, and gives batch requests the rest; those that find no room wait at the gateway.

    Rule: an interactive request goes to the first interactive replica that runs fewer requests than it may, else to the first
    mixed one that has fewer interactive requests than it may run, else to the interactive or mixed one with the fewest requests.
    A batch request goes to the first batch replica with room, else to the first mixed one with room that has no interactive
    request, else it is held at the gateway, in the order of arrival, until there is room. Full replicas first, so that the others
    are idle, and seen to be. On mixed replicas interactive requests should take the place of batch ones: `classes` with priorities,
    and `engine.order: preemptive-priority`.

    What is charged: the wait. How many requests a replica may run is its scheduler's `max_seqs`, or what the autoscaler `chiron`
    of the fleet says.

    References
    ----------
    A. Patke et al., "Hierarchical Autoscaling for Large Language Model Serving with Chiron", arXiv:2501.08090; the order of
    preference is the paper's, first fit is ours.
    """

    Config: ClassVar = ChironConfig
    holds: ClassVar[bool] = True

    def __init__(self, config: ChironConfig, rng: Generator, fleet: FleetView) -> None:
        self._fleet = fleet
        self._batch_classes = frozenset(config.batch_classes)
        places = range(fleet.count)
        self._interactive = [place for place in places if fleet.pools[place] == config.interactive]
        self._batch = [place for place in places if fleet.pools[place] == config.batch]
        self._mixed = [place for place in places if fleet.pools[place] not in (config.interactive, config.batch)]

    def route(self, request: RequestView) -> int | Hold:
        """Choose a replica, or let a batch request wait."""
        return self._for_batch() if request.klass in self._batch_classes else self._for_interactive()

    def _for_interactive(self) -> int:
        fleet = self._fleet
        for place in self._interactive:
            if fleet.outstanding[place] < fleet.seats[fleet.numbers[place]]:
                return place
        for place in self._mixed:
            if fleet.present[place] and self._interactive_at(place) < fleet.seats[fleet.numbers[place]]:
                return place
        best = self._least([*self._interactive, *self._mixed])
        return best if best >= 0 else max(self._least(self._batch), 0)

    def _for_batch(self) -> int | Hold:
        fleet = self._fleet
        for place in self._batch:
            if fleet.outstanding[place] < fleet.seats[fleet.numbers[place]]:
                return place
        for place in self._mixed:
            if fleet.outstanding[place] < fleet.seats[fleet.numbers[place]] and not self._interactive_at(place):
                return place
        return HOLD

    def _interactive_at(self, place: int) -> int:
        """Interactive requests at a replica."""
        there = self._fleet.classes[self._fleet.numbers[place]]
        return sum([count for klass, count in there.items() if klass not in self._batch_classes])

    def _least(self, places: list[int]) -> int:
        """The one that is there with the fewest requests; -1 if none is."""
        there = [place for place in places if self._fleet.present[place]]
        return min(there, key=self._fleet.outstanding.__getitem__, default=-1)
