"""Trails of pheromone, one map for each kind of task."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.api import Ask, ModelsView, Outcome, Query
from fleetsim.plugins import PolicyConfig


class AmroSConfig(PolicyConfig):
    """Parameters of AMRO-S."""

    alpha: Annotated[float, Field(ge=0)] = 1.0
    """Exponent of the pheromone (assumption)."""
    beta: Annotated[float, Field(ge=0)] = 2.0
    """Exponent of how easy a way is (assumption)."""
    evaporation: Annotated[float, Field(gt=0, lt=1, json_schema_extra={"unit": "ratio"})] = 0.1
    """Part of the pheromone that an answer replaces (assumption)."""
    gate: Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.7
    """Quality from which an answer leaves any (assumption)."""
    shared: bool = False
    """One map for all domains instead of one for each."""
    load: bool = True
    """Whether a way is less easy the more requests are on it."""


class AmroS:
    """AMRO-S: ants that prefer ways on which answers were good, and ways that are cheap, quick and free.

    Rule: an arm is drawn with probabilities ``~ tau^alpha eta^beta`` from the map of the request's domain, with
    ``eta = 1 / (cost + latency + load)``: list price and expected latency over the largest of the arms, load as the requests at its
    replicas over those that run at a time. An answer of at least the quality `gate` leaves pheromone:
    ``tau <- (1 - rho) tau + rho quality``, and other arms' evaporates: ``tau <- (1 - rho / n) tau``, n the number of arms (ours);
    it does not fall below 0.01. Maps begin with the profile's quality.

    Charged: 30 ms per decision for the small model that tells what a request is about (assumption); how often it is right is
    `quality.features.domain_accuracy` (97.9 % in the publication).

    References
    ----------
    AMRO-S, arXiv:2603.12933. Read as an abstract only.
    """

    Config: ClassVar = AmroSConfig
    decision_s: ClassVar[float] = 0.03

    def __init__(self, config: AmroSConfig, rng: Generator, models: ModelsView) -> None:
        self._config, self._models, self._rng = config, models, rng
        quality = models.quality.mean(axis=1, keepdims=True) if config.shared else models.quality
        self._tau = np.maximum(np.array(quality), 0.01)
        self._asks = [Ask(arm) for arm in range(models.count)]

    def route(self, query: Query) -> Ask:
        """A way."""
        models, config = self._models, self._config
        among = models.open()
        usd, latency = models.usd(query)[among], np.array([min(models.latency_s(arm, query), 1e6) for arm in among])
        hard = latency / latency.max()
        if usd.max() > 0.0:
            hard = hard + usd / usd.max()
        if config.load:
            hard = hard + np.array([min(models.load(arm), 10.0) for arm in among])
        tau = self._tau[among, self._map(query)]
        ends = np.cumsum(np.round(tau**config.alpha * (1.0 / (hard + 1e-3)) ** config.beta, 9))
        return self._asks[
            among[min(int(np.searchsorted(ends, self._rng.random() * ends[-1], side="right")), len(among) - 1)]
        ]

    def feedback(self, outcome: Outcome) -> None:
        """Leave pheromone, if the answer was good enough."""
        if outcome.quality < self._config.gate:
            return
        rho = self._config.evaporation
        column = self._tau[:, self._map(outcome.query)]
        kept = (1.0 - rho) * column[outcome.arm] + rho * outcome.quality
        column *= 1.0 - rho / self._models.count
        column[outcome.arm] = kept
        np.maximum(column, 0.01, out=column)

    def _map(self, query: Query) -> int:
        return 0 if self._config.shared else query.domain
