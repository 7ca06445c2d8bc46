"""The mean of the last answers."""

from __future__ import annotations

from collections import deque
from typing import Annotated, ClassVar, Literal

from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.predictors.api import RequestView


class MovingAverageConfig(PolicyConfig):
    """Parameters of the moving average."""

    window: Annotated[int, Field(ge=1, le=1_000_000, strict=True, json_schema_extra={"unit": "count"})] = 5
    """Answers whose mean is taken: the last ones."""
    by: Literal["tenant", "class"] = "tenant"
    """Whose answers: the same tenant's, or the same class's."""
    initial: Annotated[float, Field(ge=0, le=2**31, json_schema_extra={"unit": "tokens"})] = 256.0
    """Prediction before the first answer has ended."""


class MovingAverage:
    """Moving average: the mean output length of the tenant's (or class's) last answers.

    Rule: the prediction is the mean of the last 5 answers that have ended. Predicting costs nothing.

    References
    ----------
    Y. Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, arXiv:2401.00588 (predicted lengths, window 5).
    """

    Config: ClassVar = MovingAverageConfig

    def __init__(self, config: MovingAverageConfig, rng: Generator) -> None:
        self._config = config
        self._recent: dict[str | None, deque[int]] = {}

    def predict(self, request: RequestView) -> float:
        """The mean of the last answers."""
        recent = self._recent.get(self._whose(request))
        return sum(recent) / len(recent) if recent else self._config.initial

    def observe(self, request: RequestView, output_tokens: int) -> None:
        """Remember an answer."""
        recent = self._recent.setdefault(self._whose(request), deque(maxlen=self._config.window))
        recent.append(output_tokens)

    def _whose(self, request: RequestView) -> str | None:
        return request.tenant if self._config.by == "tenant" else request.klass
