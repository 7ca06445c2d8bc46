"""RouteBalance's choice of a replica: latency, cost and balance in one score."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
from mypy_extensions import mypyc_attr
from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import FleetView, RequestView
from fleetsim.routing.ttft_scan import TtftScan

_RELAXED = 0.1
"""By what the filter is relaxed in a round."""
_ROUNDS = 3
_OBSERVED = 200
"""First tokens from which the spread of predictions is read."""


class RouteBalanceConfig(PolicyConfig):
    """Parameters of RouteBalance's replica half."""

    latency_weight: "Annotated[float, Field(ge=0, json_schema_extra={'unit': 'ratio'})]" = 1 / 3
    """Weight of a short predicted time to the last token."""
    cost_weight: "Annotated[float, Field(ge=0, json_schema_extra={'unit': 'ratio'})]" = 1 / 3
    """Weight of a low price; without `usd_per_token` all prices are equal."""
    quality_weight: "Annotated[float, Field(ge=0, json_schema_extra={'unit': 'ratio'})]" = 1 / 3
    """Weight of `quality`."""
    balance_weight: "Annotated[float, Field(ge=0, json_schema_extra={'unit': 'ratio'})]" = 0.0
    """Weight of a KV cache with room."""
    quality: "Annotated[dict[str, float], Field(json_schema_extra={'unit': 'ratio'})]" = Field(default_factory=dict)
    """Quality of each pool's answers by pool name, 0 to 1; pools that are not named have 0."""
    usd_per_token: "Annotated[dict[str, float], Field(json_schema_extra={'unit': 'USD/token'})]" = Field(
        default_factory=dict
    )
    """Price of a token of each pool by pool name."""
    output_tokens: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'tokens'})]" = 256
    """Answer that is expected where no predictor says."""
    ttft_slo_s: "Annotated[float, Field(gt=0, json_schema_extra={'unit': 's'})]" = 10.0
    """Objective of the filter for the time to the first token."""
    tpot_slo_s: "Annotated[float, Field(gt=0, json_schema_extra={'unit': 's'})]" = 0.2
    """Objective of the filter for the time per output token."""
    least_chance: "Annotated[float, Field(ge=0, le=1, json_schema_extra={'unit': 'ratio'})]" = 0.0
    """Replicas less likely than this to keep the objectives are left out (0.7 in the paper's filter). 0: no filter."""
    holders: "Annotated[int, Field(ge=0, strict=True, json_schema_extra={'unit': 'count'})]" = 0
    """Replicas with a cached beginning of the prompt for which it counts. The paper's predictor knows none."""


