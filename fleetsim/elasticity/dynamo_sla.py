"""The planner of NVIDIA Dynamo over pools for prompts and for answers that share a budget of accelerators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.elasticity.api import Action, Convert, FleetState, PoolName, Scale
from fleetsim.errors import PolicyError
from fleetsim.plugins import PolicyConfig
from fleetsim.scaling.behaviour import Period
from fleetsim.scaling.dynamo_planner import DynamoPlanner, DynamoPlannerConfig

_Count = Annotated[int, Field(ge=1, strict=True, json_schema_extra={"unit": "count"})]


class DynamoSlaConfig(PolicyConfig):
    """Parameters of the planner; defaults as in Dynamo."""

    prefill: PoolName = "prefill"
    """Pool that computes prompts."""
    decode: PoolName = "decode"
    """Pool that computes answers."""
    interval_s: Period = 180.0
    """Time between two adjustments; longer than a replica needs to start."""
    max_accelerators: _Count = 8
    """Budget of both pools together."""
    least_replicas: _Count = 1
    """Replicas of each pool that the budget always allows."""


class DynamoSla:
    """As many replicas for prompts and for answers as their objectives need, within a budget of accelerators for both.

    Rule: for each pool by itself what the autoscaler `dynamo-planner` wants in its mode `sla`. If both together need more than
    `max_accelerators`, the prompts' replicas are cut to their part of the budget, rounded, and the answers' get what is left of it,
    each at least `least_replicas`. Where the scenario has a conversion from the pool that has too many to the one that has too
    few, replicas turn before any are started or stopped.

    References
    ----------
    ai-dynamo/dynamo, docs/planner (SLA-based planner, `max_gpu_budget`, `min_endpoint`).
    """

    Config: ClassVar = DynamoSlaConfig

    def __init__(self, config: DynamoSlaConfig, rng: Generator, fleet: FleetState) -> None:
        self.period_s = config.interval_s
        self._config, self._fleet = config, fleet
        self._names = (config.prefill, config.decode)
        for name in self._names:
            if name not in fleet.pools:
                raise PolicyError(f'dynamo-sla names a pool "{name}", which there is not')
        own = DynamoPlannerConfig(mode="sla", interval_s=config.interval_s)
        self._planners = [DynamoPlanner(own, rng, fleet.pools[name]) for name in self._names]

    def tick(self) -> Sequence[Action]:
        """Replicas of both pools."""
        fleet = self._fleet
        wanted = self._within_budget([planner.tick() for planner in self._planners])
        have = [fleet.pools[name].wanted for name in self._names]
        actions: list[Action] = []
        for giver, taker in ((0, 1), (1, 0)):
            pair = (self._names[giver], self._names[taker])
            turn = min(have[giver] - wanted[giver], wanted[taker] - have[taker])
            if turn > 0 and pair in fleet.ways:
                actions.append(Convert(*pair, turn))
        actions += [Scale(name, count) for name, count in zip(self._names, wanted, strict=True)]
        return actions

    def _within_budget(self, wanted: list[int]) -> list[int]:
        config, chips = self._config, [self._fleet.pools[name].accelerators for name in self._names]
        total = sum([count * each for count, each in zip(wanted, chips, strict=True)])
        if total <= config.max_accelerators:
            return wanted
        prompts = max(round(wanted[0] * config.max_accelerators / total), config.least_replicas)
        answers = (config.max_accelerators - prompts * chips[0]) // chips[1]
        return [prompts, max(answers, config.least_replicas)]
