"""Answers of one model, until they agree."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field
from scipy.special import betainc

from fleetsim.model_routing.api import Accept, Answer, Ask, ModelsView, Query, number_of
from fleetsim.model_routing.tags import Tags
from fleetsim.plugins import PolicyConfig


class AdaptiveConsistencyConfig(PolicyConfig):
    """Parameters of Adaptive-Consistency."""

    model: str = ""
    """Arm that answers. Empty: the one with the highest mean quality."""
    confidence: Annotated[float, Field(ge=0.5, lt=1, json_schema_extra={"unit": "ratio"})] = 0.95
    """Probability that the leading answer is the majority's, from which sampling stops."""
    most: Annotated[int, Field(ge=1, le=99, strict=True, json_schema_extra={"unit": "count"})] = 40
    """Answers at most."""


class AdaptiveConsistency:
    """Adaptive-Consistency: one more answer of the same model, until the leading one is sure to be what most would say.

    Rule: ask again and again; with v1 and v2 the counts of the two most frequent answers, stop when
    ``P(p1 > 1/2) = 1 - BetaCDF(1/2; v1 + 1, v2 + 1)`` is above `confidence`, or after `most` answers; the most frequent answer is
    given, the first of equal ones. Four answers that agree are enough at 0.95 (0.969; after three it is 0.9375).

    Charged: all answers, one after the other. The prompt is computed again unless the pool has a prefix cache and the request's
    content is known.

    References
    ----------
    P. Aggarwal et al., "Let's Sample Step by Step: Adaptive-Consistency", EMNLP 2023, arXiv:2305.11860.
    """

    Config: ClassVar = AdaptiveConsistencyConfig
    tags: ClassVar[Tags] = Tags(("after",), ("query",), ("rule",), "query", ("ensemble", "budget"))

    def __init__(self, config: AdaptiveConsistencyConfig, rng: Generator, models: ModelsView) -> None:
        self._models, self._config = models, config
        best = int(models.mean_quality.argmax())
        self._arm = number_of(models, config.model, "adaptive-consistency") if config.model else best
        self._asks = [Ask(arm) for arm in range(models.count)]

    def route(self, query: Query) -> Ask:
        """A first answer."""
        return self._asks[self._here()]

    def proceed(self, query: Query, answers: Sequence[Answer]) -> Ask | Accept:
        """Another one, or the most frequent."""
        labels = [answer.label for answer in answers]
        counts = sorted([labels.count(label) for label in set(labels)])
        second = counts[-2] if len(counts) > 1 else 0
        if sureness(counts[-1], second) > self._config.confidence or len(labels) >= self._config.most:
            return Accept(labels.index(max(labels, key=labels.count)))
        return self._asks[self._here()]

    def _here(self) -> int:
        """The arm, or another one while it is away."""
        among = self._models.open()
        return self._arm if self._arm in among or not among else among[0]


@cache
def sureness(first: int, second: int) -> float:
    """Probability that more than half would give the leading answer, seen so many times, and the next one so many."""
    return float(1.0 - betainc(first + 1, second + 1, 0.5))
