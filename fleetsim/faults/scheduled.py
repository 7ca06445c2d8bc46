"""Failures at given times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal

from numpy.random import Generator
from pydantic import BaseModel, ConfigDict, Field

from fleetsim.errors import Finding, InputError
from fleetsim.faults.api import Fault, Site
from fleetsim.plugins import PolicyConfig


class Incident(BaseModel):
    """One thing that happens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at_s: Annotated[float, Field(ge=0, json_schema_extra={"unit": "s"})]
    """When."""
    for_s: Annotated[float, Field(gt=0, json_schema_extra={"unit": "s"})] | None = None
    """How long; default: for good."""
    what: Literal["fail", "slow"] = "fail"
    """Failure, or steps that last longer."""
    factor: Annotated[float, Field(gt=0, le=1000, json_schema_extra={"unit": "ratio"})] = 2.0
    """How many times as long they last."""
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
    """… all at a site of the scenario, of whatever pool."""


class ScheduledConfig(PolicyConfig):
    """What happens when."""

    incidents: Annotated[tuple[Incident, ...], Field(min_length=1)]
    """In any order."""


class Scheduled:
    """What is said happens when it is said: a drill, or an incident that is to be understood.

    Rule: each incident strikes the replicas, the server or the rack that it names at `at_s`, and is over `for_s` later.
    """

    Config: ClassVar = ScheduledConfig

    def __init__(self, config: ScheduledConfig, rng: Generator, site: Site) -> None:
        self._events: list[Fault] = []
        for incident in config.incidents:
            struck = _struck(incident, site)
            begin, kind = incident.at_s, incident.what
            if incident.notice_s and kind == "fail":
                self._events.append(Fault(max(begin - incident.notice_s, 0.0), "warn", struck))
            self._events.append(Fault(begin, kind, struck, incident.factor))
            if incident.for_s is not None:
                over_s = begin + incident.for_s
                self._events.append(
                    Fault(over_s, "repair", struck) if kind == "fail" else Fault(over_s, "slow", struck)
                )
        self._events.sort(key=lambda fault: fault.time_s)

    def faults(self) -> Iterator[Fault]:
        """All incidents in order."""
        yield from self._events


def _struck(incident: Incident, site: Site) -> tuple[int, ...]:
    if incident.site is not None:
        if incident.site not in site.sites:
            raise InputError(
                Finding(f'faults name the site "{incident.site}"', hint=f"sites: {', '.join(site.sites) or 'none'}")
            )
        return site.sites[incident.site]
    pool = incident.pool or next(iter(site.pools))
    if pool not in site.pools:
        raise InputError(Finding(f'faults name the pool "{pool}"', hint=f"pools: {', '.join(site.pools)}"))
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
