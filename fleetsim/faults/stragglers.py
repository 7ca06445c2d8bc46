"""Chips that are slower than they should be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Self

from numpy.random import Generator
from pydantic import Field, model_validator

from fleetsim.faults.api import Fault, Site
from fleetsim.plugins import PolicyConfig

_Factor = Annotated[float, Field(ge=1, le=1000, json_schema_extra={"unit": "ratio"})]


class StragglersConfig(PolicyConfig):
    """Parameters of stragglers."""

    pool: str | None = None
    """Whose; default: all pools'."""
    share: Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.01
    """Share of the accelerators that are slow; an assumption."""
    min_factor: _Factor = 1.1
    """A slow accelerator's steps last so many times as long at least; an assumption."""
    max_factor: _Factor = 2.0
    """At most; an assumption."""
    at_s: Annotated[float, Field(ge=0, json_schema_extra={"unit": "s"})] = 0.0
    """From when on."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_factor > self.max_factor:
            raise ValueError(f"min_factor {self.min_factor:g} is above max_factor {self.max_factor:g}")
        return self


class Stragglers:
    """Some accelerators are slow, and so are the replicas that they are part of.

    Rule: each accelerator is slow with chance `share`, its factor drawn evenly between `min_factor` and `max_factor`; a replica is
    as slow as its slowest accelerator, since its ranks wait for each other, from `at_s` to the end.
    """

    Config: ClassVar = StragglersConfig

    def __init__(self, config: StragglersConfig, rng: Generator, site: Site) -> None:
        self._config = config
        every = tuple(i for members in site.pools.values() for i in members)
        replicas = [i for group in site.of_pool(config.pool, [every]) for i in group]
        self._faults: list[Fault] = []
        for replica, own in zip(replicas, rng.spawn(len(replicas)), strict=True):
            count = site.accelerators_of(replica)
            slow = own.random(count) < config.share
            factors = own.uniform(config.min_factor, config.max_factor, count)[slow]
            if len(factors):
                self._faults.append(Fault(config.at_s, "slow", (replica,), float(factors.max())))

    def faults(self) -> Iterator[Fault]:
        """All at once."""
        yield from self._faults
