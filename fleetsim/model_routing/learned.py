"""What learned predictors come to in a simulation: a table, noise, and shrinkage between both."""

from __future__ import annotations

from math import log
from typing import Annotated, Any

import numpy as np
from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.api import ModelsView, Outcome, Query
from fleetsim.plugins import PolicyConfig

_LEAST = 1e-4


class LearnedConfig(PolicyConfig):
    """Parameters of routers whose predictor is learned."""

    calibration: Annotated[int, Field(ge=0, strict=True, json_schema_extra={"unit": "count"})] = 100
    """Answers of each arm in each domain that the table begins with, with the profile's mean. Models that join later begin with
    none (assumption)."""
    retrain_every: Annotated[int, Field(ge=1, strict=True, json_schema_extra={"unit": "count"})] = 200
    """Answers after which the predictor is trained again; between, the table stands still (assumption)."""
    retrain_energy: Annotated[float, Field(ge=0, json_schema_extra={"unit": "J"})] = 0.0
    """Energy of a training, spread evenly over the decisions until the next one [J]."""
    retrain_usd: Annotated[float, Field(ge=0, json_schema_extra={"unit": "USD"})] = 0.0
    """List price of a training, spread in the same way [USD]."""
    pooling: Annotated[float, Field(gt=0, json_schema_extra={"unit": "count"})] = 10.0
    """Answers that the mean of an arm over all domains counts for in each domain, and the mean of all arms for each arm
    (assumption)."""


class Table:
    """Mean quality of each arm (rows) in each domain (columns), of answers that were seen, drawn towards wider means.

    Parameters
    ----------
    config : LearnedConfig
        What it begins with and how often it is made anew.
    models : ModelsView
        The arms; those that are offered at the beginning have a profile.
    keeps : float
        Share of what is seen that a training uses.
    """

    def __init__(self, config: LearnedConfig, models: ModelsView, keeps: float = 1.0) -> None:
        self._config, self._keeps = config, keeps
        known = np.array(models.offered, dtype=np.float64)[:, None] * config.calibration
        self._counts = known * np.ones_like(models.quality)
        self._sums = known * models.quality
        self.seen = 0
        """Answers since the beginning."""
        self.mean: Any = None
        """The table as it was trained last; not changed in place."""
        self.columns: list[list[float]] = []
        """Its columns: by domain, the mean of each arm."""
        self._train()

    def learn(self, outcome: Outcome) -> None:
        """See an answer."""
        self._counts[outcome.arm, outcome.query.domain] += 1.0
        self._sums[outcome.arm, outcome.query.domain] += outcome.quality
        self.seen += 1
        if self.seen % self._config.retrain_every == 0:
            self._train()

    def answers(self, arm: int) -> float:
        """Answers of an arm that the table rests on."""
        return float(self._counts[arm].sum())

    def _train(self) -> None:
        self.mean = self._made()
        self.columns = self.mean.T.tolist()

    def _made(self) -> Any:
        pooling, counts, sums = self._config.pooling, self._keeps * self._counts, self._keeps * self._sums
        everything = counts.sum()
        overall = sums.sum() / everything if everything > 0.0 else 0.5
        arms = (sums.sum(axis=1) + pooling * overall) / (counts.sum(axis=1) + pooling)
        return (sums + pooling * arms[:, None]) / (counts + pooling)


def cost_share(models: ModelsView, query: Query) -> list[float]:
    """Expected list price of each arm over the dearest one's."""
    usd = models.usd_list(query)
    largest = max(usd)
    return [price / largest for price in usd] if largest > 0.0 else usd


def log_odds(chance: float) -> float:
    """Logarithm of the odds of a chance, kept away from 0 and 1."""
    chance = min(max(chance, _LEAST), 1.0 - _LEAST)
    return log(chance / (1.0 - chance))


class Normals:
    """Standard normal numbers, drawn many at a time.

    Parameters
    ----------
    rng : Generator
        Where from.
    """

    def __init__(self, rng: Generator) -> None:
        self._rng = rng
        self._drawn: list[float] = []

    def take(self, count: int) -> list[float]:
        """The next ones."""
        if len(self._drawn) < count:
            self._drawn = self._rng.standard_normal(max(1024, count)).tolist()
        taken = self._drawn[-count:]
        del self._drawn[-count:]
        return taken
