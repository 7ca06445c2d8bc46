"""Knows all lengths."""

from __future__ import annotations

from typing import ClassVar

from numpy.random import Generator

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.predictors.api import RequestView


class OracleConfig(PolicyConfig):
    """An oracle has no parameters."""


class Oracle:
    """Oracle: the true output length, which no deployed system knows; an upper bound for others.

    Rule: the prediction is the length. Predicting costs nothing.
    """

    Config: ClassVar = OracleConfig
    knows_length: ClassVar[bool] = True

    def __init__(self, config: OracleConfig, rng: Generator) -> None:
        pass

    def predict_knowing(self, request: RequestView, output_tokens: int) -> float:
        """The true length."""
        return float(output_tokens)

    def observe(self, request: RequestView, output_tokens: int) -> None:
        """Nothing: it knew."""
