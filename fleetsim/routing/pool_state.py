"""Replicas' speeds inferred from what the gateway sees come back, without any telemetry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
from mypy_extensions import mypyc_attr
from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import FleetView, RequestView


class PoolStateConfig(PolicyConfig):
    """Parameters of pool-state inference."""

    forget: "Annotated[float, Field(gt=0, lt=1, json_schema_extra={'unit': 'ratio'})]" = 0.99
    """Weight of an observation relative to the next one at the same replica: a window of about 100."""
    slow_under: "Annotated[float, Field(ge=0, le=1, json_schema_extra={'unit': 'ratio'})]" = 0.7
    """A replica whose prefill rate falls below this part of its best so far is slow: avoided while there are others."""
    least_observations: "Annotated[int, Field(ge=2, strict=True, json_schema_extra={'unit': 'count'})]" = 20
    """A replica with fewer first tokens seen is taken for as fast as the others on average."""


@mypyc_attr(allow_interpreted_subclasses=True)
class PoolState:
    """The least expected wait, from queues and prefill rates that the gateway infers from its own sends and first tokens.

    Rule: for each replica, waiting = sent - first tokens seen; its prefill rate is the slope of a regression of the times to the
    first token on prompt lengths, with weights that fall by `forget` per observation. Expected wait = waiting x mean prompt /
    rate + own prompt / rate; argmin over the replicas that are not slow (over all if all are), ties to the fewest outstanding
    requests. Slow is whose rate fell below `slow_under` of the best it had.

    What is charged: nothing; the scan grows with the fleet, in vector operations. Nothing is read from replicas.

    References
    ----------
    "The Workload-Router-Pool Architecture for LLM Inference Optimization", arXiv:2603.21354, direction 12 (pool-state inference).
    """

    Config: ClassVar = PoolStateConfig

    def __init__(self, config: PoolStateConfig, rng: Generator, fleet: FleetView) -> None:
        self._config = config
        self._outstanding = fleet.outstanding
        self._decoding = fleet.decoding
        fleet.index_work(0)
        self._answers = fleet.watch_answers()
        self._changed = fleet.watch_outstanding()
        count = fleet.count
        self._sums = [[0.0] * 5 for _ in range(count)]
        """Of each replica: sums of weights, prompts, seconds, prompts squared, prompts x seconds."""
        self._weights = 0.0
        """Sum of all replicas' weights."""
        self._prompts = 0.0
        self._seen = [0] * count
        self._slope_s: Any = np.zeros(count)
        """Seconds per prompt token of each replica; 0 where not known yet."""
        self._best_s = [0.0] * count
        self._slow: Any = np.zeros(count, dtype=bool)
        self._waiting: Any = np.zeros(count)
        self._total: Any = np.zeros(count)

    def route(self, request: RequestView) -> int:
        """Choose a replica."""
        return int(self._waits_s(request.prompt_tokens).argmin())

    def explain(self, request: RequestView) -> Mapping[int, Mapping[str, float]]:
        """What is inferred of each replica."""
        waits = self._waits_s(request.prompt_tokens).tolist()
        return {
            i: {
                "wait_s": wait,
                "waiting": float(self._waiting[i]),
                "token_s": float(self._slope_s[i]),
                "slow": float(self._slow[i]),
            }
            for i, wait in enumerate(waits)
        }

    def _waits_s(self, tokens: int) -> Any:
        self._learn()
        known = self._slope_s > 0.0
        if not known.any():
            return self._total + self._waiting  # nothing seen yet: the fewest requests
        slope_s = self._slope_s
        if not known.all():
            slope_s = np.where(known, slope_s, slope_s[known].mean())
        waits: Any = (self._waiting * (self._prompts / self._weights) + tokens) * slope_s
        waits += 1e-9 * self._total
        if self._slow.any() and not self._slow.all():
            waits[self._slow] += float(waits.max()) + 1.0
        return waits

    def _learn(self) -> None:
        """Take in what came back since the last decision."""
        config = self._config
        for position, tokens, seconds in self._answers:
            keep, sums = config.forget, self._sums[position]
            self._weights += 1.0 - (1.0 - keep) * sums[0]
            self._prompts += tokens - (1.0 - keep) * sums[1]
            for place, value in enumerate((1.0, tokens, seconds, tokens * tokens, tokens * seconds)):
                sums[place] = sums[place] * keep + value
            self._seen[position] += 1
            self._changed.append(position)
            if self._seen[position] < config.least_observations:
                continue
            spread = sums[0] * sums[3] - sums[1] * sums[1]
            slope_s = (sums[0] * sums[4] - sums[1] * sums[2]) / spread if spread > 0.0 else 0.0
            if slope_s > 0.0:
                best_s = self._best_s[position]
                self._best_s[position] = best_s = slope_s if best_s <= 0.0 else min(best_s, slope_s)
                self._slope_s[position] = slope_s
                self._slow[position] = best_s / slope_s < config.slow_under
        self._answers.clear()
        for position in self._changed:
            self._total[position] = self._outstanding[position]
            self._waiting[position] = self._outstanding[position] - self._decoding[position]
        self._changed.clear()
