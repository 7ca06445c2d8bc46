"""Agents for what they are made for; else the model nearest to the ideal and farthest from the worst."""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot
from typing import Annotated, ClassVar

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
        self._weights = config.quality, config.cost

    def route(self, query: Query) -> Ask:
        """The agent, or the best compromise."""
        among = self._models.open()
        agent = self._agents[query.domain]
        if agent in among and self._rng.random() >= self._missed:
            return Ask(agent)
        chance, usd = query.chance.tolist(), self._models.usd_list(query)
        gains, costs = [chance[arm] for arm in among], [usd[arm] for arm in among]
        front = pareto(gains, costs)
        scores = topsis([gains[i] for i in front], [costs[i] for i in front], *self._weights)
        return Ask(among[front[best(scores, range(len(front)))]])


def pareto(gains: Sequence[float], costs: Sequence[float]) -> list[int]:
    """Places that no other one beats in one column without losing in the other; of equal ones the first."""
    kept: list[int] = []
    top = float("-inf")
    for i in sorted(range(len(gains)), key=lambda i: (costs[i], -gains[i], i)):
        if gains[i] > top:
            kept.append(i)
            top = gains[i]
    return sorted(kept)


def topsis(gains: Sequence[float], costs: Sequence[float], gain_weight: float, cost_weight: float) -> list[float]:
    """Closeness of each place to the ideal one, 0 to 1: gains are to be large, costs small."""
    a, b = hypot(*gains) or 1.0, hypot(*costs) or 1.0
    gains = [gain_weight * gain / a for gain in gains]
    costs = [cost_weight * cost / b for cost in costs]
    most, least, dear, cheap = max(gains), min(gains), max(costs), min(costs)
    closeness = []
    for gain, cost in zip(gains, costs, strict=True):
        far = hypot(gain - most, cost - cheap)
        near = hypot(gain - least, cost - dear)
        closeness.append(near / (far + near) if far + near > 0.0 else 1.0)
    return closeness
