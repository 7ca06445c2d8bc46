"""A bandit that plays what it believes."""

from __future__ import annotations

from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.api import Ask, ModelsView, Outcome, Query, best
from fleetsim.model_routing.bandit import Context, ContextConfig, Reward, Ridges
from fleetsim.model_routing.tags import Tags

_DRAWS = 64
"""Decisions for which noise is drawn at a time."""


class ThompsonConfig(ContextConfig):
    """Parameters of Thompson sampling, by default as GreenServ sets them."""

    sigma: Annotated[float, Field(gt=0)] = 0.25
    """Standard deviation of a reward."""
    prior_variance: Annotated[float, Field(gt=0)] = 2.0
    """Variance of each coefficient before anything is known."""
    textbook: bool = False
    """Draw from the posterior ``N(mu, B^-1)``; off: from ``N(mu, sigma^2 B^-1)`` as the published code, which explores less."""


class Thompson:
    """Thompson sampling with one linear model of rewards for each arm: the best of one draw of each.

    Rule: ``B = I / prior_variance``, ``B += x x' / sigma^2``, ``f += r x / sigma^2``, ``mu = B^-1 f``; coefficients are drawn from
    ``N(mu, sigma^2 B^-1)``, and the arm with the highest reward by its draw is asked. GreenServ's code has the factor sigma^2 that
    the textbook has not (`textbook`). What counts of a draw is its product with the context, which is normal with mean ``mu . x``
    and variance ``x' B^-1 x`` (times sigma^2): one number is drawn for each arm. Context and reward as in `linucb`.

    References
    ----------
    S. Agrawal and N. Goyal, "Thompson Sampling for Contextual Bandits with Linear Payoffs", ICML 2013; GreenServ, arXiv:2601.17551.
    """

    Config: ClassVar = ThompsonConfig
    tags: ClassVar[Tags] = Tags(("before",), ("query",), ("bandit",), "query", ("single",))

    def __init__(self, config: ThompsonConfig, rng: Generator, models: ModelsView) -> None:
        self._models, self._rng = models, rng
        self._scale = 1.0 if config.textbook else config.sigma
        self._context = Context(config, models)
        self._reward = Reward(config, models)
        self.ridges = Ridges(
            models.count, self._context.size, 1.0 / config.prior_variance, config.sigma**2, config.discount
        )
        self._noise: list[list[float]] = []
        self._asks = [Ask(arm) for arm in range(models.count)]

    def route(self, query: Query) -> Ask:
        """The arm with the highest draw."""
        scale, noise = self._scale, self._drawn()
        means, deviations = self.ridges.look(self._context.of(query))
        scores = [mean + scale * own * z for mean, own, z in zip(means, deviations, noise, strict=True)]
        return self._asks[best(scores, self._models.open())]

    def _drawn(self) -> list[float]:
        """Standard normal numbers, one for each arm: the ones that single draws would give, made many at a time."""
        if not self._noise:
            self._noise = self._rng.standard_normal((_DRAWS, self._models.count)).tolist()[::-1]
        return self._noise.pop()

    def feedback(self, outcome: Outcome) -> None:
        """Learn from an answer."""
        self.ridges.update(outcome.arm, self._context.of(outcome.query), self._reward.of(outcome))

    def joined(self, arm: int) -> None:
        """Nothing is known of a model that joins."""
        self.ridges.forget(arm)
