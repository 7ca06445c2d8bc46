"""RouteBalance's choice of a replica: latency, cost and balance in one score."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from mypy_extensions import mypyc_attr
from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import FleetView, RequestView, Window
from fleetsim.routing.ttft_scan import TIE_S, TtftScan
from fleetsim.units import Seconds

_RELAXED = 0.1
"""By what the filter is relaxed in a round."""
_ROUNDS = 3
_OBSERVED = 200
"""First tokens from which the spread of predictions is read."""
_ADAPTIVE = ((0.3, Window(4, 0.05)), (0.7, Window(16, 0.1)))
"""Below which share of replicas with waiting requests which window is taken."""
_EQUAL = 1e-9
"""Scores that differ by less are equal: leaps and single steps differ in the last bits of what they add up."""
_BUSY = Window(32, 0.2)
"""The window above."""


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
    quality: "Annotated[dict[str, float], Field(json_schema_extra={'unit': 'ratio'})]" = {}  # noqa: RUF012 - pydantic copies it; to the compiler a Field is no dict
    """Quality of each pool's answers by pool name, 0 to 1; pools that are not named have 0."""
    usd_per_token: "Annotated[dict[str, float], Field(json_schema_extra={'unit': 'USD/token'})]" = {}  # noqa: RUF012 - pydantic copies it; to the compiler a Field is no dict
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
    window: Literal["adaptive", "fixed", "none"] = "adaptive"
    """`adaptive`: requests are collected up to 4 or for 50 ms, where fewer than 0.3 of the replicas have requests that wait; up to
    16 or 100 ms below 0.7; else up to 32 or 200 ms. `fixed`: up to `window_requests` or for `window_wait`. `none`: each is decided
    alone as it comes."""
    window_requests: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'count'})]" = 16
    """Requests in a fixed window at most."""
    window_wait: Seconds = 0.1
    """Time that the first request of a fixed window waits at most."""
    longest_first: bool = True
    """Of a window, decide about the longest expected answer first; off: in the order in which they came."""
    local_updates: bool = True
    """Count what was decided about earlier requests of a window; off: all see the replicas as they were."""


