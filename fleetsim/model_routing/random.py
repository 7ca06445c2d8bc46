"""Any arm."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.api import Ask, ModelsView, Query, number_of
from fleetsim.model_routing.tags import Tags
from fleetsim.plugins import PolicyConfig


class RandomConfig(PolicyConfig):
    """Parameters of the random choice."""

    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """How often each arm is chosen, by its name, relative to the others; arms that are not named count 1."""


class Random:
    """Any of the arms, drawn: all alike, or by weights.

    Rule: an arm is drawn among those that may be chosen and are served. The baseline whose area under the cost-quality curve is
    one half. Deciding costs nothing.
    """

    Config: ClassVar = RandomConfig
    tags: ClassVar[Tags] = Tags(("before",), (), ("rule",), "query", ("single",))

    def __init__(self, config: RandomConfig, rng: Generator, models: ModelsView) -> None:
        self._models, self._rng = models, rng
        self._weights = np.ones(models.count)
        for name, weight in config.weights.items():
            self._weights[number_of(models, name, "random")] = weight

    def route(self, query: Query) -> Ask:
        """An arm."""
        among = self._models.open()
        ends = np.cumsum(self._weights[among])
        if ends[-1] <= 0.0:
            return Ask(among[0])
        return Ask(among[min(int(np.searchsorted(ends, self._rng.random() * ends[-1], side="right")), len(among) - 1)])
