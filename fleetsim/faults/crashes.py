"""Failures at random times, of replicas, servers or racks."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from math import gamma
from typing import Annotated, ClassVar, Literal, Self

from numpy.random import Generator
from pydantic import Field, model_validator

from fleetsim.errors import Finding, InputError
from fleetsim.faults.api import Fault, Site
from fleetsim.plugins import PolicyConfig

_Hours = Annotated[float, Field(gt=0, json_schema_extra={"unit": "h"})]


class CrashesConfig(PolicyConfig):
    """Parameters of failures."""

    pool: str | None = None
    """Whose replicas fail; default: of all pools."""
    scope: Literal["replica", "server", "rack", "site"] = "server"
    """What fails as one; sites are the scenario's `sites`."""
    mtbf_h: _Hours = 5000.0
    """Mean time between the failures of one such thing, while it works. Meta's 16,384 H100 had 419 unexpected interruptions in 54
    days: 50,677 h per accelerator, 6,335 h per server of eight."""
    shape: Annotated[float, Field(gt=0.1, le=10, json_schema_extra={"unit": "ratio"})] = 1.0
    """Shape of the Weibull distribution of times between failures: 1 is exponential; below 1 failures come in bursts, above 1 with
    age."""
    repair_h: _Hours = 1.0
    """Mean time until it works again."""
    repair_shape: Annotated[float, Field(gt=0.1, le=10, json_schema_extra={"unit": "ratio"})] = 1.0
    """Shape of the Weibull distribution of that."""
    first_h: Annotated[float, Field(ge=0, json_schema_extra={"unit": "h"})] = 0.0
    """Nothing fails before."""

    @model_validator(mode="after")
    def _finite(self) -> Self:
        if self.repair_h > self.mtbf_h:
            raise ValueError(f"repair_h {self.repair_h:g} is above mtbf_h {self.mtbf_h:g}")
        return self


class Crashes:
    """Things fail at random, independently of each other, and work again after a while.

    Rule: each replica, server, rack or site (`scope`) works for a time drawn from a Weibull distribution of mean `mtbf_h`, fails
    with all replicas on it, is repaired after a time of mean `repair_h`, and so on. Whether a replica runs or is off does not
    matter.

    References
    ----------
    Times between failures and their causes: Llama team, "The Llama 3 Herd of Models", 2024, arXiv:2407.21783, section 3.3.4.
    Weibull distributions with shapes below 1: B. Schroeder, G. A. Gibson, "A large-scale study of failures in high-performance
    computing systems", DSN 2006, doi:10.1109/DSN.2006.5.
    """

    Config: ClassVar = CrashesConfig

    def __init__(self, config: CrashesConfig, rng: Generator, site: Site) -> None:
        self._config = config
        self._rng = rng
        every = tuple((i,) for replicas in site.pools.values() for i in replicas)
        if config.scope == "site" and not site.sites:
            raise InputError(
                Finding("faults fail whole sites, but the scenario has none", hint="give top-level `sites`")
            )
        places = tuple(site.sites.values())
        groups = {"replica": every, "server": site.servers, "rack": site.racks, "site": places}[config.scope]
        self._groups = site.of_pool(config.pool, groups)

    def faults(self) -> Iterator[Fault]:
        """Failures and repairs for ever."""
        config = self._config
        up_s, down_s = config.mtbf_h * 3600.0, config.repair_h * 3600.0
        # each thing draws from a stream of its own, so that another pool changes nothing here
        rngs = self._rng.spawn(len(self._groups))
        heap: list[tuple[float, int, bool]] = []
        for number, rng in enumerate(rngs):
            heap.append((config.first_h * 3600.0 + _weibull(rng, up_s, config.shape), number, True))
        heapify(heap)
        while heap:
            time_s, number, fails = heappop(heap)
            yield Fault(time_s, "fail" if fails else "repair", self._groups[number])
            mean_s, shape = (down_s, config.repair_shape) if fails else (up_s, config.shape)
            heappush(heap, (time_s + _weibull(rngs[number], mean_s, shape), number, not fails))


def _weibull(rng: Generator, mean: float, shape: float) -> float:
    return mean / gamma(1.0 + 1.0 / shape) * float(rng.weibull(shape))
