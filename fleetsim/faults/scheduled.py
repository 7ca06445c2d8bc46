"""Failures at given times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal, Self

from numpy.random import Generator
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fleetsim.errors import Finding, InputError
from fleetsim.faults.api import Fault, FaultKind, Site
from fleetsim.plugins import PolicyConfig


class Incident(BaseModel):
    """One thing that happens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at_s: Annotated[float, Field(ge=0, json_schema_extra={"unit": "s"})]
    """When."""
    for_s: Annotated[float, Field(gt=0, json_schema_extra={"unit": "s"})] | None = None
    """How long; default: for good."""
    what: Literal["fail", "slow", "cut", "throttle", "lose-gateway", "lose-cache", "corrupt-cache"] = "fail"
    """Failure; steps that last longer; links that carry nothing, or less than usual: those of a rack to the others, of a server's
    adapters to its leaf, of a replica to its server, or those that `link` names; no gateway for new requests; a tier
    below the memory of replicas that loses what it holds, or holds something else, which shows when it is read."""
    factor: Annotated[float, Field(gt=0, le=1000, json_schema_extra={"unit": "ratio"})] = 2.0
    """How many times as long steps last, or transfers over a link that is throttled and that they fill."""
    share: Annotated[float, Field(gt=0, le=1, json_schema_extra={"unit": "ratio"})] = 1.0
    """Of the gateways that are lost, and so of the sessions, or requests without one, that find none; or of the blocks that are
    corrupt."""
    tier: Literal["host", "ssd", "store"] = "host"
    """Which tier is struck; the store is all pools'."""
    link: Literal["gateway", "store"] | None = None
    """Which link is cut or throttled, in place of one of `pool`: the gateway's adapter, or the remote store's."""
    notice_s: Annotated[float, Field(ge=0, json_schema_extra={"unit": "s"})] = 0.0
    """Warning before a failure: from then on the replica takes no requests and drains."""
    pool: str | None = None
    """Whose; default: the first pool's."""
    replicas: tuple[Annotated[int, Field(ge=0, strict=True)], ...] = ()
    """Numbers within the pool; or …"""
    server: Annotated[int, Field(ge=0, strict=True)] | None = None
    """… all on a server, by its number in the pool; or …"""
    rack: Annotated[int, Field(ge=0, strict=True)] | None = None
    """… all in a rack, by its number in the pool; or …"""
    site: str | None = None
    """… all at a site of the scenario, of whatever pool; of links, the site's to all other sites."""

    @model_validator(mode="after")
    def _links_come_back(self) -> Self:
        network = self.what in ("cut", "throttle")
        if self.what == "lose-gateway":
            if self.for_s is None:
                raise ValueError(
                    "what: lose-gateway needs for_s: a gateway that never comes back ends the run; give its time"
                )
            if self.replicas or self.server is not None or self.rack is not None or self.pool is not None:
                raise ValueError("what: lose-gateway strikes no pool: leave out pool, replicas, server and rack")
        if self.what in ("lose-cache", "corrupt-cache") and self.for_s is not None:
            raise ValueError(f"for_s: what a tier has lost does not come back: leave it out with what: {self.what}")
        if self.link is not None and not network:
            raise ValueError(f"link: {self.link} is for what: cut or throttle")
        if network and self.for_s is None:
            raise ValueError(
                f"what: {self.what} needs for_s: a link that never comes back is none; give the time of the run"
            )
        if network and self.notice_s:
            raise ValueError(f"notice_s: nobody is warned before a {self.what}")
        return self


class ScheduledConfig(PolicyConfig):
    """What happens when."""

    incidents: Annotated[tuple[Incident, ...], Field(min_length=1)]
    """In any order."""


class Scheduled:
    """What is said happens when it is said: a drill, or an incident that is to be understood.

    Rule: each incident strikes the replicas, the server, the rack or the link that it names at `at_s`, and is over `for_s` later. A
    replica behind a cut is not gone: it goes on with what it has, unseen (`gateway.on_failure.unreachable`).
    """

    Config: ClassVar = ScheduledConfig

    def __init__(self, config: ScheduledConfig, rng: Generator, site: Site) -> None:
        self._events: list[Fault] = []
        for incident in config.incidents:
            if incident.what in ("cut", "throttle"):
                self._events += _of_links(incident, site)
            elif incident.what == "lose-gateway":
                self._events += _of_gateways(incident)
            elif incident.what in ("lose-cache", "corrupt-cache"):
                self._events.append(_of_tier(incident, site))
            else:
                self._events += _of_replicas(incident, site)
        self._events.sort(key=lambda fault: fault.time_s)

    def faults(self) -> Iterator[Fault]:
        """All incidents in order."""
        yield from self._events


