"""Requests that nobody will ever take: their replicas are gone and nothing that is to come brings any back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fleetsim.engine.replica import Replica
from fleetsim.fleet.stories import rows_of
from fleetsim.workload.request import FAILED, Request

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fleetsim.fleet.fleet import Fleet
    from fleetsim.fleet.sides import Group

REASON = "no replica is left that could take it"


class Stranding:
    """Tells what is over although requests are under way, so that clocks which tick while there are any can stop.

    A replica is gone for good if it is down, or cannot be reached, and no fault model has anything more to say: a repair is what it
    would say. What an autoscaler could still start is not gone.

    Parameters
    ----------
    fleet : Fleet
        With a lifecycle.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.failed = 0
        """Requests that failed because of that."""

    def over(self) -> bool:
        """Whether all that are under way are such requests, or wait for a replica to tell what it cannot tell."""
        fleet = self._fleet
        if not self._nothing_comes():
            return False
        return rows_of([*self._requests(), *self._unheard()]) >= fleet.in_flight

    def fail(self) -> bool:
        """Let these requests fail; whether there were any."""
        if not self._nothing_comes():
            return False
        gateway = self._fleet.gateway
        found = [request for request in self._requests() if request not in gateway.patience.twins]
        for request in found:
            gateway.outside.pop(request, None)
            gateway.presence.waiting_room.pop(request, None)
            if gateway.swapping is not None:
                gateway.swapping.gone(request)
            request.reason = REASON
            gateway.end(request, FAILED)
        self.failed += len(found)
        return bool(found)

    def _nothing_comes(self) -> bool:
        fleet = self._fleet
        assert fleet.lifecycle is not None
        return fleet.exhausted and not fleet.expected and not fleet.lifecycle.faults_to_come

    def _requests(self) -> list[Request]:
        """Those that wait at the gateway in vain."""
        gateway, presence = self._fleet.gateway, self._fleet.gateway.presence
        found = [request for request, group in presence.waiting_room.items() if not self._could(group, request)]
        found += [r for r in gateway.holding.requests() if not self._could(gateway.groups[r.model], r)]
        if gateway.swapping is not None:
            waiting = gateway.swapping.waiting()
            found += [request for request in waiting if not self._could(gateway.groups[request.model], request)]
        return found

    def _could(self, group: Group, request: Request) -> bool:
        """Whether somebody may take a request to its end some day."""
        presence, entry = self._fleet.gateway.presence, group.entry
        if presence.gateways is not None and presence.gateways.lacks(request):
            return False
        if request.images and group.encoders and not self._any_left(group.encoders):
            return False
        able = [self._is_left(replica) for replica in entry.replicas]
        if not any(able):
            return False
        if group.decode is None or not all(
            prefills for prefills, left in zip(entry.prefills_only, able, strict=True) if left
        ):
            return True
        return self._any_left(group.decode.replicas)

    def _any_left(self, replicas: Iterable[Replica]) -> bool:
        return any(self._is_left(replica) for replica in replicas)

    def _is_left(self, replica: Replica) -> bool:
        lifecycle = self._fleet.lifecycle
        assert lifecycle is not None
        down = self._fleet.lives[replica.index].state == "down"
        return not down and replica.index not in lifecycle.outages.behind

    def _unheard(self) -> list[Request]:
        """Those of which nobody will hear any more: over, or not delivered, behind a cut; or waiting for their gateway."""
        lifecycle, presence = self._fleet.lifecycle, self._fleet.gateway.presence
        assert lifecycle is not None
        found = [] if presence.gateways is None else presence.gateways.held()
        for behind in lifecycle.outages.behind.values():
            found += [*behind.prefilled, *behind.answers, *presence.lost_at(behind.replica)]
        return found
