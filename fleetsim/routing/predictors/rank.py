"""Tells who is longer than whom, more often right than not."""

from __future__ import annotations

from math import exp, log, pi, sin, sqrt
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.predictors.api import RequestView, normal


class RankConfig(PolicyConfig):
    """Parameters of the ranker."""

    tau: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Kendall's rank correlation of predictions and lengths: pairs in the right order less pairs in the wrong one, over all."""
    log_sigma: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Standard deviation of the logarithm of the workload's output lengths, to which `tau` refers."""


class Rank:
    """A ranker: only the order of its predictions means anything, and it is right as often as Kendall's tau says.

    Rule: score = log length + noise, with normal noise of the size at which scores and lognormal lengths of standard deviation
    `log_sigma` have rank correlation `tau` (by the relation tau = 2/pi * asin(rho) of normal variables; for other lengths tau
    differs a little). The prediction is the score mapped to between 0 and 1, so that it cannot be taken for tokens. The noise is
    drawn by request number from the run's seed, the same whichever policies run. Predicting costs nothing.

    References
    ----------
    Y. Fu et al., "Efficient LLM Scheduling by Learning to Rank", NeurIPS 2024, arXiv:2408.15792 (whose rankers reach a tau of
    0.5 to 0.6); M. G. Kendall, "A New Measure of Rank Correlation", Biometrika 30, 1938.
    """

    Config: ClassVar = RankConfig
    knows_length: ClassVar[bool] = True

    def __init__(self, config: RankConfig, rng: Generator) -> None:
        rho = sin(0.5 * pi * config.tau)
        self._noise = config.log_sigma * sqrt(max(1.0 / rho**2 - 1.0, 0.0))
        self._salt = int(rng.integers(1 << 63))

    def predict_knowing(self, request: RequestView, output_tokens: int) -> float:
        """A score between 0 and 1."""
        score = log(output_tokens) + self._noise * normal(self._salt, request.id)
        return 1.0 / (1.0 + exp(-0.25 * (score - 5.0)))

    def observe(self, request: RequestView, output_tokens: int) -> None:
        """Nothing: it does not learn."""