@mypyc_attr(allow_interpreted_subclasses=True)
class RouteBalance:
    """The highest weighted sum of quality, low predicted latency, low price and room in the cache, for a window of requests.

    Rule: requests are collected for a while, the longer the more replicas have requests that wait; then decided about, longest
    expected answer first. ``score = wq quality + wl (1 - e2e / max e2e) + wc (1 - cost / max cost) + wb (1 - use / max use)`` over
    the replicas; argmax; ties to the fewest requests there, then to who was chosen longest ago. Latency is the predicted time to
    the first token plus the expected answer at the step time of the replica's batch, by its own step times. Use is KV in use and
    what the request needs. After each decision the router's own copy of the replica's state gets the request: one more in its
    batch, its prompt before the next one's first token, its tokens in the cache (against herding). The filter keeps replicas with
    ``P(TTFT <= objective)`` of at least `least_chance`, read from the ratios of observed to predicted times of the last 200 first
    tokens, and a step time within its objective; where nobody is left, first the first token's chance is lowered by 0.1, then the
    step's objective is dropped, three rounds of it, and then all are kept.

    What is charged: the wait in the window, and 30 ms per window, the middle of 28 to 32 ms that the authors measured. Inside
    another router each request is decided alone, which is a window of one.

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
        self._waiting: Any = np.frombuffer(board.waiting)
        self._running: Any = np.frombuffer(board.running)
        # what earlier decisions about the same window add to the replicas
        self._more_s: Any = np.zeros(fleet.count)
        self._more_requests: Any = np.zeros(fleet.count)
        self._more_used: Any = np.zeros(fleet.count)
        self._touched: list[int] = []
        self._used: Any = np.zeros(fleet.count)
        """Part of each KV cache in use, where that counts."""
        self._last = [0] * fleet.count
        """When, by count of decisions, each replica was last chosen."""
        self._decisions = 0

    def window(self) -> Window:
        """How many requests to wait for and for how long."""
        config = self._config
        if config.window == "none":
            return Window(1, 0.0)
        if config.window == "fixed":
            return Window(config.window_requests, config.window_wait)
        share = np.count_nonzero(self._waiting) / self._fleet.count
        for below, window in _ADAPTIVE:
            if share < below:
                return window
        return _BUSY

    def route(self, request: RequestView) -> int:
        """Choose a replica for a request alone."""
        return self.route_window([request])[0]

    def route_window(self, requests: Sequence[RequestView]) -> list[int]:
        """Choose a replica for each request of a window."""
        chosen = [0] * len(requests)
        self._look()
        for number in self._order(requests):
            request = requests[number]
            ttft_s = self._ttft_s(request)
            scores = self._scores(request, ttft_s)
            if self._config.least_chance > 0.0:
                scores[~self._kept(ttft_s)] = -np.inf
            place = chosen[number] = self._best(scores)
            if self._config.least_chance > 0.0:
                self._predicted_s[place].append(float(ttft_s[place]))
            self._decisions += 1
            self._last[place] = self._decisions
            self._count(request, place)
        self._forget()
        return chosen

    def explain(self, request: RequestView) -> Mapping[int, Mapping[str, float]]:
        """Score, predicted times and what the filter says of each replica."""
        return self.explain_window([request])[0]

    def explain_window(self, requests: Sequence[RequestView]) -> list[Mapping[int, Mapping[str, float]]]:
        """The same for each request of a window, as it is when its turn comes, and which turn that is."""
        told: list[Mapping[int, Mapping[str, float]]] = [{}] * len(requests)
        last = list(self._last)
        self._look()
        for turn, number in enumerate(self._order(requests), start=1):
            request = requests[number]
            ttft_s = self._ttft_s(request)
            scores, kept = self._scores(request, ttft_s), self._kept(ttft_s)
            told[number] = {
                i: {
                    "score": float(scores[i]),
                    "ttft_s": float(ttft_s[i]),
                    "tpot_s": float(self._tpot_s[i]),
                    "kept": float(kept[i]),
                    "turn": float(turn),
                }
                for i in range(self._fleet.count)
            }
            if self._config.least_chance > 0.0:
                scores[~kept] = -np.inf
            place = self._best(scores)
            self._last[place] = self._decisions + turn
            self._count(request, place)
        self._forget()
        self._last = last
        return told

    def _order(self, requests: Sequence[RequestView]) -> Sequence[int]:
        """Numbers of a window's requests in the order in which they are decided about."""
        if not self._config.longest_first:
            return range(len(requests))
        return sorted(range(len(requests)), key=lambda number: -self._output(requests[number]))

    def _output(self, request: RequestView) -> float:
        """Answer that is expected [tokens]."""
        return request.predicted_tokens if request.predicted_tokens >= 0.0 else float(self._config.output_tokens)

    def _look(self) -> None:
        """Bring what is remembered of the replicas to now."""
        board, fleet = self._board, self._fleet
        for position in self._changed:
            batch = int(board.running[position] + board.waiting[position]) + 1
            self._tpot_s[position] = fleet.tpot_s(position, batch)
        self._changed.clear()
        if self._config.balance_weight > 0.0:
            self._used = np.array([fleet.kv_used(position) for position in range(fleet.count)])

    def _count(self, request: RequestView, place: int) -> None:
        """Add a request to the own copy of a replica's state."""
        config, board, fleet = self._config, self._board, self._fleet
        if not config.local_updates:
            return
        hit = fleet.hit_tokens(place, request) if config.holders else 0
        self._more_s[place] += fleet.prefill_s(place, request.prompt_tokens - hit, hit)
        self._more_requests[place] += 1.0
        self._more_used[place] += (request.prompt_tokens + self._output(request)) / self._capacity[place]
        batch = int(board.running[place] + board.waiting[place] + self._more_requests[place]) + 1
        self._tpot_s[place] = fleet.tpot_s(place, batch)
        self._touched.append(place)

    def _forget(self) -> None:
        """Drop what was added: the view will show it once the requests are sent."""
        for place in self._touched:
            self._more_s[place] = self._more_requests[place] = self._more_used[place] = 0.0
        self._changed.extend(self._touched)
        self._touched.clear()

    def _ttft_s(self, request: RequestView) -> Any:
        """Predicted time of each replica to the first token [s], in a new array."""
        ttft_s = self._scan.seconds(request)
        if self._touched:
            ttft_s += self._more_s
            ttft_s += TIE_S * self._more_requests
        return ttft_s

    def _scores(self, request: RequestView, ttft_s: Any) -> Any:
        config, output = self._config, self._output(request)
        total = request.prompt_tokens + output
        absent_too = self._fleet.keep_present  # who is not there must not be the measure of the others
        scores: Any = self._quality - config.latency_weight * _part(absent_too(ttft_s + output * self._tpot_s, 0.0))
        if self._priced:
            scores -= config.cost_weight * _part(total * self._usd)
        if config.balance_weight > 0.0:
            used = self._used + self._more_used + total / self._capacity
            scores -= config.balance_weight * _part(absent_too(used, 0.0))
        return absent_too(scores, -np.inf)

    def _best(self, scores: Any) -> int:
        """The highest score; of equal ones the fewest requests, and of these the one chosen longest ago."""
        best: list[int] = (scores >= scores.max() - _EQUAL).nonzero()[0].tolist()
        if len(best) == 1:
            return best[0]
        board, more, last = self._board, self._more_requests, self._last
        return min(best, key=lambda i: (board.waiting[i] + board.running[i] + more[i], last[i], i))

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
