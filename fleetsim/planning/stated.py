"""Mélange's problem as a file states it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fleetsim.planning.melange import MelangeProblem, Offer, solve_melange
from fleetsim.planning.racks import Racks
from fleetsim.planning.result import Plan
from fleetsim.planning.solve import Effort
from fleetsim.scenario.schema import Block, Count, Number
from fleetsim.units import PerSecondOrZero, Quantity, UsdPerHour, Watts

Text = Annotated[str, Field(min_length=1)]


class StatedOffer(Block):
    """A kind of replica."""

    price: UsdPerHour
    """Of a replica."""
    throughputs: Annotated[tuple[Annotated[Number, Field(ge=0)], ...], Field(min_length=1)]
    """Requests of each bucket that a replica serves within the SLO [1/s]; 0: none."""
    power: Watts = 0.0
    """Of a replica at work."""
    limit: Annotated[int, Field(ge=0, strict=True)] | None = None
    """Replicas that can be had."""


class StatedMelange(Block):
    """Cheapest whole numbers of each kind of replica that serve a histogram of request sizes."""

    kind: Literal["melange"]
    rates: Annotated[dict[Text, PerSecondOrZero], Field(min_length=1)]
    """Arrivals of each bucket of request sizes, by name."""
    offers: Annotated[dict[Text, StatedOffer], Field(min_length=1)]
    """Kinds of replicas by name."""
    slices: Count = 4
    """Parts of a bucket that may go to different replicas."""
    utilisation: Annotated[Number, Field(gt=0, le=1)] = 1.0
    """Share of a replica's throughput to plan with."""
    power_limit: Watts | None = None
    """Of all replicas together."""
    racks: Racks | None = None
    """In which all replicas stand."""
    pue: Annotated[Number, Field(ge=1, le=10)] = 1.0
    """Energy of the site over energy of its replicas, for carbon."""
    carbon: Annotated[float, Quantity("carbon intensity", "g/kWh", ge=0)] = 0.0
    """Carbon intensity of the site's energy."""
    carbon_limit: Annotated[Number, Field(ge=0)] | None = None
    """Of all replicas at work [kg/h]."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for name, offer in self.offers.items():
            if len(offer.throughputs) != len(self.rates):
                raise ValueError(f"{name} has {len(offer.throughputs)} throughputs for {len(self.rates)} buckets")
        return self

    def solve(self, effort: Effort | None = None) -> Plan:
        """Solve the integer program."""
        problem = MelangeProblem(
            rates_per_s=tuple(self.rates.values()),
            offers=[Offer(name, offer.price, power_w=offer.power) for name, offer in self.offers.items()],
            throughputs_per_s=[offer.throughputs for offer in self.offers.values()],
            labels=tuple(self.rates),
            slices=self.slices,
            utilisation_limit=self.utilisation,
            limits={name: offer.limit for name, offer in self.offers.items() if offer.limit is not None},
            power_limit_w=self.power_limit,
            racks=self.racks,
            carbon_g_per_kwh=self.carbon * self.pue,
            carbon_limit_kg_per_h=self.carbon_limit,
        )
        return solve_melange(problem, effort)[0]