def _of_replicas(incident: Incident, site: Site) -> list[Fault]:
    """Failure or slowness of replicas."""
    struck, begin_s = _struck(incident, site), incident.at_s
    if incident.what == "slow":
        events = [Fault(begin_s, "slow", struck, incident.factor)]
        if incident.for_s is not None:
            events.append(Fault(begin_s + incident.for_s, "slow", struck))
        return events
    events = [Fault(max(begin_s - incident.notice_s, 0.0), "warn", struck)] if incident.notice_s else []
    events.append(Fault(begin_s, "fail", struck))
    if incident.for_s is not None:
        events.append(Fault(begin_s + incident.for_s, "repair", struck))
    return events


def _of_tier(incident: Incident, site: Site) -> Fault:
    """Loss or corruption of a tier: at once, and for good."""
    struck = () if incident.tier == "store" else _struck(incident, site)
    kind: FaultKind = "lose_cache" if incident.what == "lose-cache" else "corrupt_cache"
    return Fault(incident.at_s, kind, struck, incident.share, tier=incident.tier)


def _of_gateways(incident: Incident) -> list[Fault]:
    """Loss and return of a share of the gateways."""
    assert incident.for_s is not None
    return [
        Fault(incident.at_s, "gateway", (), incident.share),
        Fault(incident.at_s + incident.for_s, "gateway_back", (), incident.share),
    ]


def _of_links(incident: Incident, site: Site) -> list[Fault]:
    """Begin and end of a cut, or of a throttled link."""
    links = {"gateway": site.gateway_links, "store": site.store_links}.get(incident.link or "", ())
    if incident.site is not None:
        _struck(incident, site)  # refuses what is not there
        links = site.site_links[incident.site]
    elif incident.link is None:
        pool = _pool(incident, site)
        _struck(incident, site)  # refuses what is not there
        rack, server = incident.rack, incident.server
        chosen = [] if rack is None else [site.links_of(pool, "rack")[rack]]
        chosen += [] if server is None else [site.links_of(pool, "server")[server]]
        chosen += [site.links_of(pool, "replica")[number] for number in incident.replicas]
        links = tuple(dict.fromkeys(link for links in chosen for link in links))
    if not links:
        raise InputError(Finding("faults cut the link of a store that is not there", hint="give network.store"))
    share = 0.0 if incident.what == "cut" else 1.0 / incident.factor
    assert incident.for_s is not None
    return [
        Fault(incident.at_s, "link", (), share, links=links),
        Fault(incident.at_s + incident.for_s, "link_back", (), share, links=links),
    ]


def _pool(incident: Incident, site: Site) -> str:
    pool = incident.pool or next(iter(site.pools))
    if pool not in site.pools:
        raise InputError(Finding(f'faults name the pool "{pool}"', hint=f"pools: {', '.join(site.pools)}"))
    return pool


def _struck(incident: Incident, site: Site) -> tuple[int, ...]:
    if incident.site is not None:
        if incident.site not in site.sites:
            raise InputError(
                Finding(f'faults name the site "{incident.site}"', hint=f"sites: {', '.join(site.sites) or 'none'}")
            )
        return site.sites[incident.site]
    pool = _pool(incident, site)
    members = site.pools[pool]
    groups: list[tuple[str, Sequence[tuple[int, ...]], Sequence[int]]] = [
        (
            "replica",
            [(members[i],) if i < len(members) else () for i in incident.replicas],
            range(len(incident.replicas)),
        ),
        ("server", site.of_pool(pool, site.servers), () if incident.server is None else (incident.server,)),
        ("rack", site.of_pool(pool, site.racks), () if incident.rack is None else (incident.rack,)),
    ]
    found: dict[int, None] = {}
    for name, known, chosen in groups:
        for number in chosen:
            group = known[number] if number < len(known) else ()
            if not group:
                raise InputError(
                    Finding(f"faults name a {name} that pool {pool} does not have: it has {len(members)} replicas")
                )
            found.update(dict.fromkeys(group))
    if not found:
        raise InputError(Finding("an incident strikes nothing: give replicas, server, rack or site"))
    return tuple(found)
