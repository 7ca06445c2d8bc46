"""The true length times an error of stated size."""

from __future__ import annotations

from math import exp
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.predictors.api import RequestView, normal


class NoisyConfig(PolicyConfig):
    """Parameters of the noisy oracle."""

    sigma: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = 0.5
    """Standard deviation of the logarithm of prediction over truth: 0.5 is a factor of 1.65 either way for two thirds."""


class Noisy:
    """The true length times a lognormal error: a predictor of stated quality, the same for every policy compared.

    Rule: prediction = length * exp(sigma * z) with z standard normal, drawn by request number from the run's seed, so that a
    request is mistaken for the same length whichever policies run. The median of the error is 1. Predicting costs nothing.
    """

    Config: ClassVar = NoisyConfig
    knows_length: ClassVar[bool] = True

    def __init__(self, config: NoisyConfig, rng: Generator) -> None:
        self._sigma = config.sigma
        self._salt = int(rng.integers(1 << 63))

    def predict_knowing(self, request: RequestView, output_tokens: int) -> float:
        """The true length, mistaken."""
        return output_tokens * exp(self._sigma * normal(self._salt, request.id))

    def observe(self, request: RequestView, output_tokens: int) -> None:
        """Nothing: its errors stay what they are."""
