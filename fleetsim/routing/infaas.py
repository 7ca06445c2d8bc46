"""The replica with the least memory load, queued requests counted: the baseline INFaaS++."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from mypy_extensions import mypyc_attr
from numpy.random import Generator

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import FleetView, RequestView
from fleetsim.routing.memory_scan import MemoryScan


class InfaasConfig(PolicyConfig):
    """No parameters."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Infaas:
    """The replica whose KV cache is least loaded by what runs and what waits there.

    Rule: argmin of ``(used + wanted) / capacity``, where `wanted` is what the waiting requests will take when they run; the
    first one of equals. Llumnix's authors compare with it under the name INFaaS++.

    What is charged: nothing for the decision; loads are telemetry.

    References
    ----------
    F. Romero et al., "INFaaS: Automated Model-less Inference Serving", USENIX ATC 2021; as extended by B. Sun et al., "Llumnix:
    Dynamic Scheduling for Large Language Model Serving", OSDI 2024, arXiv:2406.03243 (section 6.1), and ``kv_blocks_ratio`` of its
    repository.
    """

    Config: ClassVar = InfaasConfig

    def __init__(self, config: InfaasConfig, rng: Generator, fleet: FleetView) -> None:
        board = fleet.watch_load(demand=["kv_wanted"])
        self._board = board
        self._fleet = fleet
        self._scan = MemoryScan(fleet, self._score)
        # views of the board's arrays: they change with it
        self._kv_used: Any = np.frombuffer(board.watch_kv(fleet.now_s))
        self._kv_wanted: Any = np.frombuffer(board.kv_wanted)

    def route(self, request: RequestView) -> int:
        """Choose a replica."""
        return self._scan.best(-(self._kv_used + self._kv_wanted))

    def _score(self, position: int, used: float) -> float:
        return -(used + self._board.kv_wanted[position])

    def explain(self, request: RequestView) -> Mapping[int, Mapping[str, float]]:
        """Memory load of each replica."""
        used = self._fleet.kv_used
        return {i: {"kv_load_ratio": -self._score(i, used(i))} for i in range(self._fleet.count)}
