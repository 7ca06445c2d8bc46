"""How long requests and answers are on their way between where they come from, the gateway and where they are served."""

from __future__ import annotations

from collections.abc import Sequence

from fleetsim.fleet.pool import Pool
from fleetsim.scenario.schema import Scenario, Site
from fleetsim.workload.request import Request


def round_trip_s(sites: dict[str, Site], a: str, b: str) -> float:
    """Round trip between two sites, or within one [s]."""
    if a == b:
        return sites[a].local_rtt
    rtt_s = sites[a].rtt.get(b)
    return sites[b].rtt[a] if rtt_s is None else rtt_s


class Ways:
    """Times between sites; half of a round trip each way.

    A request goes from its origin to the gateway and from there to the replica, and its answer the same way back. Without a site of
    its own the gateway is a front end at every site, at hand for the requests that come from there. Requests without an origin come
    from where the gateway stands; if that is everywhere, they have no way to go.

    Parameters
    ----------
    scenario : Scenario
        With sites.
    pools : sequence of Pool
        Of each replica.
    """

    def __init__(self, scenario: Scenario, pools: Sequence[Pool]) -> None:
        sites = scenario.sites
        self._one_way_s = {(a, b): 0.5 * round_trip_s(sites, a, b) for a in sites for b in sites}
        self._gateway = scenario.gateway.site
        self._site_of = [pool.config.site or "" for pool in pools]
        self._tenants = {name: block.origin for name, block in scenario.tenants.items()}
        self._classes = {name: block.origin for name, block in scenario.classes.items()}

    def set_origin(self, request: Request) -> None:
        """Say where a request comes from, if its tenant or its class does and its workload does not."""
        if request.origin is None:
            request.origin = self._tenants.get(request.tenant or "") or self._classes.get(request.klass or "")

    def to_gateway_s(self, origin: str | None) -> float:
        """From where a request comes to the gateway [s]."""
        if origin is None:
            return 0.0
        return 0.0 if self._gateway is None else self._one_way_s[origin, self._gateway]

    def to_site_s(self, origin: str | None, site: str) -> float:
        """From the gateway to a site [s]."""
        entry = self._gateway or origin
        return 0.0 if entry is None else self._one_way_s[entry, site]

    def to_replica_s(self, request: Request, replica: int) -> float:
        """From the gateway to a replica [s]."""
        return self.to_site_s(request.origin, self._site_of[replica])

    def back_s(self, origin: str | None, replica: int) -> float:
        """From a replica to where the request came from [s]."""
        return self.to_site_s(origin, self._site_of[replica]) + self.to_gateway_s(origin)

    def both_s(self, origin: str | None, site: str) -> float:
        """To a site and back from there, all the way [s]."""
        return 2.0 * (self.to_gateway_s(origin) + self.to_site_s(origin, site))

    def between_s(self, source: int, target: int) -> float:
        """From one replica to another [s]."""
        a, b = self._site_of[source], self._site_of[target]
        return 0.0 if a == b else self._one_way_s[a, b]
