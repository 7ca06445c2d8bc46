"""A cascade that looks at the pool before it escalates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from numpy.random import Generator

from fleetsim.model_routing.api import Accept, Answer, Ask, ModelsView, Query
from fleetsim.model_routing.frugal_gpt import FrugalGpt, FrugalGptConfig
from fleetsim.units import Seconds, SecondsOrZero


class PoolGateConfig(FrugalGptConfig):
    """Parameters of the cascade with a gate."""

    limit: Seconds = 30.0
    """Time from arrival to the last token that is to be kept."""
    grace: SecondsOrZero = 0.05
    """By how much it may be passed."""


class PoolGate:
    """A cascade that escalates only where the next model would still be in time, else gives the answer that it has.

    Rule: as `frugal-gpt`; but the next arm is asked only if its expected latency, with the requests that are at its replicas now,
    ends within `limit` of the arrival and the grace. An arm that would be late is left out, and the one after it is looked at.

    Charged: as `frugal-gpt`. Loads are as old as `gateway.view` says.

    References
    ----------
    The workload-router-pool vision, direction 14: cascades that know their pools (as a card of it has it; the grace is ours).
    """

    Config: ClassVar = PoolGateConfig

    def __init__(self, config: PoolGateConfig, rng: Generator, models: ModelsView) -> None:
        self._config, self._models = config, models
        self._cascade = FrugalGpt(config, rng, models)

    def route(self, query: Query) -> Ask:
        """The first arm."""
        return self._cascade.route(query)

    def proceed(self, query: Query, answers: Sequence[Answer]) -> Ask | Accept:
        """The answer, or the next arm that would be in time."""
        said = self._cascade.proceed(query, answers)
        if isinstance(said, Accept):
            return said
        left_s = query.arrival_s + self._config.limit + self._config.grace - query.now_s
        for ask in self._cascade.later(said.arm):
            if self._models.latency_s(ask.arm, query) <= left_s:
                return ask
        return Accept(len(answers) - 1)
