"""What bandits have in common: contexts, rewards, and one ridge regression for each arm."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
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
        self._least = [config.least.get(domain, np.inf) for domain in models.domains]
        self._most = [config.most.get(domain, -np.inf) for domain in models.domains]
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
        width = self._most[domain] - self._least[domain]
        scaled = min(max((cost - self._least[domain]) / width, 0.0), 1.0) if width > 0.0 else 0.0
        return float(min(max((1.0 - self._weight) * outcome.quality + self._weight * (1.0 - scaled), 0.0), 1.0))


class Context:
    """A request as a vector: one, its domain and its class of complexity, each as zeros and a one."""

    def __init__(self, config: ContextConfig, models: ModelsView) -> None:
        self._domains = len(models.domains) if config.domain else 0
        self._cuts = config.cuts if config.complexity else ()
        self.size = 1 + self._domains + len(self._cuts)
        self._vectors: dict[tuple[int, int], Any] = {}

    def of(self, query: Query) -> Any:
        """The vector; not to be changed."""
        difficulty = query.difficulty
        level = sum(1 for cut in self._cuts if difficulty > cut)
        key = (query.domain, level)
        vector = self._vectors.get(key)
        if vector is None:
            vector = np.zeros(self.size)
            vector[0] = 1.0
            if self._domains:
                vector[1 + query.domain] = 1.0
            if level < len(self._cuts):
                vector[1 + self._domains + level] = 1.0
            self._vectors[key] = vector
        return vector


class Ridges:
    """One ridge regression for each arm: its inverse and its solution, kept up to date by rank-one steps.

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
        self.inverse = np.zeros((arms, size, size))
        self.moment = np.zeros((arms, size))
        self.theta = np.zeros((arms, size))
        """The solution of each arm."""
        for arm in range(arms):
            self.forget(arm)

    def forget(self, arm: int) -> None:
        """Begin anew with an arm."""
        self.inverse[arm] = np.eye(self._size) / self._prior
        self.moment[arm] = 0.0
        self.theta[arm] = 0.0

    def update(self, arm: int, x: Any, reward: float) -> None:
        """Add an observation: ``A <- g A + x x' / v``, by the formula of Sherman and Morrison."""
        inverse = self.inverse[arm]
        if self._discount < 1.0:
            inverse /= self._discount
            self.moment[arm] *= self._discount
        u = inverse @ x
        inverse -= np.outer(u, u / (self._noise + float(x @ u)))
        self.moment[arm] += (reward / self._noise) * x
        self.theta[arm] = inverse @ self.moment[arm]

    def means(self, x: Any) -> Any:
        """Expected reward of each arm."""
        return self.theta @ x

    def variances(self, x: Any) -> Any:
        """``x' A^-1 x`` of each arm."""
        return np.maximum((self.inverse @ x) @ x, 0.0)
