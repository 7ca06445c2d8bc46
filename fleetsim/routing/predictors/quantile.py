"""A quantile of each class's lengths."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.predictors.api import RequestView

Tokens = Annotated[float, Field(ge=0, le=2**31, json_schema_extra={"unit": "tokens"})]


class QuantileConfig(PolicyConfig):
    """Parameters of the quantile by class."""

    level: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Which quantile: 0.5 is the median; above, answers are expected to be long."""
    window: Annotated[int, Field(ge=1, le=1_000_000, strict=True, json_schema_extra={"unit": "count"})] = 1000
    """Answers of a class that are remembered: the last ones."""
    initial: Tokens = 256.0
    """Prediction before the first answer of a class has ended."""
    classes: dict[str, Tokens] = Field(default_factory=dict)
    """Constants for classes that are not to be learned; the class of requests without one is called ``""``."""


class Quantile:
    """A quantile of the output lengths of a request's class: constants, or learned from the answers that have ended.

    Rule: the prediction is the stated quantile (the next length above) of the last `window` answers of the class. All requests of
    a class are expected to be alike at any instant. Predicting costs nothing.
    """

    Config: ClassVar = QuantileConfig

    def __init__(self, config: QuantileConfig, rng: Generator) -> None:
        self._config = config
        self._sorted: dict[str, list[int]] = {}
        self._recent: dict[str, deque[int]] = {}

    def predict(self, request: RequestView) -> float:
        """The class's quantile."""
        name = request.klass or ""
        constant = self._config.classes.get(name)
        if constant is not None:
            return constant
        lengths = self._sorted.get(name)
        if not lengths:
            return self._config.initial
        return float(lengths[min(int(self._config.level * len(lengths)), len(lengths) - 1)])

    def observe(self, request: RequestView, output_tokens: int) -> None:
        """Remember an answer, and forget the oldest if there are too many."""
        name = request.klass or ""
        if name in self._config.classes:
            return
        lengths = self._sorted.setdefault(name, [])
        recent = self._recent.setdefault(name, deque())
        insort(lengths, output_tokens)
        recent.append(output_tokens)
        if len(recent) > self._config.window:
            del lengths[bisect_left(lengths, recent.popleft())]
