"""Replicas' speeds inferred from what the gateway sees come back, without any telemetry."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
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
    """A replica whose prefill rate falls below this part of its usual one is slow: avoided while at most half of them are."""
    error_under: "Annotated[float, Field(gt=0, json_schema_extra={'unit': 'ratio'})]" = 0.25
    """A slope whose standard error is not below this part of it says nothing: times to the first token tell more of queues."""
    least_observations: "Annotated[int, Field(ge=2, strict=True, json_schema_extra={'unit': 'count'})]" = 20
    """A replica with fewer first tokens seen is taken for as fast as the others on average."""


@mypyc_attr(allow_interpreted_subclasses=True)
class PoolState:
    """The least expected wait, from queues and prefill rates that the gateway infers from its own sends and first tokens.

    Rule: for each replica, queue = sent - done; its prefill rate is the slope of a regression of the times to the first token on
    prompt lengths, with weights that fall by `forget` per observation. Expected wait = queue x mean prompt / rate + own prompt /
    rate; argmin over the replicas that are not slow. A slope counts while its standard error is below `error_under` of it; a
    replica without one is taken for as fast as the others on average, and where there is none at all the fewest outstanding
    requests decide. Slow is whose rate fell below `slow_under` of its mean so far; where more than half of them are, none is
    avoided.

    What is charged: nothing; the scan grows with the fleet, in vector operations. Nothing is read from replicas.

    References
    ----------
    "The Workload-Router-Pool Architecture for LLM Inference Optimization", arXiv:2603.21354, direction 12 (pool-state inference).
    """

    Config: ClassVar = PoolStateConfig

    def __init__(self, config: PoolStateConfig, rng: Generator, fleet: FleetView) -> None:
        self._config = config
        self._outstanding = fleet.outstanding
        self._answers = fleet.watch_answers()
        self._changed = fleet.watch_outstanding()
        count = fleet.count
        self._sums = [[0.0] * 6 for _ in range(count)]
        """Of each replica: sums of weights, prompts, seconds, prompts squared, prompts x seconds, seconds squared."""
        self._weights = 0.0
        """Sum of all replicas' weights."""
        self._prompts = 0.0
        self._seen = [0] * count
        self._slope_s: Any = np.zeros(count)
        """Seconds per prompt token of each replica; 0 where not known yet."""
        self._known = [0] * count
        self._usual_s = [0.0] * count
        """Mean slope of each replica so far."""
        self._all_s: Any = np.zeros(count)
        """The same, with the mean of the others where it is not known."""
        self._unknown: Any = np.arange(count)
        """Replicas without a slope."""
        self._sum_s = 0.0
        """Sum of the slopes that are known."""
        self._slow = [False] * count
        self._slow_count = 0
        self._queue: Any = np.zeros(count)

    def route(self, request: RequestView) -> int:
        """Choose a replica."""
        return int(self._waits_s(request.prompt_tokens).argmin())

    def explain(self, request: RequestView) -> Mapping[int, Mapping[str, float]]:
        """What is inferred of each replica."""
        waits = self._waits_s(request.prompt_tokens).tolist()
        return {
            i: {
                "wait_s": wait,
                "queue": float(self._queue[i]),
                "token_s": float(self._slope_s[i]),
                "slow": float(self._slow[i]),
            }
            for i, wait in enumerate(waits)
        }

    def _waits_s(self, tokens: int) -> Any:
        self._learn()
        count, unknown = len(self._slow), len(self._unknown)
        if unknown == count:
            return self._queue + 0.0  # nothing seen yet: the fewest requests
        if unknown:
            self._all_s[self._unknown] = self._sum_s / (count - unknown)
        waits: Any = self._queue * (self._prompts / self._weights)
        waits += tokens
        waits *= self._all_s
        if 0 < 2 * self._slow_count <= count:
            waits[np.array(self._slow)] += float(waits.max()) + 1.0
        return waits

    def _learn(self) -> None:
        """Take in what came back since the last decision."""
        config = self._config
        for position, tokens, seconds in self._answers:
            keep, sums = config.forget, self._sums[position]
            self._weights += 1.0 - (1.0 - keep) * sums[0]
            self._prompts += tokens - (1.0 - keep) * sums[1]
            for place, value in enumerate((1.0, tokens, seconds, tokens * tokens, tokens * seconds, seconds * seconds)):
                sums[place] = sums[place] * keep + value
            self._seen[position] += 1
            self._changed.append(position)
            if self._seen[position] < config.least_observations:
                continue
            self._take(position, _slope(sums, config.error_under))
        self._answers.clear()
        for position in self._changed:
            self._queue[position] = self._outstanding[position]
        self._changed.clear()

    def _take(self, position: int, slope_s: float) -> None:
        """Take a new slope for a replica's; 0 if it has none any more."""
        before_s = float(self._slope_s[position])
        self._slope_s[position] = self._all_s[position] = slope_s
        if (before_s > 0.0) != (slope_s > 0.0):
            known = self._slope_s > 0.0
            self._unknown = np.flatnonzero(~known)
            self._sum_s = float(self._slope_s.sum())
        else:
            self._sum_s += slope_s - before_s
        if slope_s > 0.0:
            self._known[position] += 1
            self._usual_s[position] += (slope_s - self._usual_s[position]) / self._known[position]
            slow = self._usual_s[position] / slope_s < self._config.slow_under
            self._slow_count += slow - self._slow[position]
            self._slow[position] = slow


def _slope(sums: list[float], error_under: float) -> float:
    """Slope of seconds on prompt tokens; 0 where its standard error is not below `error_under` of it."""
    weight, x, y, xx, xy, yy = sums
    spread = xx - x * x / weight
    if spread <= 0.0 or weight <= 2.0:
        return 0.0
    shared = xy - x * y / weight
    slope = shared / spread
    rest = max(yy - y * y / weight - slope * shared, 0.0)
    error = sqrt(rest / ((weight - 2.0) * spread))
    return slope if slope > 0.0 and error < error_under * slope else 0.0
