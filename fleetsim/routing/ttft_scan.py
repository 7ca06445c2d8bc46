"""Predicted times to the first token of all replicas at once."""

from __future__ import annotations

from array import array
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

    __slots__ = ("_base_s", "_board", "_changed", "_fleet", "_holders", "_pair_s", "_queued", "_queued_s", "_token_s")

    def __init__(self, fleet: FleetView, holders: int) -> None:
        board = fleet.watch_load()
        if holders:
            fleet.watch_caches()
        self._fleet = fleet
        self._board = board
        self._changed = board.watch()
        self._holders = holders
        base_s, token_s, pair_s = fleet.prefill_terms()
        self._base_s = base_s
        self._token_s: Any = np.array(token_s)
        self._pair_s: Any = np.array(pair_s)
        self._queued = array("d", base_s)
        """Of each replica, what comes before a prompt's tokens: those that wait there, and what every prompt takes [s]."""
        self._queued_s: Any = np.frombuffer(self._queued)

    def _before(self) -> Any:
        """The same as it is now, in a new array."""
        board, changed = self._board, self._changed
        if changed:
            queued, base_s = self._queued, self._base_s
            running, waiting, pending_s = board.running, board.waiting, board.pending_s
            for place in changed:
                queued[place] = (running[place] + waiting[place]) * TIE_S + pending_s[place] + base_s[place]
            changed.clear()
        return self._fleet.keep_present(self._queued_s.copy())

    def seconds(self, request: RequestView) -> Any:
        """Predicted time of each replica [s], in a new array."""
        n = request.prompt_tokens
        if not self._holders:
            found = self._before()
            found += n * self._token_s
            found += (0.5 * n * (n + 1)) * self._pair_s
            return found
        return self.after(n, self._fleet.hits(request, self._holders))

    def after(self, prompt_tokens: int, cached: Any) -> Any:
        """Predicted time of each replica if its cache held so many tokens of the prompt, an array [s]; in a new array."""
        found = self._before()
        left = prompt_tokens - cached
        found += left * self._token_s
        # of n tokens, m left: m (n - m) pairs with cached ones and m (m + 1) / 2 among themselves
        left *= (prompt_tokens + 0.5) - 0.5 * left
        left *= self._pair_s
        found += left
        return found
