"""Predicted times to the first token of all replicas at once."""

from __future__ import annotations

from array import array
from math import inf
from typing import Any

import numpy as np

from fleetsim.routing.api import FleetView, RequestView
from fleetsim.routing.prefix_index import PrefixNode, first_holders

TIE_S = 1e-6
"""What a request that runs or waits adds, so that of idle replicas the one with the fewest requests comes first [s]."""


_FEW = 128
"""Replicas that are looked at one by one, which is faster than in arrays."""


class TtftScan:
    """Time to the first token that is to be expected of each replica: prompts before it, and its own after what is cached there.

    A few vector operations over all replicas; where the least is all that is asked for and all chips are as fast, one over each
    set of replicas that hold the same part of the prompt, or in a small fleet a look at each of them.

    Parameters
    ----------
    fleet : FleetView
        The view; its load telemetry is asked for, and that of caches unless `holders` is 0.
    holders : int
        Replicas with a prefix whose caches count, those that have held it for longest.
    """

    __slots__ = (
        "_base_s",
        "_board",
        "_changed",
        "_even",
        "_even_pair_s",
        "_even_token_s",
        "_few",
        "_fleet",
        "_holders",
        "_pair_s",
        "_queued",
        "_queued_of",
        "_queued_s",
        "_token_s",
    )

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
        self._even = bool(holders) and len(set(token_s)) == 1 and len(set(pair_s)) == 1
        """Whether a token takes as long everywhere: then who holds as much differs by what comes before alone."""
        self._even_token_s, self._even_pair_s = token_s[0], pair_s[0]
        self._queued = array("d", base_s)
        """Of each replica, what comes before a prompt's tokens: those that wait there, and what every prompt takes [s]."""
        self._queued_s: Any = np.frombuffer(self._queued)
        self._queued_of = list(base_s)
        """The same in a list."""
        self._few = len(base_s) <= _FEW

    @property
    def even(self) -> bool:
        """Whether all replicas are there, and a token takes as long on each."""
        return self._even and self._fleet.whole

    def soonest(self) -> int:
        """The replica with the least before a prompt's tokens now; the first of several."""
        self._catch_up()
        if not self._few:
            return int(self._queued_s.argmin())
        best, best_s = 0, inf
        for place, queued_s in enumerate(self._queued_of):
            if queued_s < best_s:
                best, best_s = place, queued_s
        return best

    def soonest_of(self, run: PrefixNode) -> int:
        """The same among the holders of a run that count; after `soonest`."""
        room = self._holders
        if not self._few:
            holders = first_holders(run, room)
            return int(holders[self._queued_s[holders].argmin()])
        queued, best, best_s = self._queued_of, -1, inf
        for place in run.holders:
            queued_s = queued[place]
            if queued_s < best_s or (queued_s == best_s and place < best):
                best, best_s = place, queued_s
            room -= 1
            if not room:
                break
        return best

    def soonest_without(self, run: PrefixNode, tried: list[int]) -> int:
        """The same among those that do not hold a run and were not `tried`; -1 if there are none."""
        holders = run.holders
        if not self._few:
            left_s = self._queued_s.copy()
            left_s[first_holders(run, len(holders))] = inf
            left_s[tried] = inf
            place = int(left_s.argmin())
            return place if left_s[place] < inf else -1
        best, best_s = -1, inf
        for place, queued_s in enumerate(self._queued_of):
            if queued_s < best_s and place not in holders and place not in tried:
                best, best_s = place, queued_s
        return best

    def _catch_up(self) -> None:
        """Bring that to what is known now."""
        board, changed = self._board, self._changed
        if changed:
            queued, queued_of, base_s = self._queued, self._queued_of, self._base_s
            running, waiting, pending_s = board.running, board.waiting, board.pending_s
            for place in changed:
                queued_s: float = (running[place] + waiting[place]) * TIE_S + pending_s[place] + base_s[place]
                queued[place] = queued_of[place] = queued_s
            changed.clear()

    def _before(self) -> Any:
        """The same as it is now, in a new array."""
        self._catch_up()
        return self._fleet.keep_present(self._queued_s.copy())

    def least(self, request: RequestView) -> int:
        """The replica with the least predicted time; the first of several."""
        if not self.even:
            return int(self.seconds(request).argmin())
        limit, n = self._holders, request.prompt_tokens
        first = self.soonest()
        place, least_s = first, self.one_s(first, n, 0)
        for run, tokens in self._fleet.levels(request, limit):
            if self.one_s(first, n, tokens) > least_s:
                continue  # nobody waits less than this one, which would not be done earlier with as much
            everyone = limit >= len(run.holders) == len(self._queued_of)
            best = first if everyone else self.soonest_of(run)
            found_s = self.one_s(best, n, tokens)
            if found_s < least_s or (found_s == least_s and best < place):
                place, least_s = best, found_s
            if everyone:
                break  # nobody holds less
        return place

    def one_s(self, place: int, prompt_tokens: int, cached: int) -> float:
        """What `after` says of one replica, in the same order of operations."""
        left = float(prompt_tokens - cached)
        found_s = self._queued_of[place] + left * self._even_token_s
        left *= (prompt_tokens + 0.5) - 0.5 * left
        return found_s + left * self._even_pair_s

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
