"""DistServe's dispatch: the shortest queue of prompts, and answers where the fewest are."""

from __future__ import annotations

from typing import ClassVar

from numpy.random import Generator

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import FleetView, RequestView


class DistServeConfig(PolicyConfig):
    """DistServe's dispatch has no parameters."""


class DistServe:
    """Prompts to the replica with the fewest prompt tokens before it, answers to the one with the fewest requests.

    Rule: where prompts and answers are computed apart, a prompt goes to the replica of the prefill side with the fewest
    pending prompt tokens. When it is computed, the same policy, asked as decode router, names the decode replica with the
    fewest requests. That one pulls the keys and values once it has room; until then they occupy the prefill replica. Where
    all replicas do everything, the replica with the fewest requests gets all of it. Ties go to the first.

    What is charged: the transfer over the network, and the memory that waiting keys and values occupy.

    References ---------- Y. Zhong et al., "DistServe: Disaggregating Prefill and Decoding for Goodput-optimized Large
    Language Model Serving", OSDI 2024, arXiv:2401.09670.
    """

    Config: ClassVar = DistServeConfig

    def __init__(self, config: DistServeConfig, rng: Generator, fleet: FleetView) -> None:
        self._best = fleet.index_outstanding() if fleet.decode is None else fleet.index_work(0)

    def route(self, request: RequestView) -> int:
        """Choose the replica for the prompt, or as decode router the one for the answer."""
        return self._best.smallest()
