"""A weak and a strong model, and a threshold between them."""

from __future__ import annotations

from bisect import insort
from collections import deque
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.api import Ask, ModelsView, Query, number_of
from fleetsim.model_routing.tags import Tags
from fleetsim.plugins import PolicyConfig


class ThresholdConfig(PolicyConfig):
    """Parameters of the threshold router."""

    weak: str = ""
    """Arm for easy requests. Empty: the cheapest by the list but the strong one."""
    strong: str = ""
    """Arm for the others. Empty: the one with the highest mean quality."""
    threshold: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Predicted gain of the strong arm over the weak one (difference of their chances to answer well) from which it is asked; or"""
    strong_share: Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.5
    """the share of requests that it gets: the threshold is the quantile of the last gains that gives it."""
    window: Annotated[int, Field(ge=1, le=1_000_000, strict=True, json_schema_extra={"unit": "count"})] = 1000
    """Gains that the quantile is taken of: the last ones."""


class Threshold:
    """The strong model where the predicted gain reaches a threshold, else the weak one, as RouteLLM and Hybrid LLM do.

    Rule: strong if ``P(strong answers well) - P(weak answers well) >= threshold``. The threshold is given, or calibrated: the
    quantile of the last `window` gains, this request's included, that sends `strong_share` of them to the strong model. While one
    of both may not be chosen, or nobody serves it, the other one is asked.

    Charged: 20 ms per decision for the embedding and the scorer (10 to 50 ms locally); how good the scorer is, is the scenario's
    `quality.features`.

    References
    ----------
    RouteLLM, arXiv:2406.18665 (github.com/lm-sys/RouteLLM); Hybrid LLM, arXiv:2404.14618.
    """

    Config: ClassVar = ThresholdConfig
    tags: ClassVar[Tags] = Tags(("before",), ("query", "profile"), ("supervised",), "query", ("single",))
    decision_s: ClassVar[float] = 0.02

    def __init__(self, config: ThresholdConfig, rng: Generator, models: ModelsView) -> None:
        self._models = models
        usd = models.usd_per_prompt_token + models.usd_per_output_token
        self._strong = (
            number_of(models, config.strong, "threshold") if config.strong else int(models.mean_quality.argmax())
        )
        others = [arm for arm in range(models.count) if arm != self._strong] or [self._strong]
        cheapest = min(others, key=lambda arm: (usd[arm], models.mean_quality[arm]))
        self._weak = number_of(models, config.weak, "threshold") if config.weak else cheapest
        self._threshold, self._share = config.threshold, config.strong_share
        self._last: deque[float] = deque()
        self._sorted: list[float] = []
        self._window = config.window

    def route(self, query: Query) -> Ask:
        """Weak or strong."""
        gain = float(query.chance[self._strong] - query.chance[self._weak])
        threshold = self._calibrated(gain) if self._threshold is None else self._threshold
        first, second = (self._strong, self._weak) if gain >= threshold else (self._weak, self._strong)
        among = self._models.open()
        if first in among or not among:
            return Ask(first)
        return Ask(second if second in among else among[0])

    def _calibrated(self, gain: float) -> float:
        """The threshold that sends the share of the last gains to the strong model."""
        self._last.append(gain)
        insort(self._sorted, gain)
        if len(self._last) > self._window:
            self._sorted.remove(self._last.popleft())
        strong = round(self._share * len(self._sorted))
        return self._sorted[-strong] if strong else float("inf")
