"""Clusters of requests, and which model does best in each."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.api import Ask, ModelsView, Query, best
from fleetsim.model_routing.tags import Tags
from fleetsim.plugins import PolicyConfig


class AvengersProConfig(PolicyConfig):
    """Parameters of Avengers-Pro."""

    alpha: Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.7
    """Weight of performance against thrift."""


class AvengersPro:
    """Avengers-Pro: in each cluster of requests the model with the best mix of accuracy and price.

    Rule: for each cluster, accuracies p and prices q of the arms, each scaled between the smallest and the largest of the cluster;
    score ``alpha p + (1 - alpha)(1 - q)``; the highest score in the request's cluster, the first of equal ones. Clusters are the
    domains that the predictor sees; the published router clusters embeddings (25 to 64 of them, those nearest summed), of which a
    simulation knows nothing: a domain that is seen wrongly stands for the error of that.

    Charged: 20 ms per decision for the embedding (10 to 50 ms locally).

    References
    ----------
    The Avengers, arXiv:2505.19797; github.com/ZhangYiqun018/Avengers.
    """

    Config: ClassVar = AvengersProConfig
    tags: ClassVar[Tags] = Tags(("before",), ("query", "profile"), ("supervised",), "query", ("single",))
    decision_s: ClassVar[float] = 0.02

    def __init__(self, config: AvengersProConfig, rng: Generator, models: ModelsView) -> None:
        self._models = models
        usd = (models.usd_per_prompt_token + models.usd_per_output_token)[:, None] * np.ones(len(models.domains))
        scores = config.alpha * _scaled(models.quality) + (1.0 - config.alpha) * (1.0 - _scaled(usd))
        self._scores: list[list[float]] = scores.T.tolist()
        """By domain, of each arm."""
        self._asks = [Ask(arm) for arm in range(models.count)]

    def route(self, query: Query) -> Ask:
        """The best arm of the request's cluster."""
        return self._asks[best(self._scores[query.domain], self._models.open())]


def _scaled(
    values: np.ndarray[tuple[int, int], np.dtype[np.float64]],
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Each column between its smallest value and its largest; zeros where they are equal."""
    low, high = values.min(axis=0), values.max(axis=0)
    width = np.where(high > low, high - low, 1.0)
    return np.asarray((values - low) / width)