@mypyc_attr(allow_interpreted_subclasses=True)
class RouteBalance:
    """The highest weighted sum of quality, low predicted latency, low price and room in the cache, each replica on its own.

    Rule: ``score = wq quality + wl (1 - e2e / max e2e) + wc (1 - cost / max cost) + wb (1 - use / max use)`` over the replicas;
    argmax; ties to the fewest requests there. Latency is the predicted time to the first token plus the expected answer at the
    step time of the replica's batch, by its own step times. Use is KV in use and what the request needs. What was sent since the
    last report is counted (against herding). The filter keeps replicas with ``P(TTFT <= objective)`` of at least `least_chance`,
    read from the ratios of observed to predicted times of the last 200 first tokens, and a step time within its objective; where
    nobody is left, first the first token's chance is lowered by 0.1, then the step's objective is dropped, three rounds of it,
    and then all are kept.

    The paper collects requests into batches and takes the longest first; here each is decided as it comes, which is its batch of
    one.

    What is charged: 30 ms per decision, the middle of 28 to 32 ms that the authors measured.

    References
    ----------
    RouteBalance, arXiv:2606.17949 (github.com/AKafakA/route-balance).
    """

    Config: ClassVar = RouteBalanceConfig
    decision_s: ClassVar[float] = 0.03

    def __init__(self, config: RouteBalanceConfig, rng: Generator, fleet: FleetView) -> None:
        self._config = config
        self._fleet = fleet
        board = fleet.watch_load()
        self._scan = TtftScan(fleet, config.holders)
        self._changed = board.watch()
        self._board = board
        self._answers = fleet.watch_answers() if config.least_chance > 0.0 else []
        self._ratios: deque[float] = deque(maxlen=_OBSERVED)
        """Observed times to the first token over predicted ones."""
        self._predicted_s: list[deque[float]] = [deque() for _ in range(fleet.count)]
        self._tpot_s: Any = np.zeros(fleet.count)
        self._quality: Any = config.quality_weight * np.array([config.quality.get(pool, 0.0) for pool in fleet.pools])
        """Weighted."""
        self._usd: Any = np.array([config.usd_per_token.get(pool, 0.0) for pool in fleet.pools])
        self._priced = bool(self._usd.any())
        self._capacity: Any = np.array(fleet.capacity_tokens, dtype=np.float64)
        self._used: Any = np.frombuffer(board.kv_used)
        self._waiting: Any = np.frombuffer(board.waiting)
        self._running: Any = np.frombuffer(board.running)

    def route(self, request: RequestView) -> int:
        """Choose a replica."""
        ttft_s = self._scan.seconds(request)
        scores = self._scores(request, ttft_s)
        if self._config.least_chance > 0.0:
            scores[~self._kept(ttft_s)] = -np.inf
        best = (scores == scores.max()).nonzero()[0]
        chosen = int(best[0])
        if len(best) > 1:
            chosen = int(best[(self._waiting + self._running)[best].argmin()])
        if self._config.least_chance > 0.0:
            self._predicted_s[chosen].append(float(ttft_s[chosen]))
        return chosen

    def explain(self, request: RequestView) -> Mapping[int, Mapping[str, float]]:
        """Score, predicted times and what the filter says of each replica."""
        ttft_s = self._scan.seconds(request)
        scores, kept = self._scores(request, ttft_s), self._kept(ttft_s)
        return {
            i: {
                "score": float(scores[i]),
                "ttft_s": float(ttft_s[i]),
                "tpot_s": float(self._tpot_s[i]),
                "kept": float(kept[i]),
            }
            for i in range(self._fleet.count)
        }

    def _scores(self, request: RequestView, ttft_s: Any) -> Any:
        config, board, fleet = self._config, self._board, self._fleet
        for position in self._changed:
            batch = int(board.running[position] + board.waiting[position]) + 1
            self._tpot_s[position] = fleet.tpot_s(position, batch)
        self._changed.clear()
        output = request.predicted_tokens if request.predicted_tokens >= 0.0 else float(config.output_tokens)
        total = request.prompt_tokens + output
        scores: Any = self._quality - config.latency_weight * _part(ttft_s + output * self._tpot_s)
        if self._priced:
            scores -= config.cost_weight * _part(total * self._usd)
        if config.balance_weight > 0.0:
            scores -= config.balance_weight * _part(self._used + total / self._capacity)
        return scores

    def _kept(self, ttft_s: Any) -> Any:
        """Which replicas the filter keeps."""
        config = self._config
        self._learn()
        chance = np.ones(len(ttft_s))
        if self._ratios:
            ratios = np.sort(np.array(self._ratios))
            chance = ratios.searchsorted(config.ttft_slo_s / ttft_s, side="right") / len(ratios)
        else:
            chance[ttft_s > config.ttft_slo_s] = 0.0
        quick = self._tpot_s <= config.tpot_slo_s
        least = config.least_chance
        for _ in range(_ROUNDS + 1):
            for kept in ((chance >= least) & quick, chance >= least):
                if kept.any():
                    return kept
            least -= _RELAXED
        return np.ones(len(ttft_s), dtype=bool)

    def _learn(self) -> None:
        """Compare first tokens with what was predicted, in the order in which they were sent."""
        for position, _, seconds in self._answers:
            predicted_s = self._predicted_s[position]
            if predicted_s:
                self._ratios.append(seconds / max(predicted_s.popleft(), 1e-9))
        self._answers.clear()


def _part(values: Any) -> Any:
    """Values as parts of the largest one; zeros if that is zero."""
    largest = values.max()
    return values / largest if largest > 0.0 else np.zeros(len(values))
