"""A bandit that is optimistic."""

from __future__ import annotations

from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.api import Ask, ModelsView, Outcome, Query, best
from fleetsim.model_routing.bandit import Context, ContextConfig, Reward, Ridges
from fleetsim.model_routing.tags import Tags


class LinUcbConfig(ContextConfig):
    """Parameters of LinUCB, by default as GreenServ sets them."""

    alpha: Annotated[float, Field(ge=0)] = 0.1
    """Weight of what is not known yet."""
    regularisation: Annotated[float, Field(gt=0)] = 0.05
    """What the matrix of an arm begins with, times one."""
    load_weight: Annotated[float, Field(ge=0, json_schema_extra={"unit": "ratio"})] = 0.0
    """Reward that a full pool costs an arm, by the requests at its replicas over those that run at a time (ours; 0: loads are not
    looked at, as published)."""


class LinUcb:
    """LinUCB with one model of rewards for each arm, as GreenServ routes: the highest upper bound.

    Rule: ``argmax theta . x + alpha sqrt(x' A^-1 x)`` with ``theta = A^-1 b``; the first of equal arms. When an answer's quality
    is known, ``A += x x'`` and ``b += r x``. The context is a one, the domain and the class of complexity; the reward weighs
    quality against joules per token (`weight`). A model that joins begins with nothing known; one that leaves is not asked.

    Not modelled: clusters of embeddings, which the published context has too.

    References
    ----------
    L. Li et al., "A Contextual-Bandit Approach to Personalized News Article Recommendation", WWW 2010; GreenServ, arXiv:2601.17551.
    """

    Config: ClassVar = LinUcbConfig
    tags: ClassVar[Tags] = Tags(("before",), ("query",), ("bandit",), "query", ("single",))

    def __init__(self, config: LinUcbConfig, rng: Generator, models: ModelsView) -> None:
        self._models = models
        self._alpha = config.alpha
        self._load_weight = config.load_weight
        self._context = Context(config, models)
        self._reward = Reward(config, models)
        self.ridges = Ridges(models.count, self._context.size, config.regularisation, 1.0, config.discount)
        self._asks = [Ask(arm) for arm in range(models.count)]

    def route(self, query: Query) -> Ask:
        """The arm with the highest bound."""
        alpha = self._alpha
        means, deviations = self.ridges.look(self._context.of(query))
        scores = [mean + alpha * deviation for mean, deviation in zip(means, deviations, strict=True)]
        among = self._models.open()
        if self._load_weight:
            for arm in among:
                scores[arm] -= self._load_weight * min(self._models.load(arm), 10.0)
        return self._asks[best(scores, among)]

    def feedback(self, outcome: Outcome) -> None:
        """Learn from an answer."""
        self.ridges.update(outcome.arm, self._context.of(outcome.query), self._reward.of(outcome))

    def joined(self, arm: int) -> None:
        """Nothing is known of a model that joins."""
        self.ridges.forget(arm)
