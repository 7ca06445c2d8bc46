"""The product of work and batch size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
from mypy_extensions import mypyc_attr
from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import FleetView, RequestView


class LmetricConfig(PolicyConfig):
    """Parameters of LMetric, which needs no tuning."""

    holders: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'count'})]" = 64
    """Replicas with a beginning of the prompt in their caches for which it counts, those that have held it for longest."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Lmetric:
    """The least product of uncached prompt tokens, those in the queue included, and requests there.

    Rule: argmin over all replicas of ``(pending prompt tokens + own uncached prompt tokens) x (requests there + 1)``; both as the
    replicas publish them. No weights, so nothing to tune. Ties go to the lowest number.

    What is charged: nothing; the scan grows with the fleet, in vector operations.

    References
    ----------
    D. Zhang et al., "LMetric: Simple is Better - Multiplication May Be All You Need for LLM Request Scheduling", arXiv:2603.15202.
    """

    Config: ClassVar = LmetricConfig

    def __init__(self, config: LmetricConfig, rng: Generator, fleet: FleetView) -> None:
        board = fleet.watch_load()
        fleet.watch_caches()
        self._fleet = fleet
        self._holders = config.holders
        self._pending: Any = np.frombuffer(board.pending_tokens)
        self._waiting: Any = np.frombuffer(board.waiting)
        self._running: Any = np.frombuffer(board.running)

    def route(self, request: RequestView) -> int:
        """Choose a replica."""
        return int(self._scores(request).argmin())

    def explain(self, request: RequestView) -> Mapping[int, Mapping[str, float]]:
        """The product for each replica."""
        return {i: {"product": score} for i, score in enumerate(self._scores(request).tolist())}

    def _scores(self, request: RequestView) -> Any:
        tokens = self._pending + request.prompt_tokens
        tokens -= self._fleet.hits(request, self._holders)
        requests = self._waiting + self._running
        requests += 1.0
        tokens *= requests
        return self._fleet.keep_present(tokens)
