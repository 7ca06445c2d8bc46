"""Links that fail at random, alone or with all others of their rack."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.faults.api import Edge, Fault, Site
from fleetsim.plugins import PolicyConfig

_Hours = Annotated[float, Field(gt=0, json_schema_extra={"unit": "h"})]
_Ratio = Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})]


class LinksConfig(PolicyConfig):
    """Parameters of links."""

    pool: str | None = None
    """Whose servers' links fail; default: all pools'."""
    mtbf_h: _Hours = 75_800.0
    """Mean time between failures of one server's link, while it works. Meta's 2,048 servers had 35 failures of switches and cables
    in 54 days."""
    repair_h: _Hours = 1.0
    """Mean time until it works again; an assumption."""
    rack_share: _Ratio = 0.1
    """Share of the failures that take the links of all servers of the rack along, as that of a leaf switch does; an assumption."""
    slow_share: _Ratio = 0.0
    """Share of the failures after which a link carries `slow_ratio` of its bandwidth in place of nothing; an assumption."""
    slow_ratio: Annotated[float, Field(gt=0, lt=1, json_schema_extra={"unit": "ratio"})] = 0.1
    """That part: a flapping cable, or a lane of ten left; an assumption."""


class Links:
    """Links of servers fail at random times, and a part of the failures takes all links of the rack along.

    Rule: each server's link works for an exponential time of mean `mtbf_h`, then carries nothing (or little, with chance
    `slow_share`) for an exponential time of mean `repair_h`; with chance `rack_share` the same happens to all links of its rack.
    Replicas behind go on with what they have (`gateway.on_failure.unreachable`).

    References
    ----------
    Counts of failures of switches and cables: Llama team, "The Llama 3 Herd of Models", 2024, arXiv:2407.21783, section 3.3.4.
    """

    Config: ClassVar = LinksConfig

    def __init__(self, config: LinksConfig, rng: Generator, site: Site) -> None:
        self._config = config
        self._rng = rng
        alone = dict(zip(site.of_pool(config.pool, site.servers), site.links_of(config.pool, "server"), strict=True))
        self._links: list[tuple[tuple[Edge, ...], tuple[Edge, ...]]] = []
        """Of each server: its link, and those of its rack."""
        for server, links in zip(site.servers, site.server_links, strict=True):
            if not any(links == own for own in alone.values()):
                continue
            rack = next(rack for rack in site.racks if server[0] in rack)
            together = [other for group, other in zip(site.servers, site.server_links, strict=True) if group[0] in rack]
            self._links.append((links, tuple(edge for edges in together for edge in edges)))

    def faults(self) -> Iterator[Fault]:
        """Failures and repairs for ever."""
        config = self._config
        rngs = self._rng.spawn(len(self._links))
        heap: list[tuple[float, int, tuple[Edge, ...], float]] = []
        for number, rng in enumerate(rngs):
            heap.append((float(rng.exponential(config.mtbf_h)) * 3600.0, number, (), 0.0))
        heapify(heap)
        while heap:
            time_s, number, failed, share = heappop(heap)
            rng, (own, rack) = rngs[number], self._links[number]
            if failed:
                yield Fault(time_s, "link_back", (), share, links=failed)
                heappush(heap, (time_s + float(rng.exponential(config.mtbf_h)) * 3600.0, number, (), 0.0))
                continue
            links = rack if rng.random() < config.rack_share else own
            share = config.slow_ratio if rng.random() < config.slow_share else 0.0
            yield Fault(time_s, "link", (), share, links=links)
            heappush(heap, (time_s + float(rng.exponential(config.repair_h)) * 3600.0, number, links, share))
