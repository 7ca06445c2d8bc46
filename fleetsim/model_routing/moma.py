"""The model nearest to the ideal one."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.api import Ask, ModelsView, Query, best
from fleetsim.plugins import PolicyConfig


class MomaConfig(PolicyConfig):
    """Parameters of MoMA's choice of a model."""

    quality_weight: Annotated[float, Field(gt=0, json_schema_extra={"unit": "ratio"})] = 0.5
    """Weight of the predicted chance of a good answer."""
    cost_weight: Annotated[float, Field(gt=0, json_schema_extra={"unit": "ratio"})] = 0.5
    """Weight of the list price."""


class Moma:
    """MoMA: of the models that no other beats in both, the one nearest to the best quality and the lowest price (TOPSIS).

    Rule: arms on the Pareto front of predicted chance and expected list price; both columns divided by their Euclidean norm and
    weighted; D+ and D- the distances to the best and to the worst values; the largest ``D- / (D+ + D-)``, the first of equal ones.

    Not modelled: the first stage, which hands some requests to agents.

    References
    ----------
    MoMA, arXiv:2509.07571. The abstract and a review were at hand; TOPSIS is Hwang and Yoon, "Multiple Attribute Decision Making",
    1981.
    """

    Config: ClassVar = MomaConfig
    decision_s: ClassVar[float] = 0.02

    def __init__(self, config: MomaConfig, rng: Generator, models: ModelsView) -> None:
        self._config, self._models = config, models
        self._asks = [Ask(arm) for arm in range(models.count)]

    def route(self, query: Query) -> Ask:
        """The arm nearest to the ideal one."""
        among = self._models.open()
        quality, usd = query.chance[among], self._models.usd(query)[among]
        front = pareto(quality, usd)
        arms = [among[i] for i in front]
        scores = np.zeros(self._models.count)
        scores[arms] = topsis(quality[front], usd[front], self._config.quality_weight, self._config.cost_weight)
        return self._asks[best(scores, arms)]


def pareto(quality: Any, usd: Any) -> list[int]:
    """Places that no other one beats in quality or price without being worse in the other; of equal ones the first."""
    kept: list[int] = []
    top = -np.inf
    for i in sorted(range(len(quality)), key=lambda i: (usd[i], -quality[i], i)):
        if quality[i] > top:
            kept.append(i)
            top = quality[i]
    return sorted(kept)


def topsis(quality: Any, usd: Any, quality_weight: float, cost_weight: float) -> Any:
    """Closeness of each place to the ideal one, 0 to 1."""
    columns = [quality_weight * _unit(quality), -cost_weight * _unit(usd)]
    far = sum((column - column.max()) ** 2 for column in columns)
    near = sum((column - column.min()) ** 2 for column in columns)
    total = np.sqrt(far) + np.sqrt(near)
    return np.where(total > 0.0, np.sqrt(near) / np.where(total > 0.0, total, 1.0), 1.0)


def _unit(column: Any) -> Any:
    norm = float(np.sqrt((column**2).sum()))
    return column / norm if norm > 0.0 else column
