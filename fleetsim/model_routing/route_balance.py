"""Quality, latency and price of every model in one number."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.api import Ask, ModelsView, Query, best
from fleetsim.model_routing.tags import Tags
from fleetsim.plugins import PolicyConfig

_Weight = Annotated[float, Field(ge=0, json_schema_extra={"unit": "ratio"})]


class RouteBalanceConfig(PolicyConfig):
    """Parameters of RouteBalance's model half."""

    quality_weight: _Weight = 1 / 3
    """Weight of the predicted chance of a good answer."""
    latency_weight: _Weight = 1 / 3
    """Weight of a short expected time to the last token."""
    cost_weight: _Weight = 1 / 3
    """Weight of a low list price."""
    quality: Literal["raw", "min-max"] = "raw"
    """Chances as they are, or scaled between the smallest and the largest of the arms: raw ones differ little, so that price and
    latency decide."""
    latency: Literal["state", "static"] = "state"
    """What latency is expected: with the requests that are at the replicas now, or of an empty replica, whatever the load."""


class RouteBalance:
    """RouteBalance's model half: the highest weighted sum of quality, short latency under the load of now, and low price.

    Rule: ``wq Q + wl (1 - e2e / max e2e) + wc (1 - cost / max cost)`` over the arms; argmax, the first of equal ones. The latency
    is that of the replica of the arm's LLM with the fewest requests: its prompt, its answer at the step time of the batch there,
    and the wait for a seat (`ModelsView.latency_s`). The replica itself is then chosen by `gateway.router`; its half of the
    published system is the router `route-balance`. Each request is decided alone, when it comes: the view shows those before it.

    Charged: 30 ms per decision, the middle of the 28 to 32 ms that the authors measured.

    References
    ----------
    RouteBalance, arXiv:2606.17949 (github.com/AKafakA/route-balance).
    """

    Config: ClassVar = RouteBalanceConfig
    tags: ClassVar[Tags] = Tags(
        ("before",), ("query", "profile", "system"), ("supervised", "rule"), "query", ("single",)
    )
    decision_s: ClassVar[float] = 0.03

    def __init__(self, config: RouteBalanceConfig, rng: Generator, models: ModelsView) -> None:
        self._config, self._models = config, models
        self._asks = [Ask(arm) for arm in range(models.count)]

    def route(self, query: Query) -> Ask:
        """The best sum."""
        config, models = self._config, self._models
        among = models.open()
        quality = query.chance
        if config.quality == "min-max":
            low, high = float(quality[among].min()), float(quality[among].max())
            quality = (quality - low) / (high - low) if high > low else quality * 0.0
        scores = config.quality_weight * quality - config.cost_weight * _part(models.usd(query), among)
        scores = scores - config.latency_weight * _part(self._latency_s(query, among), among)
        return self._asks[best(scores, among)]

    def _latency_s(self, query: Query, among: list[int]) -> Any:
        """Expected time to the last token of each arm; zero for those that are not there [s]."""
        seconds = np.zeros(self._models.count)
        for arm in among:
            idle = self._config.latency == "static"
            value = self._models.alone_s(arm, query) if idle else self._models.latency_s(arm, query)
            seconds[arm] = value if value < np.inf else 0.0
        return seconds


def _part(values: Any, among: list[int]) -> Any:
    """Values as parts of the largest one of some arms; zeros if that is zero."""
    largest = values[among].max()
    return values / largest if largest > 0.0 else values * 0.0
