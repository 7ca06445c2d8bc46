"""Routers that choose the site first: the nearest, the cheapest, the greenest one that has room."""

from __future__ import annotations

from typing import ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import FleetView, RequestView
from fleetsim.routing.min_index import MinIndex


class GeoConfig(PolicyConfig):
    """Parameters of routers that choose a site first."""

    spill_per_replica: float = Field(default=16.0, gt=0, json_schema_extra={"unit": "count"})
    """Requests sent and not ended, per replica of a site that takes requests, from which on the next site gets them."""
    max_rtt_s: float | None = Field(default=None, ge=0, json_schema_extra={"unit": "s"})
    """Sites that add more than this to a request's latency, there and back, are left out; default: none is. Where all are, the
    nearest gets it."""
    patient_classes: tuple[str, ...] = ("batch",)
    """Classes for which that bound does not hold."""


class GeoRouter:
    """Base of these routers: orders the sites for each request, takes the first with room, and there the least loaded replica."""

    Config: ClassVar = GeoConfig
    needs_sites = True

    def __init__(self, config: GeoConfig, rng: Generator, fleet: FleetView) -> None:
        self._fleet = fleet
        self.places = fleet.places
        self._spill = config.spill_per_replica
        self._max_s = config.max_rtt_s
        self._patient = frozenset(config.patient_classes)
        everybody = (tuple(range(fleet.count)),)
        self.members: tuple[tuple[int, ...], ...] = everybody if fleet.places is None else fleet.places.members
        """Replicas at each site."""
        self._site_of = [0] * fleet.count
        self._seat_of = [0] * fleet.count
        for site, members in enumerate(self.members):
            for seat, position in enumerate(members):
                self._site_of[position], self._seat_of[position] = site, seat
        self._least = [MinIndex([fleet.outstanding[i] for i in members]) for members in self.members]
        self._seen = list(fleet.outstanding)
        self._there = list(fleet.present)
        self._count = [sum(fleet.present[i] for i in members) for members in self.members]
        self._load = [sum(fleet.outstanding[i] for i in members if fleet.present[i]) for members in self.members]
        self._changed = fleet.watch_outstanding()

    def rank(self, request: RequestView, site: int, way_s: float, now_s: float) -> tuple[float, ...]:
        """What a site is judged by for a request; the smallest is best."""
        raise NotImplementedError

    def route(self, request: RequestView) -> int:
        """Choose a replica."""
        now_s = self._fleet.now_s  # looking at the time brings old counts up to it
        self._refresh()
        ways = [0.0 if self.places is None else self.places.way_s(request.origin, i) for i in range(len(self.members))]
        sites = [site for site in range(len(self.members)) if self._count[site]]
        if not sites:
            return 0  # nobody is there: the gateway looks for somebody who is
        allowed = sites
        if self._max_s is not None and request.klass not in self._patient:
            near = [site for site in sites if ways[site] <= self._max_s]
            allowed = near or [min(sites, key=lambda site: (ways[site], site))]
        order = sorted(allowed, key=lambda site: (*self.rank(request, site, ways[site], now_s), ways[site], site))
        for site in order:
            if self._load[site] < self._spill * self._count[site]:
                return self._replica(site)
        return self._replica(min(order, key=lambda site: self._load[site] / self._count[site]))

    def _replica(self, site: int) -> int:
        return self.members[site][self._least[site].smallest()]

    def _refresh(self) -> None:
        """Take over what has changed since the last decision."""
        fleet, changed = self._fleet, self._changed
        for position in changed:
            now, before, site = fleet.outstanding[position], self._seen[position], self._site_of[position]
            here, was_here = fleet.present[position], self._there[position]
            if now != before:
                self._least[site].add(self._seat_of[position], now - before)
            self._load[site] += (now if here else 0) - (before if was_here else 0)
            self._count[site] += here - was_here
            self._seen[position], self._there[position] = now, here
        changed.clear()


class NearestSite(GeoRouter):
    """The nearest site that has room, and its least loaded replica.

    Rule: sites are tried in the order of the time that they add to the request's latency, from where it comes to the gateway, to
    the site and back; the first with fewer than `spill_per_replica` requests outstanding per replica gets the request, or where
    all have more, the one with the fewest. Sites all of whose replicas are gone are passed over, so their requests fail over to
    the next.

    What is charged: nothing for the decision; the way there and back.
    """

    def rank(self, request: RequestView, site: int, way_s: float, now_s: float) -> tuple[float, ...]:
        """The way alone."""
        return (way_s,)


class CheapestSite(GeoRouter):
    """The site with the lowest price now that has room, within a bound of latency.

    Rule: as nearest-site, but in the order of the price of a replica's hour and of the energy that it takes in it at full power,
    with its servers and cooling (the cheapest replica of each site counts: meant for sites with like replicas); sites that add
    more than `max_rtt_s` are left out for classes that are not `patient_classes`.

    What is charged: nothing for the decision; the way there and back.
    """

    def rank(self, request: RequestView, site: int, way_s: float, now_s: float) -> tuple[float, ...]:
        """Dollars an hour."""
        if self.places is None:
            return (0.0,)
        return (min([self.places.usd_per_h(i, now_s) for i in self.places.kinds[site]]),)


class GreenestSite(GeoRouter):
    """The site whose grid is cleanest now and that has room, within a bound of latency: follow the sun.

    Rule: as nearest-site, but in the order of the carbon intensity of the sites' grids times their PUE; sites that add more than
    `max_rtt_s` are left out for classes that are not `patient_classes`. Intensities are those of the hour, which grid operators
    publish.

    What is charged: nothing for the decision; the way there and back.

    References
    ----------
    Spatial shifting: A. Radovanovic et al., "Carbon-Aware Computing for Datacenters", IEEE Trans. Power Systems 38(2), 2023; its
    bounds: T. Sukprasert et al., "On the Limitations of Carbon-Aware Temporal and Spatial Workload Shifting in the Cloud",
    EuroSys 2024.
    """

    needs_carbon = True

    def rank(self, request: RequestView, site: int, way_s: float, now_s: float) -> tuple[float, ...]:
        """Grams per kilowatt-hour."""
        return (0.0,) if self.places is None else (self.places.carbon(site, now_s),)
