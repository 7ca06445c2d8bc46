"""Users who care for different things, and what is learned of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.api import Ask, ModelsView, Outcome, Query, best
from fleetsim.model_routing.learned import cost_share
from fleetsim.model_routing.pairs import Latencies, Remembered
from fleetsim.model_routing.tags import Tags
from fleetsim.plugins import PolicyConfig

_Positive = Annotated[float, Field(gt=0)]


class PersonalizedRouterConfig(PolicyConfig):
    """Parameters of PersonalizedRouter."""

    user: Literal["tenant", "session", "class"] = "tenant"
    """Who a user is."""
    concentration: Annotated[tuple[_Positive, ...], Field(min_length=3, max_length=3)] = (1.0, 1.0, 1.0)
    """Dirichlet parameters of what users care for: quality, price, speed (assumption: uniform)."""
    patience: Annotated[float, Field(gt=0, json_schema_extra={"unit": "s"})] = 30.0
    """Latency that is worth nothing (assumption) [s]."""
    rating_noise: Annotated[float, Field(ge=0)] = 0.1
    """Standard deviation of what a user's rating has beside his utility (assumption)."""
    users_known: Literal["ratings", "all", "none"] = "ratings"
    """`ratings`: weights are learned from ratings; `all`: they are known (the bound); `none`: all users count as the mean one."""
    belief: Annotated[float, Field(gt=0)] = 0.3
    """Standard deviation of users' weights around the mean of all, where the learning begins (assumption)."""
    memory: Annotated[float, Field(gt=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.1
    """Weight of the last answer in an arm's latency (assumption)."""
    most_users: Annotated[int, Field(ge=1, strict=True, json_schema_extra={"unit": "count"})] = 100_000
    """Users that are remembered; the oldest ones are forgotten first."""


class _User:
    """What is true of a user, and what is believed."""

    __slots__ = ("inverse", "mean", "true")

    def __init__(self, true: list[float], prior: list[float], variance: float) -> None:
        self.true = true
        self.inverse = [[variance, 0.0, 0.0], [0.0, variance, 0.0], [0.0, 0.0, variance]]
        self.mean = prior

    def rate(self, x: list[float], rating: float, variance: float) -> None:
        """Believe a rating of what is worth x, by the formula of Sherman and Morrison."""
        u = [dot(line, x) for line in self.inverse]
        divisor = variance + dot(u, x)
        a, b, c = [value / divisor for value in u]
        rows = zip(u, self.inverse, strict=True)
        self.inverse = [[line[0] - own * a, line[1] - own * b, line[2] - own * c] for own, line in rows]
        surprise = (rating - dot(self.mean, x)) / divisor
        self.mean = [value + surprise * own for value, own in zip(self.mean, u, strict=True)]


class PersonalizedRouter:
    """PersonalizedRouter: each user's weights of quality, price and speed are learned from ratings, and each is served by them.

    Rule: the arm with the largest utility ``w . (p, 1 - c, 1 - l)``: predicted chance, expected list price over the dearest arm's,
    past latency (a running mean) over `patience`. Each user has weights drawn from a Dirichlet distribution, which only his
    ratings show: utility as it came, with noise. Beliefs about a user begin with the mean of what is believed of all others (a
    hierarchical normal model, one ridge regression of three numbers for each user).

    Charged: 15 ms per decision for embedding and graph (assumption). Ratings come where the scenario's feedback does.

    References
    ----------
    PersonalizedRouter, arXiv:2511.16883. Read as an abstract only: its graph of users becomes this model.
    """

    Config: ClassVar = PersonalizedRouterConfig
    tags: ClassVar[Tags] = Tags(
        ("before",), ("query", "profile", "system", "user"), ("supervised",), "query", ("single",)
    )
    decision_s: ClassVar[float] = 0.015

    def __init__(self, config: PersonalizedRouterConfig, rng: Generator, models: ModelsView) -> None:
        self._models, self._config = models, config
        self._key = int(rng.integers(1 << 62))
        self._noise = rng
        self.users: Remembered[_User] = Remembered(config.most_users)
        self._numbers: dict[str | None, int] = {}
        self._mean = [share / sum(config.concentration) for share in config.concentration]
        """Mean of what is believed of users."""
        self._count = 1
        self.utility = 0.0
        """Sum of true utilities of answers that were rated."""
        self.rated = 0
        self._latencies = Latencies(models, config.memory)

    def route(self, query: Query) -> Ask:
        """What the user wants most."""
        user, models = self._user(query), self._models
        weights = {"ratings": user.mean, "all": user.true, "none": self._mean}[self._config.users_known]
        quality, price, speed = weights
        among, patience_s, latencies = models.open(), self._config.patience, self._latencies
        chance, usd = query.chance.tolist(), cost_share(models, query)
        scores = [
            quality * chance[arm] - price * usd[arm] - speed * min(latency_s / patience_s, 1.0)
            for arm, latency_s in zip(among, latencies.of(among, query), strict=True)
        ]
        return Ask(among[best(scores, range(len(among)))])

    def feedback(self, outcome: Outcome) -> None:
        """A rating."""
        query, config = outcome.query, self._config
        user = self._user(query)
        self._latencies.learn(outcome)
        dearest = max(self._models.usd_list(query))
        usd = min(outcome.list_usd / dearest, 1.0) if dearest > 0.0 else 0.0
        x = [outcome.quality, 1.0 - usd, max(1.0 - outcome.latency_s / config.patience, 0.0)]
        utility = dot(user.true, x)
        self.utility += utility
        self.rated += 1
        rating = utility + config.rating_noise * float(self._noise.standard_normal())
        before, count = user.mean, self._count
        user.rate(x, rating, max(config.rating_noise, 0.01) ** 2)
        self._mean = [m + (new - old) / count for m, new, old in zip(self._mean, user.mean, before, strict=True)]

    def _user(self, query: Query) -> _User:
        """Who asks."""
        if self._config.user == "session":
            number = query.session
        else:
            name = query.tenant if self._config.user == "tenant" else query.klass
            number = self._numbers.setdefault(name, len(self._numbers))
        user = self.users.get(number)
        if user is None:
            true = np.random.default_rng([self._key, number + 1]).dirichlet(self._config.concentration).tolist()
            user = _User(true, self._mean, self._config.belief**2)
            self.users.keep(number, user)
            self._count += 1
        return user


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    """Product of two vectors of three numbers."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
