"""Agents for what they are made for; else the model nearest to the ideal and farthest from the worst."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.api import Ask, ModelsView, Query, best, number_of
from fleetsim.model_routing.pairs import domain_number
from fleetsim.model_routing.tags import Tags
from fleetsim.plugins import PolicyConfig

_Ratio = Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})]
_Weight = Annotated[float, Field(gt=0, json_schema_extra={"unit": "ratio"})]


class MomaConfig(PolicyConfig):
    """Parameters of MoMA."""

    agents: dict[str, str] = Field(default_factory=dict)
    """By domain, the arm that is an agent for it."""
    missed: _Ratio = 0.05
    """Share of an agent's requests for which the first stage finds no agent (assumption)."""
    quality: _Weight = 0.5
    """Weight of the predicted chance of a good answer (assumption)."""
    cost: _Weight = 0.5
    """Weight of the expected list price (assumption)."""


class Moma:
    """MoMA: a request for which there is an agent goes there; else TOPSIS over the Pareto set of score and cost.

    Rule: the agent of the request's domain, unless the first stage misses it. Else, of the arms that no other beats in both
    predicted quality and expected price: both columns divided by their lengths and weighted, distances D- to the worst of each
    and D+ to the best of each, the largest ``D- / (D+ + D-)``.

    Charged: 20 ms per decision for the embedding (assumption).

    References
    ----------
    MoMA, arXiv:2509.07571; TOPSIS: C.-L. Hwang and K. Yoon, "Multiple Attribute Decision Making", 1981.
    """

    Config: ClassVar = MomaConfig
    tags: ClassVar[Tags] = Tags(("before",), ("query", "profile"), ("rule", "supervised"), "query", ("single",))
    decision_s: ClassVar[float] = 0.02

    def __init__(self, config: MomaConfig, rng: Generator, models: ModelsView) -> None:
        self._models, self._rng, self._missed = models, rng, config.missed
        for domain in config.agents:
            domain_number(models, domain, "moma")
        agents = {domain: number_of(models, name, "moma") for domain, name in config.agents.items()}
        self._agents = [agents.get(domain, -1) for domain in models.domains]
        self._weights = np.array([config.quality, config.cost])

    def route(self, query: Query) -> Ask:
        """The agent, or the best compromise."""
        among = self._models.open()
        agent = self._agents[query.domain]
        if agent in among and self._rng.random() >= self._missed:
            return Ask(agent)
        gains, costs = query.chance[among], self._models.usd(query)[among]
        front = pareto(gains, costs)
        return Ask(among[front[best(topsis(gains[front], costs[front], self._weights), range(len(front)))]])


def pareto(gains: Any, costs: Any) -> list[int]:
    """Rows that no other row beats in one column without losing in the other; of equal rows the first."""
    front = []
    for i in range(len(gains)):
        beaten = (gains >= gains[i]) & (costs <= costs[i]) & ((gains > gains[i]) | (costs < costs[i]))
        same = (gains[:i] == gains[i]) & (costs[:i] == costs[i])
        if not beaten.any() and not same.any():
            front.append(i)
    return front


def topsis(gains: Any, costs: Any, weights: Any) -> Any:
    """Closeness of rows to the ideal: one column is to be large, the other small.

    Parameters
    ----------
    gains, costs : array
        The columns.
    weights : array
        Their weights.
    """
    columns = np.array([gains, -costs], dtype=np.float64)
    lengths = np.sqrt((columns**2).sum(axis=1, keepdims=True))
    columns = columns / np.where(lengths > 0.0, lengths, 1.0) * (weights / weights.sum())[:, None]
    near = np.sqrt(((columns - columns.max(axis=1, keepdims=True)) ** 2).sum(axis=0))
    far = np.sqrt(((columns - columns.min(axis=1, keepdims=True)) ** 2).sum(axis=0))
    total = near + far
    return np.where(total > 0.0, far / np.where(total > 0.0, total, 1.0), 1.0)
