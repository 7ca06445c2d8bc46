"""Each replica keeps one LLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.errors import PolicyError
from fleetsim.placement.api import Action, Decision, Place, RequestView, Send
from fleetsim.plugins import PolicyConfig


class StaticPartitionConfig(PolicyConfig):
    """Parameters of the static partition."""

    shares: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    """Part of the replicas for each LLM, relative to the others'; an LLM that is not named has 1."""


class StaticPartition:
    """Static partition: the replicas are divided among the LLMs for good, and each is first come, first served.

    Rule: replicas, in order, are given to the LLM that lacks most of its share of those given so far, every LLM one at least. A
    request goes to the replica of its LLM with the fewest requests. Nothing is ever swapped: what serving every LLM by a fleet of
    its own would do.
    """

    Config: ClassVar = StaticPartitionConfig

    def __init__(self, config: StaticPartitionConfig, rng: Generator, places: Sequence[Place]) -> None:  # noqa: ARG002
        self.places = places
        self._waiting: list[RequestView] = []
        models = list(dict.fromkeys(name for place in places for name in place.engines))
        if unknown := sorted(set(config.shares) - set(models)):
            raise PolicyError(f'static-partition: no replica can hold "{unknown[0]}"; known: {", ".join(models)}')
        shares = {name: config.shares.get(name, 1.0) for name in models}
        self._models = divided([list(place.engines) for place in places], shares)
        if missing := [name for name in models if shares[name] > 0 and name not in self._models]:
            raise PolicyError(f'static-partition: {len(places)} replicas leave none for "{missing[0]}"')

    def initial(self) -> Sequence[str]:
        """LLM of each replica."""
        return self._models

    def arrived(self, request: RequestView, now_s: float) -> None:  # noqa: ARG002
        """Note a request."""
        self._waiting.append(request)

    def left(self, request: int) -> None:
        """Forget a request that does not wait any more."""
        self._waiting = [waiting for waiting in self._waiting if waiting.id != request]

    def decide(self, now_s: float) -> Decision:  # noqa: ARG002
        """Send each to the least loaded replica of its LLM."""
        loads = [len(place.sent) for place in self.places]
        actions: list[Action] = []
        kept = []
        for request in self._waiting:
            holders = [number for number, place in enumerate(self.places) if place.open == request.model]
            if not holders:
                kept.append(request)  # an LLM of share 0
                continue
            number = min(holders, key=loads.__getitem__)
            loads[number] += 1
            actions.append(Send(request.id, number))
        self._waiting = kept
        return Decision(actions)


def divided(able: Sequence[Sequence[str]], shares: dict[str, float]) -> list[str]:
    """One of the LLMs that it may hold for each replica, so that the numbers come near `shares`."""
    total = sum(shares.values()) or 1.0
    given = dict.fromkeys(shares, 0)
    models: list[str] = []
    for names in able:
        wanted = [name for name in names if shares[name] > 0] or list(names)
        first = [name for name in wanted if not given[name]]
        left = len(able) - len(models)
        if first and left <= sum(shares[name] > 0 and not given[name] for name in shares):
            name = first[0]
        else:
            name = max(wanted, key=lambda name: shares[name] / total * (len(models) + 1) - given[name])
        given[name] += 1
        models.append(name)
    return models
