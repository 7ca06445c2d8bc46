"""Profiles of models: by domain, by similar requests, or both."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.api import Ask, ModelsView, Outcome, Query, best
from fleetsim.model_routing.learned import LearnedConfig, Table, cost_share
from fleetsim.model_routing.tags import Tags

_FEW = 30
"""Similar requests up to which a draw is made by hand."""


class RouteProfileConfig(LearnedConfig):
    """Parameters of RouteProfile."""

    profile: Literal["domain", "query", "both"] = "both"
    """`domain`: mean quality in the request's domain (biased: all its requests look alike); `query`: mean of answers to similar
    requests (noisy: there are few of them); `both`: the second drawn towards the first."""
    neighbours: Annotated[int, Field(ge=1, le=10_000, strict=True, json_schema_extra={"unit": "count"})] = 10
    """Similar requests that are looked at (assumption)."""
    within: Annotated[float, Field(gt=0, le=0.5)] = 0.2
    """Standard deviation of the chances of an arm within a domain, which says how far to draw (assumption)."""
    cost_weight: Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.3
    """Weight of the expected list price, over the dearest arm's, against predicted quality (assumption)."""


class RouteProfile:
    """RouteProfile: the best model by its profile, whose kind decides whether bias or noise misleads.

    Rule: the largest ``(1 - w) p - w c``. By domain p is the table's mean; by similar requests it is the share of right answers
    among `neighbours` draws with the chance that the predictor sees; with both, the second drawn towards the first by the
    variances: ``p = t + (s - t) v / (v + t (1 - t) / k)``. A model that joins has no profile by domain: its mean is that of all
    until answers are seen.

    Charged: 15 ms per decision for the embedding (assumption), and trainings, if they cost anything.

    References
    ----------
    RouteProfile, arXiv:2605.00180. Read as an abstract only: its profiles become noise levels.
    """

    Config: ClassVar = RouteProfileConfig
    tags: ClassVar[Tags] = Tags(("before",), ("query", "profile"), ("supervised",), "query", ("single",))
    decision_s: ClassVar[float] = 0.015

    def __init__(self, config: RouteProfileConfig, rng: Generator, models: ModelsView) -> None:
        self._models, self._config, self._rng = models, config, rng
        self.table = Table(config, models)
        self.decision_j = config.retrain_energy / config.retrain_every
        self.decision_usd = config.retrain_usd / config.retrain_every

    def route(self, query: Query) -> Ask:
        """The best by the profile."""
        weight = self._config.cost_weight
        rows = zip(self.predicted(query), cost_share(self._models, query), strict=True)
        return Ask(best([(1.0 - weight) * chance - weight * cost for chance, cost in rows], self._models.open()))

    def predicted(self, query: Query) -> list[float]:
        """Chance of each arm by its profile."""
        config = self._config
        table = self.table.columns[query.domain]
        if config.profile == "domain":
            return table
        similar = self._similar(query.chance.tolist())
        if config.profile == "query":
            return similar
        count, within = config.neighbours, config.within
        return [shrunk_towards(wide, narrow, count, within) for wide, narrow in zip(table, similar, strict=True)]

    def _similar(self, chances: list[float]) -> list[float]:
        """Share of right answers to similar requests, drawn for each arm."""
        count = self._config.neighbours
        if count > _FEW:
            return [float(right) / count for right in self._rng.binomial(count, chances)]
        drawn = self._rng.random(len(chances)).tolist()
        return [binomial(count, chance, u) / count for chance, u in zip(chances, drawn, strict=True)]

    def feedback(self, outcome: Outcome) -> None:
        """A profile grows."""
        self.table.learn(outcome)


def binomial(count: int, chance: float, u: float) -> int:
    """A draw from the binomial distribution by inversion of one from (0, 1)."""
    if chance >= 1.0:
        return count
    odds = chance / (1.0 - chance)
    mass: float = (1.0 - chance) ** count
    right = 0
    while u >= mass and right < count:
        u -= mass
        mass *= odds * (count - right) / (right + 1)
        right += 1
    return right


def shrunk_towards(wide: float, narrow: float, answers: int, within: float) -> float:
    """A mean of few answers drawn towards a wider one, by how far they may differ and how noisy the few are."""
    variance = within**2
    return wide + (narrow - wide) * variance / (variance + wide * (1.0 - wide) / answers)
