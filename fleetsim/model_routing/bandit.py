"""What bandits have in common: contexts, rewards, and one ridge regression for each arm."""

from __future__ import annotations

from math import inf, sqrt
from typing import Annotated, Literal

from pydantic import Field

from fleetsim.model_routing.api import ModelsView, Outcome, Query
from fleetsim.plugins import PolicyConfig

_Ratio = Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})]


class RewardConfig(PolicyConfig):
    """Parameters of what a bandit is rewarded for."""

    weight: _Ratio = 0.5
    """Weight of thrift against quality: 0 is quality alone."""
    cost: Literal["energy", "price", "latency"] = "energy"
    """What is saved: joules per token (prompt and answer), list price, or time to the last token."""
    least: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """By domain, the cost that counts as 0 (J/token, USD or s). Domains without one: the smallest that was seen there."""
    most: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """By domain, the cost that counts as 1. Domains without one: the largest that was seen there."""


class ContextConfig(RewardConfig):
    """Parameters of a bandit that looks at requests."""

    domain: bool = True
    """Whether the context says what a request is about."""
    complexity: bool = True
    """Whether it says how hard it is."""
    cuts: tuple[float, ...] = (-0.5, 0.5)
    """Difficulties that part one class of complexity from the next; as in the published code, the hardest class is all zeros."""
    discount: Annotated[float, Field(gt=0, le=1, json_schema_extra={"unit": "ratio"})] = 1.0
    """What is left of an observation after another one of the same arm; below 1 for worlds that change."""


class Reward:
    """``clip((1 - w) quality + w (1 - cost), 0, 1)``, the cost scaled between two bounds of the request's domain."""

    def __init__(self, config: RewardConfig, models: ModelsView) -> None:
        self._weight, self._cost = config.weight, config.cost
        self._least = [config.least.get(domain, inf) for domain in models.domains]
        self._most = [config.most.get(domain, -inf) for domain in models.domains]
        self._learns = [(domain not in config.least, domain not in config.most) for domain in models.domains]

    def of(self, outcome: Outcome) -> float:
        """The reward of an answer."""
        query = outcome.query
        if self._cost == "energy":
            cost = outcome.energy_j / (query.prompt_tokens + outcome.output_tokens)
        else:
            cost = outcome.list_usd if self._cost == "price" else outcome.latency_s
        domain = query.domain
        lower, upper = self._learns[domain]
        if lower and cost < self._least[domain]:
            self._least[domain] = cost
        if upper and cost > self._most[domain]:
            self._most[domain] = cost
        least, weight = self._least[domain], self._weight
        width = self._most[domain] - least
        scaled = (cost - least) / width if width > 0.0 else 0.0
        if not 0.0 <= scaled <= 1.0:
            scaled = 0.0 if scaled < 0.0 else 1.0
        reward = (1.0 - weight) * outcome.quality + weight * (1.0 - scaled)
        return float(reward if 0.0 <= reward <= 1.0 else min(max(reward, 0.0), 1.0))


Vector = tuple[int, ...]
"""A context of zeros and ones: where the ones are."""


class Context:
    """A request as a vector: one, its domain and its class of complexity, each as zeros and a one."""

    def __init__(self, config: ContextConfig, models: ModelsView) -> None:
        self._domains = len(models.domains) if config.domain else 0
        self._cuts = config.cuts if config.complexity else ()
        self.size = 1 + self._domains + len(self._cuts)
        self._vectors = [
            [self._vector(domain, level) for level in range(len(self._cuts) + 1)]
            for domain in range(self._domains or 1)
        ]
        """By domain and class of complexity."""

    def of(self, query: Query) -> Vector:
        """The vector."""
        level, difficulty = 0, query.difficulty
        for cut in self._cuts:
            if difficulty > cut:
                level += 1
        return self._vectors[query.domain if self._domains else 0][level]

    def _vector(self, domain: int, level: int) -> Vector:
        vector: Vector = (0, 1 + domain) if self._domains else (0,)
        return (*vector, 1 + self._domains + level) if level < len(self._cuts) else vector


class Ridges:
    """One ridge regression for each arm: its inverse and its solution, kept up to date by rank-one steps.

    Contexts are zeros and ones, of which few are ones, and there are few of them: what an arm promises in a context is kept until
    the arm is updated. On vectors so short lists are quicker than arrays.

    Parameters
    ----------
    arms, size : int
        How many, and the length of a context.
    prior : float
        What the matrix of an arm begins with, times one.
    noise : float
        Variance of a reward: observations are divided by it.
    discount : float
        What is left of an observation after another one.
    """

    def __init__(self, arms: int, size: int, prior: float, noise: float = 1.0, discount: float = 1.0) -> None:
        self._size, self._prior, self._noise, self._discount = size, prior, noise, discount
        self._inverse: list[list[list[float]]] = [[] for _ in range(arms)]
        self.theta: list[list[float]] = [[] for _ in range(arms)]
        """The solution of each arm."""
        self._version = [0] * arms
        self._known: dict[Vector, tuple[list[int], list[float], list[float]]] = {}
        """By context, of each arm: version, expected reward and its deviation."""
        for arm in range(arms):
            self.forget(arm)

    def forget(self, arm: int) -> None:
        """Begin anew with an arm."""
        own = 1.0 / self._prior
        self._inverse[arm] = [[own if i == j else 0.0 for j in range(self._size)] for i in range(self._size)]
        self.theta[arm] = [0.0] * self._size
        self._version[arm] += 1

    def update(self, arm: int, x: Vector, reward: float) -> None:
        """Add an observation: ``A <- g A + x x' / v``, by the formula of Sherman and Morrison."""
        inverse, theta = self._inverse[arm], self.theta[arm]
        if self._discount < 1.0:
            more = 1.0 / self._discount
            inverse = [[value * more for value in row] for row in inverse]
        u = [sum([row[i] for i in x]) for row in inverse]
        divisor = self._noise + sum([u[i] for i in x])
        step = (reward - sum([theta[i] for i in x])) / divisor
        changed = []
        for row, own in zip(inverse, u, strict=True):
            part = own / divisor
            changed.append([value - part * other for value, other in zip(row, u, strict=True)])
        self._inverse[arm] = changed
        self.theta[arm] = [value + step * own for value, own in zip(theta, u, strict=True)]
        self._version[arm] += 1

    def look(self, x: Vector) -> tuple[list[float], list[float]]:
        """Expected reward of each arm in a context, and ``sqrt(x' A^-1 x)``; not to be changed."""
        known = self._known.get(x)
        if known is None:
            count = len(self._version)
            known = self._known[x] = [-1] * count, [0.0] * count, [0.0] * count
        versions, means, deviations = known
        if versions != self._version:
            for arm, version in enumerate(self._version):
                if versions[arm] != version:
                    versions[arm] = version
                    theta, inverse = self.theta[arm], self._inverse[arm]
                    means[arm] = sum([theta[i] for i in x])
                    deviations[arm] = sqrt(max(sum([inverse[i][j] for i in x for j in x]), 0.0))
        return means, deviations
