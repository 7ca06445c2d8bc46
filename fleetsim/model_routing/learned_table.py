"""Learned routers as what they come to: a table, its noise, and how both are weighed."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.api import Ask, ModelsView, Outcome, Query, best
from fleetsim.plugins import PolicyConfig

_Weight = Annotated[float, Field(ge=0, json_schema_extra={"unit": "ratio"})]


class LearnedTableConfig(PolicyConfig):
    """Parameters of the learned table."""

    profile: Literal["domain", "query", "both"] = "both"
    """What the router has learned of models: their mean in each domain (wrong for single requests), predictions for the request
    (which err by `quality.features`), or both, weighed by `shrinkage`."""
    shrinkage: Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.5
    """Weight of the domain's mean with `profile: both`."""
    context: Annotated[float, Field(ge=0, json_schema_extra={"unit": "count"})] = 0.0
    """Answers of an arm after which the prediction counts as much as the domain's mean: predictors that learn from pairs of
    instruction and result (V_0) tell more the more they have seen. 0: the weight is `shrinkage`."""
    performance: _Weight = 0.5
    """Weight of the predicted chance of a good answer. GraphRouter's settings are 1 and 0 (performance first), 0.5 and 0.5
    (balance), 0.2 and 0.8 (cost first)."""
    cost: _Weight = 0.5
    """Weight of the expected list price over the largest of the arms."""


class LearnedTable:
    """What GraphRouter, RouteProfile and V_0 come to: predictions of performance, drawn towards means of domains, less the price.

    Rule: ``performance p - cost c / max c``, argmax, the first of equal ones, with p the chance that the predictor sees, the mean
    of the domain that it sees, or a weighed mean of both. Learned embeddings and graphs are out of a simulation's reach: what they
    differ in is how much they know of a request (`quality.features`), of a model (`profile`), and after how many answers
    (`context`).

    Charged: 20 ms per decision for the embedding.

    References
    ----------
    GraphRouter, arXiv:2410.03834 (ICLR 2025); RouteProfile, arXiv:2605.00180; V_0, arXiv:2602.03584.
    """

    Config: ClassVar = LearnedTableConfig
    decision_s: ClassVar[float] = 0.02

    def __init__(self, config: LearnedTableConfig, rng: Generator, models: ModelsView) -> None:
        self._config, self._models = config, models
        self._seen = np.zeros(models.count)
        self._asks = [Ask(arm) for arm in range(models.count)]

    def route(self, query: Query) -> Ask:
        """The best by what is known."""
        config, models = self._config, self._models
        mean = models.quality[:, query.domain]
        if config.profile == "domain":
            chance = mean
        elif config.profile == "query":
            chance = query.chance
        else:
            weight = config.context / (config.context + self._seen) if config.context else config.shrinkage
            chance = weight * mean + (1.0 - weight) * query.chance
        usd = models.usd(query)
        largest = float(usd.max())
        scores = config.performance * chance - (config.cost / largest * usd if largest > 0.0 else 0.0)
        return self._asks[best(scores, models.open())]

    def feedback(self, outcome: Outcome) -> None:
        """One more result to learn from."""
        self._seen[outcome.arm] += 1.0

    def joined(self, arm: int) -> None:
        """Of a model that joins no result is known."""
        self._seen[arm] = 0.0
