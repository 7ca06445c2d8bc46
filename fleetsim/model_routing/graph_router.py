"""A graph of tasks, requests and models, and the edge with the best effect."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.api import Ask, ModelsView, Outcome, Query, best
from fleetsim.model_routing.learned import LearnedConfig, Normals, Table, cost_share
from fleetsim.model_routing.tags import Tags

_Ratio = Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})]

WEIGHTS = {"performance": (1.0, 0.0), "balance": (0.5, 0.5), "cost": (0.2, 0.8)}
"""The published settings: weights of performance and of cost."""


class GraphRouterConfig(LearnedConfig):
    """Parameters of GraphRouter."""

    setting: Literal["performance", "balance", "cost"] = "balance"
    """Weights of performance and cost: (1, 0), (0.5, 0.5) or (0.2, 0.8)."""
    masked: Annotated[float, Field(ge=0, lt=1, json_schema_extra={"unit": "ratio"})] = 0.3
    """Share of the edges that are hidden in training."""
    query_weight: _Ratio = 0.5
    """Weight of what is seen of the request itself against its task's edges (assumption)."""
    noise: Annotated[float, Field(ge=0)] = 0.05
    """Standard deviation of the error of a predicted edge (assumption)."""


class GraphRouter:
    """GraphRouter: the model with the largest predicted effect on the edge between it and the request.

    Rule: effect = w1 performance - w2 cost. The performance of an edge is the mean of the model's answers in the request's task
    (domain), of which a training sees all but `masked`, mixed with what the predictor says of the request, and an error; cost is
    the expected list price over the dearest arm's. A model that joins has no edges: its mean is that of all until a training has
    seen some.

    Charged: 15 ms per decision for embedding and graph (assumption), and trainings, if they cost anything.

    References
    ----------
    GraphRouter, arXiv:2410.03834; weights of the settings from the literature. Its network is replaced by table, noise and
    shrinkage: embeddings cannot be simulated.
    """

    Config: ClassVar = GraphRouterConfig
    tags: ClassVar[Tags] = Tags(("before",), ("query", "profile"), ("supervised",), "query", ("single",))
    decision_s: ClassVar[float] = 0.015

    def __init__(self, config: GraphRouterConfig, rng: Generator, models: ModelsView) -> None:
        self._models, self._config = models, config
        self._normals = Normals(rng)
        self._performance, self._cost = WEIGHTS[config.setting]
        self.table = Table(config, models, 1.0 - config.masked)
        self.decision_j = config.retrain_energy / config.retrain_every
        self.decision_usd = config.retrain_usd / config.retrain_every

    def route(self, query: Query) -> Ask:
        """The largest effect."""
        config = self._config
        own, noise = config.query_weight, config.noise
        rows = zip(
            self.table.columns[query.domain],
            query.chance.tolist(),
            self._normals.take(self._models.count),
            cost_share(self._models, query),
            strict=True,
        )
        effect = [
            self._performance * (edge + own * (chance - edge) + noise * error) - self._cost * cost
            for edge, chance, error, cost in rows
        ]
        return Ask(best(effect, self._models.open()))

    def feedback(self, outcome: Outcome) -> None:
        """An edge is seen."""
        self.table.learn(outcome)
