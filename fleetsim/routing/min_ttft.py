"""The replica with the least predicted time to the first token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from mypy_extensions import mypyc_attr
from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import FleetView, RequestView
from fleetsim.routing.ttft_scan import TtftScan


class MinTtftConfig(PolicyConfig):
    """Parameters of the least predicted time to the first token."""

    holders: "Annotated[int, Field(ge=0, strict=True, json_schema_extra={'unit': 'count'})]" = 64
    """Replicas with a beginning of the prompt in their caches whose prediction counts it, those that have held it for longest.
    0: caches are not looked at."""


@mypyc_attr(allow_interpreted_subclasses=True)
class MinTtft:
    """The replica with the least predicted time to the first token, its cache, its queue and its chip taken into account.

    Rule: argmin over all replicas of the prefill time of what they have pending plus that of the prompt after what they hold of it.
    Prefill times are quadratics fitted to each replica's own step times, so chips may differ. Ties go to the fewest requests.

    What is charged: nothing; the scan grows with the fleet, in vector operations.

    References
    ----------
    R. Qin et al., "Mooncake: Trading More Storage for Less Computation - A KVCache-centric Architecture for Serving LLM Chatbot",
    FAST 2025, arXiv:2407.00079: the rule of its Conductor without transfers ("local cache-aware").
    """

    Config: ClassVar = MinTtftConfig

    def __init__(self, config: MinTtftConfig, rng: Generator, fleet: FleetView) -> None:
        self._scan = TtftScan(fleet, config.holders)

    def route(self, request: RequestView) -> int:
        """Choose a replica."""
        return self._scan.least(request)

    def explain(self, request: RequestView) -> Mapping[int, Mapping[str, float]]:
        """Predicted time of each replica."""
        return {i: {"ttft_s": s} for i, s in enumerate(self._scan.seconds(request).tolist())}
