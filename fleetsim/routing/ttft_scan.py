"""Predicted times to the first token of all replicas at once."""

from __future__ import annotations

from typing import Any

import numpy as np

from fleetsim.routing.api import FleetView, RequestView

TIE_S = 1e-6
"""What a request that runs or waits adds, so that of idle replicas the one with the fewest requests comes first [s]."""


class TtftScan:
    """Time to the first token that is to be expected of each replica: prompts before it, and its own after what is cached there.

    A few vector operations over all replicas.

    Parameters
    ----------
    fleet : FleetView
        The view; its load telemetry is asked for, and that of caches unless `holders` is 0.
    holders : int
        Replicas with a prefix whose caches count, those that have held it for longest.
    """

    __slots__ = ("_base_s", "_fleet", "_holders", "_pair_s", "_pending_s", "_running", "_token_s", "_waiting")

    def __init__(self, fleet: FleetView, holders: int) -> None:
        board = fleet.watch_load()
        if holders:
            fleet.watch_caches()
        self._fleet = fleet
        self._holders = holders
        base_s, token_s, pair_s = fleet.prefill_terms()
        self._base_s: Any = np.array(base_s)
        self._token_s: Any = np.array(token_s)
        self._pair_s: Any = np.array(pair_s)
        # views of the board's arrays: they change with it
        self._pending_s: Any = np.frombuffer(board.pending_s)
        self._waiting: Any = np.frombuffer(board.waiting)
        self._running: Any = np.frombuffer(board.running)

    def after(self, prompt_tokens: int, cached: int) -> Any:
        """Predicted time of each replica if `cached` tokens of the prompt were in its cache, whatever is [s]; in a new array."""
        tokens = prompt_tokens - cached
        found = self._running + self._waiting
        found *= TIE_S
        found += self._pending_s
        found += self._base_s
        found += tokens * self._token_s
        found += (tokens * (cached + 0.5 * (tokens + 1))) * self._pair_s
        return found

    def after_at(self, place: int, prompt_tokens: int, cached: int) -> float:
        """The same of one replica [s]."""
        requests = self._running[place] + self._waiting[place]
        return self._fleet.ttft_s(place, prompt_tokens, cached) + TIE_S * float(requests)

    def seconds(self, request: RequestView) -> Any:
        """Predicted time of each replica [s], in a new array."""
        fleet, n = self._fleet, request.prompt_tokens
        found = self._running + self._waiting
        found *= TIE_S
        found += self._pending_s
        found += self._base_s
        if not self._holders:
            found += n * self._token_s
            found += (0.5 * n * (n + 1)) * self._pair_s
            return found
        left = n - fleet.hits(request, self._holders)
        found += left * self._token_s
        # of n tokens, m left: m (n - m) pairs with cached ones and m (m + 1) / 2 among themselves
        left *= (n + 0.5) - 0.5 * left
        left *= self._pair_s
        found += left
        return found
