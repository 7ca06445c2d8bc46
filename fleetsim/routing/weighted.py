"""Requests in proportion to what each replica can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from mypy_extensions import mypyc_attr
from numpy.random import Generator
from pydantic import Field

from fleetsim.errors import PolicyError
from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import FleetView, MinIndex, RequestView

_SCALE = 1 << 32
_TOKENS = 1024
"""Prompt that a replica's own speed is read from where no weights are given."""


class WeightedConfig(PolicyConfig):
    """Parameters of the weighted shortest queue."""

    weights: dict[str, float] = Field(default_factory=dict)
    """Weight of each replica of a pool, by pool name, above 0. Without any: prompts of 1,024 tokens per second, by step times."""


@mypyc_attr(allow_interpreted_subclasses=True)
class WeightedLeastOutstanding:
    """The replica with the fewest outstanding requests for its weight, this one included: faster chips get more.

    Rule: argmin of ``(outstanding + 1) / weight``; among equals the one unchanged for longest.

    What is charged: nothing.

    References
    ----------
    "Weighted least connections" of load balancers, e.g. IPVS (linuxvirtualserver.org), ``ip_vs_wlc``.
    """

    Config: ClassVar = WeightedConfig

    def __init__(self, config: WeightedConfig, rng: Generator, fleet: FleetView) -> None:
        if config.weights:
            missing = sorted(set(fleet.pools) - set(config.weights))
            if missing or min(config.weights.values()) <= 0.0:
                raise PolicyError(
                    f"weighted-least-outstanding needs a weight above 0 for each pool; missing: {missing}"
                )
            weights = [config.weights[pool] for pool in fleet.pools]
        else:
            weights = [1.0 / fleet.prefill_s(position, _TOKENS, 0) for position in range(fleet.count)]
        heaviest = max(weights)
        self._per_request = [round(_SCALE * heaviest / weight) for weight in weights]
        self._outstanding = fleet.outstanding
        self._changed = fleet.watch_outstanding()
        self._index = MinIndex(self._per_request)

    def route(self, request: RequestView) -> int:
        """Choose a replica."""
        index, per_request, outstanding = self._index, self._per_request, self._outstanding
        for position in self._changed:
            change = (outstanding[position] + 1) * per_request[position] - index.values[position]
            if change:
                index.add(position, change)
        self._changed.clear()
        return index.smallest()

    def explain(self, request: RequestView) -> Mapping[int, Mapping[str, float]]:
        """Requests for its weight of each replica, the heaviest weight being 1."""
        counted = enumerate(zip(self._outstanding, self._per_request, strict=True))
        return {i: {"weighted_requests": (n + 1) * share / _SCALE} for i, (n, share) in counted}
