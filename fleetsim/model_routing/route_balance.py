"""Quality, latency and price of every model in one number."""

from __future__ import annotations

from math import inf
from typing import Annotated, ClassVar, Literal

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
        chance, usd = query.chance.tolist(), models.usd_list(query)
        quality = [chance[arm] for arm in among]
        if config.quality == "min-max":
            low, high = min(quality), max(quality)
            quality = [(p - low) / (high - low) if high > low else 0.0 for p in quality]
        dear, slow = _parts([usd[arm] for arm in among]), _parts(self._latency_s(query, among))
        wq, wc, wl = config.quality_weight, config.cost_weight, config.latency_weight
        scores = [wq * p - wc * c - wl * t for p, c, t in zip(quality, dear, slow, strict=True)]
        return self._asks[among[best(scores, range(len(among)))]]

    def _latency_s(self, query: Query, among: list[int]) -> list[float]:
        """Expected time to the last token of some arms; zero for those that are not there [s]."""
        expected_s = self._models.alone_s if self._config.latency == "static" else self._models.latency_s
        seconds = [expected_s(arm, query) for arm in among]
        return [value if value < inf else 0.0 for value in seconds]


def _parts(values: list[float]) -> list[float]:
    """Values as parts of the largest one; zeros if that is zero."""
    largest = max(values)
    return [value / largest for value in values] if largest > 0.0 else [0.0] * len(values)
