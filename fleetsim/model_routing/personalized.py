"""Everybody's own weights."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.api import Ask, ModelsView, Outcome, Query, best
from fleetsim.plugins import PolicyConfig

_Weights = tuple[
    Annotated[float, Field(ge=0)],
    Annotated[float, Field(ge=0)],
    Annotated[float, Field(ge=0)],
]


class PersonalizedConfig(PolicyConfig):
    """Parameters of the personalised router."""

    weights: dict[str, _Weights] = Field(default_factory=dict)
    """What each tenant cares for: quality, price and latency; scaled so that they sum to 1."""
    prior: _Weights = (0.5, 0.25, 0.25)
    """What is believed of a tenant that is not known yet."""
    needed: Annotated[float, Field(ge=0, json_schema_extra={"unit": "count"})] = 20.0
    """Answers after which a tenant's own weights count as much as what is believed of all."""


class Personalized:
    """A personalised router: the arm with the highest utility by the weights of who asks, as far as they are known.

    Rule: ``w_quality p - w_price c / max c - w_latency l / max l``, argmax, the first of equal ones. A tenant's weights become
    known with its answers: after n of them ``(n w + needed prior) / (n + needed)``. The published router learns them in a graph of
    users, tasks and models; what that comes to is the number of answers that it needs (64.8 % of the gain with few, for new users).

    Charged: 20 ms per decision for the embedding.

    References
    ----------
    PersonalizedRouter, arXiv:2511.16883 (TMLR). Read as an abstract only.
    """

    Config: ClassVar = PersonalizedConfig
    decision_s: ClassVar[float] = 0.02

    def __init__(self, config: PersonalizedConfig, rng: Generator, models: ModelsView) -> None:
        self._config, self._models = config, models
        self._prior = _scaled(config.prior)
        self._own = {tenant: _scaled(weights) for tenant, weights in config.weights.items()}
        self._known: dict[str, int] = {}
        self._asks = [Ask(arm) for arm in range(models.count)]

    def route(self, query: Query) -> Ask:
        """The best by who asks."""
        models = self._models
        among = models.open()
        weights = self._weights_of(query.tenant)
        usd = models.usd(query)
        seconds = np.zeros(models.count)
        seconds[among] = [min(models.latency_s(arm, query), 1e6) for arm in among]
        scores = weights[0] * query.chance
        for weight, cost in ((weights[1], usd), (weights[2], seconds)):
            largest = cost[among].max()
            if largest > 0.0:
                scores = scores - weight * cost / largest
        return self._asks[best(scores, among)]

    def feedback(self, outcome: Outcome) -> None:
        """Know who asked a little better."""
        tenant = outcome.query.tenant
        if tenant is not None and tenant in self._own:
            self._known[tenant] = self._known.get(tenant, 0) + 1

    def _weights_of(self, tenant: str | None) -> tuple[float, ...]:
        own = self._own.get(tenant or "")
        if own is None:
            return self._prior
        n, needed = self._known.get(tenant or "", 0), self._config.needed
        part = n / (n + needed) if n + needed > 0.0 else 1.0
        return tuple(part * mine + (1.0 - part) * all_ for mine, all_ in zip(own, self._prior, strict=True))


def _scaled(weights: tuple[float, ...]) -> tuple[float, ...]:
    total = sum(weights)
    return tuple(weight / total for weight in weights) if total > 0.0 else tuple(1.0 / 3.0 for _ in weights)
