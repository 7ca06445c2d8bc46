"""Means of similar requests, learned while they end."""

from __future__ import annotations

from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.predictors.api import RequestView


class LearnedConfig(PolicyConfig):
    """Parameters of the learned means."""

    prior_answers: Annotated[float, Field(gt=0, le=1e6)] = 10.0
    """How many answers of its own a group of requests needs to count as much as the wider group that it belongs to."""
    initial: Annotated[float, Field(ge=0, le=2**31, json_schema_extra={"unit": "tokens"})] = 256.0
    """Prediction before the first answer has ended; it counts like `prior_answers`."""


class Learned:
    """Learned online: the mean length of similar requests that have ended, by class, tenant and length of the prompt.

    Rule: requests belong to ever narrower groups: all, those of the class, of the class and tenant, and of these with a prompt
    between the same powers of two. The expectation of each is the mean of its answers, drawn towards that of the next wider group
    as if that were `prior_answers` answers more. Answers are learned when they end, so that under load short ones are seen first,
    as in a real system. Predicting costs nothing.

    References
    ----------
    B. Efron and C. Morris, "Stein's Paradox in Statistics", Scientific American 236(5), 1977 (means drawn towards wider groups).
    """

    Config: ClassVar = LearnedConfig

    def __init__(self, config: LearnedConfig, rng: Generator) -> None:
        self._config = config
        self._sums: dict[tuple[str | int | None, ...], tuple[int, int]] = {}
        """Answers that ended and their tokens, by group."""

    def predict(self, request: RequestView) -> float:
        """The mean of the narrowest group, drawn towards the wider ones."""
        expected, prior = self._config.initial, self._config.prior_answers
        for group in _groups(request):
            count, tokens = self._sums.get(group, (0, 0))
            expected = (tokens + prior * expected) / (count + prior)
        return expected

    def observe(self, request: RequestView, output_tokens: int) -> None:
        """Add an answer to its groups."""
        for group in _groups(request):
            count, tokens = self._sums.get(group, (0, 0))
            self._sums[group] = (count + 1, tokens + output_tokens)


def _groups(request: RequestView) -> tuple[tuple[str | int | None, ...], ...]:
    """A request's groups from the widest to the narrowest."""
    klass, tenant = request.klass, request.tenant
    return (), (klass,), (klass, tenant), (klass, tenant, request.prompt_tokens.bit_length())
