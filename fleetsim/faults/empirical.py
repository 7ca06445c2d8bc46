"""Failures as often as somebody counted, of replicas, servers and their links."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import Annotated, ClassVar, Self

import numpy as np
from numpy.random import Generator
from pydantic import Field, model_validator

from fleetsim.catalog.failures import Scope, load_failures
from fleetsim.faults.api import Edge, Fault, Site
from fleetsim.plugins import PolicyConfig

_Hours = Annotated[float, Field(ge=0, json_schema_extra={"unit": "h"})]


class EmpiricalConfig(PolicyConfig):
    """Parameters of counted failures."""

    counts: str = "llama3-herd"
    """Whose counts: a file of `models/failures`. `llama3-herd`: 419 unexpected interruptions of 16,384 H100 in 54 days, 61 % of
    them of one accelerator, 8 % of the network."""
    pool: str | None = None
    """Whose replicas, servers and links fail; default: all pools'."""
    rate_factor: Annotated[float, Field(gt=0, json_schema_extra={"unit": "ratio"})] = 1.0
    """How many times as often as counted: to see in an hour what happens in a month."""
    between: tuple[_Hours, ...] = ()
    """Times between failures of one thing as recorded: quantiles at equal levels from 0 to 1, of which the shape is taken and the
    mean is that of the counts. Default: exponential."""
    repair_h: Annotated[tuple[_Hours, ...], Field(min_length=2)] = (0.05, 0.25, 0.5, 1.0, 3.0, 24.0)
    """Times until a thing works again, in the same form. The default is an assumption: three in five are over within the hour, one
    in five takes more than three."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
        for name, values in (("between", self.between), ("repair_h", self.repair_h)):
            if any(b < a for a, b in pairwise(values)):
                raise ValueError(f"{name}: quantiles must not fall")
            if values and not values[-1]:
                raise ValueError(f"{name}: the largest time must be above 0")
        if len(self.between) == 1:
            raise ValueError("between: one time is no distribution; give two quantiles at least")
        return self


class Empirical:
    """Things fail as often as they did in a fleet of which the failures were counted.

    Rule: a replica fails with the counted rate per accelerator times its accelerators, for causes that take down one accelerator; a
    server with that of its accelerators, for those that take down a host; and its link to the others is cut with that for those of
    the network. Repairs take times drawn from `repair_h`. A replica that is down for two reasons is repaired when both are over.

    References
    ----------
    Llama team, "The Llama 3 Herd of Models", 2024, arXiv:2407.21783, section 3.3.4 (counts by cause).
    """

    Config: ClassVar = EmpiricalConfig

    def __init__(self, config: EmpiricalConfig, rng: Generator, site: Site) -> None:
        self._config = config
        self._rng = rng
        counts = load_failures(config.counts)
        self._things: list[tuple[float, tuple[int, ...], tuple[Edge, ...]]] = []
        """Of each thing that may fail: mean time between failures [h], replicas that it takes down, links that it cuts."""
        replicas = [i for members in site.pools.values() for i in members]
        if config.pool is not None:
            replicas = [i for group in site.of_pool(config.pool, [tuple(replicas)]) for i in group]
        groups = site.of_pool(config.pool, site.servers)
        links = site.links_of(config.pool, "server")
        # each kind in an order of its own, so that another one changes nothing
        for scope, members in (("replica", [(i,) for i in replicas]), ("server", groups), ("link", groups)):
            kind: Scope = scope  # type: ignore[assignment]
            for number, group in enumerate(members):
                accelerators = sum(site.accelerators_of(i) for i in group)
                rate = counts.per_accelerator_hour(kind) * accelerators * config.rate_factor
                if rate:
                    struck = (() if kind == "link" else group, links[number] if kind == "link" else ())
                    self._things.append((1.0 / rate, *struck))

    def faults(self) -> Iterator[Fault]:
        """Failures and repairs for ever."""
        rngs = self._rng.spawn(len(self._things))
        down: dict[int, int] = {}
        heap = [(self._up_s(rngs[n], mean_h), n, True) for n, (mean_h, _, _) in enumerate(self._things)]
        heapify(heap)
        while heap:
            time_s, number, fails = heappop(heap)
            mean_h, replicas, links = self._things[number]
            if links:
                yield Fault(time_s, "link" if fails else "link_back", (), 0.0, links=links)
            else:
                for replica in replicas:
                    down[replica] = down.get(replica, 0) + (1 if fails else -1)
                changed = tuple(i for i in replicas if down[i] == (1 if fails else 0))
                if changed:
                    yield Fault(time_s, "fail" if fails else "repair", changed)
            wait_s = _drawn(rngs[number], self._config.repair_h) * 3600.0 if fails else self._up_s(rngs[number], mean_h)
            heappush(heap, (time_s + wait_s, number, not fails))

    def _up_s(self, rng: Generator, mean_h: float) -> float:
        """Time until a thing that works fails [s]."""
        between = self._config.between
        if not between:
            return float(rng.exponential(mean_h)) * 3600.0
        own_mean = (sum(between) - 0.5 * (between[0] + between[-1])) / (len(between) - 1)
        return _drawn(rng, between) / own_mean * mean_h * 3600.0


def _drawn(rng: Generator, quantiles: tuple[float, ...]) -> float:
    """A value drawn by linear interpolation between quantiles at equal levels."""
    return float(np.interp(rng.random(), np.linspace(0.0, 1.0, len(quantiles)), quantiles))
