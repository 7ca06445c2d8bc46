"""A floor of on-demand replicas, the rest on spot capacity while there is some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Self

from numpy.random import Generator
from pydantic import Field, model_validator

from fleetsim.elasticity.api import Action, FleetState, PoolName, Scale
from fleetsim.plugins import PolicyConfig
from fleetsim.scaling.behaviour import Period

_Count = Annotated[int, Field(ge=0, strict=True, json_schema_extra={"unit": "count"})]


class SpotFloorConfig(PolicyConfig):
    """Parameters of a floor."""

    on_demand: PoolName = "on-demand"
    """Pool that nobody takes away."""
    spot: PoolName = "spot"
    """Pool on spot capacity: the fault model `spot` says when."""
    replicas: Annotated[int, Field(ge=1, strict=True, json_schema_extra={"unit": "count"})]
    """Wanted in both together."""
    floor: _Count = 1
    """On-demand replicas that are always there."""
    cover: bool = True
    """Whether on-demand replicas stand in for spot replicas that are not there; otherwise there are fewer meanwhile."""
    period_s: Period = 30.0
    """Time between two looks."""

    @model_validator(mode="after")
    def _some_spot(self) -> Self:
        if self.floor > self.replicas:
            raise ValueError(f"floor {self.floor} is above replicas {self.replicas}")
        return self


class SpotFloor:
    """Serving's form of "can't be late": a floor of on-demand replicas, spot for the rest, on-demand where spot is missing.

    Rule: the spot pool should have ``replicas - floor``, always. The on-demand pool has `floor`, and with `cover` one more for each
    spot replica that is not ready: one that was warned of its interruption counts as gone, so that the other starts within the
    notice. It leaves when the spot replica is ready again. Spot capacity is never waited for, nor predicted.

    What is charged: the start of whatever comes, both replicas while one replaces the other, and what interruptions lose
    (`gateway.on_failure`).

    References
    ----------
    Z. Wu et al., "Can't Be Late: Optimizing Spot Instance Savings under Deadlines", NSDI 2024, for jobs; floors of on-demand
    capacity are usual with autoscaling groups of mixed instances.
    """

    Config: ClassVar = SpotFloorConfig

    def __init__(self, config: SpotFloorConfig, rng: Generator, fleet: FleetState) -> None:
        self.period_s = config.period_s
        self._config = config
        self._fleet = fleet

    def tick(self) -> Sequence[Action]:
        """Both pools' numbers."""
        config = self._config
        away = config.replicas - config.floor
        ready = min(self._fleet.pools[config.spot].ready, away)
        steady = config.floor + (away - ready if config.cover else 0)
        return [Scale(config.spot, away), Scale(config.on_demand, steady)]
