"""What several routers need: a weak and a strong arm, domains by name, and what is remembered of requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from fleetsim.errors import Finding, ScenarioError, nearest
from fleetsim.model_routing.api import ModelsView, Outcome, Query, number_of

_MOST_KEPT = 100_000
_LONG_S = 1e6

T = TypeVar("T")


def weak_and_strong(models: ModelsView, weak: str, strong: str, policy: str) -> tuple[int, int]:
    """Numbers of two arms: as named, else the one with the highest mean quality and the cheapest by the list of the others.

    Raises
    ------
    ScenarioError
        If there is none of a name.
    """
    usd = models.usd_per_prompt_token + models.usd_per_output_token
    top = number_of(models, strong, policy) if strong else int(models.mean_quality.argmax())
    others = [arm for arm in range(models.count) if arm != top] or [top]
    cheapest = min(others, key=lambda arm: (usd[arm], models.mean_quality[arm]))
    return (number_of(models, weak, policy) if weak else cheapest), top


def domain_number(models: ModelsView, name: str, policy: str) -> int:
    """Number of the domain that a parameter of a policy names.

    Raises
    ------
    ScenarioError
        If there is none of that name.
    """
    if name not in models.domains:
        hint = nearest(name, models.domains, "domains")
        raise ScenarioError(Finding(f'{policy} names the domain "{name}"', path="gateway.model_router", hint=hint))
    return models.domains.index(name)


class Latencies:
    """Running means of the time from arrival to the last token, by arm; they begin with what was expected when first looked at.

    Parameters
    ----------
    models : ModelsView
        The arms.
    memory : float
        Weight of the last answer.
    """

    def __init__(self, models: ModelsView, memory: float) -> None:
        self._models, self._memory = models, memory
        self._means: list[float] = [-1.0] * models.count

    def of(self, among: Sequence[int], query: Query) -> list[float]:
        """Of some arms [s]."""
        means = self._means
        for arm in among:
            if means[arm] < 0.0:
                means[arm] = min(self._models.latency_s(arm, query), _LONG_S)
        return [means[arm] for arm in among]

    def learn(self, outcome: Outcome) -> None:
        """An answer came."""
        mean = self._means[outcome.arm]
        if mean >= 0.0:
            self._means[outcome.arm] = mean + self._memory * (outcome.latency_s - mean)


class Remembered(Generic[T]):
    """What a router knows of requests until somebody says how good their answers were, which may never be.

    Parameters
    ----------
    most : int
        Requests that are remembered; the oldest ones are forgotten first.
    """

    def __init__(self, most: int = _MOST_KEPT) -> None:
        self._most = most
        self._kept: dict[int, T] = {}

    def keep(self, number: int, value: T) -> None:
        """Remember something of a request."""
        kept = self._kept
        kept[number] = value
        if len(kept) > self._most:
            del kept[next(iter(kept))]

    def get(self, number: int) -> T | None:
        """What is remembered of a request."""
        return self._kept.get(number)

    def take(self, number: int) -> T | None:
        """The same, and nothing afterwards."""
        return self._kept.pop(number, None)
