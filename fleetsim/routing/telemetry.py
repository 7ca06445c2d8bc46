"""What replicas publish about themselves, as old as the scenario says: loads, and which prefixes their caches hold.

Nothing here costs an event. A replica says when it is about to change (`Board.changing`); what it was until then is all that an old
view can ask for, so it is noted then, and only then. A decision costs the replicas that changed since the last one, never a scan.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import floor
from typing import Any, NamedTuple

from mypy_extensions import mypyc_attr

from fleetsim.routing.prefix_index import PrefixIndex, PrefixNode
from fleetsim.workload.prefixes import Path


@dataclass(frozen=True, slots=True)
class Freshness:
    """How old what a gateway knows is."""

    kind: str = "exact"
    """``exact``; ``sampled``: as at the last multiple of `age_s`; ``delayed``: as `age_s` ago."""
    age_s: float = 0.0
    """Period of samples or delay [s]."""
    own_counts: bool = True
    """Whether the gateway's own counters are exact all the same."""

    def horizon_s(self, now_s: float) -> float:
        """What happened before this time is known at `now_s` (in an exact view, also what happens now) [s]."""
        if self.kind == "sampled":
            return floor(now_s / self.age_s) * self.age_s
        return now_s - self.age_s if self.kind == "delayed" else now_s


class Load(NamedTuple):
    """Load of one replica at an instant."""

    waiting: int
    """Requests in its queue or on their way into it."""
    running: int
    """Requests that hold KV blocks."""
    kv_used: float
    """Part of the KV cache in use; where somebody asked for it [ratio]."""
    pending_tokens: float
    """Prompt tokens to compute before its requests have their first tokens, without what its cache held [tokens]."""
    pending_s: float
    """Seconds that computing them takes, predicted from its own step times [s]."""
    last_prefill_s: float
    """When a first token last came from it, 0 before the first [s]."""
    kv_wanted: float = 0.0
    """Part of the KV cache that the waiting requests will take when they run; where somebody asked for it [ratio]."""
    kv_first: float = 0.0
    """The same of those that are first in their queues [ratio]."""
    urgent: int = 0
    """Running requests of a priority above 0; where somebody asked for it."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Filling:
    """How a KV cache filled from one change of its replica to the next."""

    def kv_used(self, at_s: float) -> float:
        """Part of it in use at a time between the two [ratio]."""
        raise NotImplementedError


@mypyc_attr(allow_interpreted_subclasses=True)
class Probe:
    """One replica, as its telemetry shows it. Times must not lie before its last change."""

    block_tokens: int
    """Tokens per block of its cache."""
    frontend_s: float
    """Time that a request spends before the queue [s]."""

    def watch(self, board: Board, position: int) -> None:
        """Tell `board` from now on before this replica changes; it is number `position` there."""
        raise NotImplementedError

    def show_demand(self, figures: Sequence[str]) -> None:
        """Show these of `kv_wanted`, `kv_first` and `urgent` too from now on, of which some cost a look at all its requests."""
        raise NotImplementedError

    def show_kv(self) -> None:
        """Show `kv_used` in `load` from now on, which costs a look at the leap under way."""
        raise NotImplementedError

    def publish(self, caches: Caches, position: int) -> None:
        """Tell `caches` from now on which blocks this replica holds and forgets; it is number `position` there."""
        raise NotImplementedError

    def load(self, at_s: float) -> Load:
        """Its load at `at_s`."""
        raise NotImplementedError

    def kv_used(self, at_s: float) -> float:
        """Part of its KV cache in use at `at_s` [ratio]."""
        raise NotImplementedError

    def filling(self) -> Filling | None:
        """How its KV cache has filled since its last change; None if it has not."""
        return None

    def held_tokens(self, path: Path) -> int:
        """Tokens of a prompt, whose blocks have these keys, that its cache holds now."""
        raise NotImplementedError

    def prefill_terms(self) -> tuple[float, float, float]:
        """Seconds per prompt, per token and per pair of tokens that attention scores, of which `prefill_s` is made."""
        raise NotImplementedError

    def prefill_s(self, tokens: float, cached: float) -> float:
        """Seconds that computing `tokens` after `cached` ones takes it, alone [s]."""
        raise NotImplementedError

    def tpot_s(self, batch: int) -> float:
        """Seconds of a decode step of `batch` requests of middling length [s]."""
        raise NotImplementedError

    def decode_terms(self) -> tuple[float, float, float]:
        """Seconds of a decode step per step, per request and per token of context, fitted to its own step times."""
        raise NotImplementedError


class Board:
    """Loads of all replicas as a gateway knows them, in arrays (views of them are arrays of numpy without a copy).

    Where telemetry is old and the gateway's own counts are not, what it sent since the last report is added to the report.
    """

    __slots__ = (
        "_changed",
        "_demanded",
        "_dirty",
        "_epoch_s",
        "_fillings",
        "_freshness",
        "_last_s",
        "_log",
        "_number",
        "_probes",
        "_sent",
        "_snapshots",
        "_watchers",
        "kv_first",
        "kv_used",
        "kv_wanted",
        "last_prefill_s",
        "pending_s",
        "pending_tokens",
        "running",
        "scanned",
        "urgent",
        "waiting",
    )

    def __init__(self, probes: Sequence[Probe], freshness: Freshness, now_s: float) -> None:
        zeros = [0.0] * len(probes)
        self._probes = list(probes)
        self._freshness = freshness
        self.waiting = array("d", zeros)
        """Requests in each replica's queue or on their way into it."""
        self.running = array("d", zeros)
        """Requests that hold KV blocks."""
        self.kv_used = array("d", zeros)
        """Part of the KV cache in use, as at the replica's last change (after `watch_kv`): a cache fills until the next change, so
        this is the least that it can be. `FleetView.kv_used` is what it is at the stated time."""
        self.pending_tokens = array("d", zeros)
        """Prompt tokens to compute before first tokens, cached ones left out."""
        self.pending_s = array("d", zeros)
        """Seconds that this takes."""
        self.last_prefill_s = array("d", zeros)
        """When a first token last came."""
        self.kv_wanted = array("d", zeros)
        """Part of the KV cache that waiting requests will take (after `watch_demand`)."""
        self.kv_first = array("d", zeros)
        """Part of it that those first in their queues will take (after `watch_demand`)."""
        self.urgent = array("d", zeros)
        """Running requests of a priority above 0 (after `watch_demand`)."""
        self._watchers: list[list[int]] = []
        self._demanded = False
        self.scanned = False
        """Whether all figures are kept up to date; else, in an exact view, only those that `look` was called for."""
        self._dirty = [False] * len(probes)
        self._changed: list[int] = []
        """Replicas that changed since their figures were last read."""
        self._last_s = [now_s] * len(probes)
        """When each replica last changed."""
        self._snapshots: dict[int, Load] = {}
        """Sampled: loads at the last sample of replicas that have changed since."""
        self._log: list[tuple[float, int, int, Load]] = []
        """Delayed: reports on their way, earliest first (a heap)."""
        self._fillings: list[deque[tuple[float, float, Filling | None]]] = []
        """Delayed: of each replica, from and until when its cache filled how, as far as that may still be asked for."""
        if freshness.kind == "delayed":
            self._fillings = [deque() for _ in probes]
        self._number = 0
        self._epoch_s = freshness.horizon_s(now_s)
        self._sent: deque[tuple[float, int, int, float, float]] = deque()
        """Requests sent since the last report: time, replica, prompt tokens to compute, seconds, part of the KV cache."""
        for position, probe in enumerate(probes):
            probe.watch(self, position)
            if freshness.kind != "exact":
                probe.show_kv()  # nobody can be asked later what was so then
            self._show(position, probe.load(now_s))

    def watch_kv(self, now_s: float) -> array[float]:
        """Ask, at construction, for `kv_used`."""
        for position, probe in enumerate(self._probes):
            probe.show_kv()
            self._show(position, probe.load(now_s))
        return self.kv_used

    def watch(self) -> list[int]:
        """Ask, at construction, for a list of replicas whose figures change (all of them at first); the router empties it."""
        self.scanned = True
        watcher = list(range(len(self._probes)))
        self._watchers.append(watcher)
        return watcher

    def watch_demand(self, figures: Sequence[str], now_s: float) -> None:
        """Ask, at construction, for these of `kv_wanted`, `kv_first` and `urgent` too."""
        self._demanded = True
        for position, probe in enumerate(self._probes):
            probe.show_demand(figures)
            self._show(position, probe.load(now_s))

    def changing(self, position: int, now_s: float) -> None:
        """Note that a replica is about to change (called by it)."""
        last_s = self._last_s[position]
        kind = self._freshness.kind
        if kind == "sampled":
            sample_s = self._freshness.horizon_s(now_s)
            if last_s >= sample_s:
                pass
            elif sample_s > self._epoch_s:
                self._snapshots[position] = self._probes[position].load(sample_s)
            else:  # the sample is shown already, all but what moves without a change
                self.kv_used[position] = self._probes[position].kv_used(sample_s)
        elif kind == "delayed" and last_s < now_s:
            if self._dirty[position]:
                self._report(last_s, position)
            self._note_filling(position, last_s, now_s)
        if not self._dirty[position]:
            self._dirty[position] = True
            if self.scanned or kind != "exact":
                self._changed.append(position)
        self._last_s[position] = now_s

    def look(self, position: int) -> None:
        """Bring one replica's figures to what is known, where they are not `scanned`."""
        if self._dirty[position] and not self.scanned and self._freshness.kind == "exact":
            self._dirty[position] = False
            self._show(position, self._probes[position].load(self._last_s[position]))

    def begin(self, now_s: float) -> None:
        """Bring the figures to what is known at `now_s`."""
        kind = self._freshness.kind
        if kind == "exact":
            changed = self._changed
            if changed:
                self._changed = []
                for position in changed:
                    self._dirty[position] = False
                    self._show(position, self._probes[position].load(now_s))
        elif kind == "sampled":
            self._sample(self._freshness.horizon_s(now_s))
        else:
            self._arrive(now_s)

    def sent(self, position: int, now_s: float, tokens: int, seconds: float, kv_wanted: float) -> None:
        """Count a request that no report shows yet (called by the view of a gateway that knows what it sent)."""
        self._sent.append((now_s, position, tokens, seconds, kv_wanted))
        self._add(position, 1, tokens, seconds, kv_wanted)

    def kv_used_at(self, position: int, now_s: float) -> float:
        """Part of a replica's KV cache in use, as is known at `now_s` [ratio]."""
        horizon_s = self._freshness.horizon_s(now_s)
        if self._last_s[position] <= horizon_s:
            return self._probes[position].kv_used(horizon_s)
        if self._fillings:
            for begin_s, end_s, filling in self._fillings[position]:
                if begin_s <= horizon_s < end_s and filling is not None:
                    return filling.kv_used(horizon_s)
        return self.kv_used[position]

    def _note_filling(self, position: int, begin_s: float, end_s: float) -> None:
        fillings, horizon_s = self._fillings[position], self._freshness.horizon_s(end_s)
        while fillings and fillings[0][1] <= horizon_s:
            fillings.popleft()
        fillings.append((begin_s, end_s, self._probes[position].filling()))

    def _sample(self, sample_s: float) -> None:
        if sample_s <= self._epoch_s:
            return
        self._epoch_s = sample_s
        self._forget_sent(sample_s)
        later: list[int] = []
        for position in self._changed:
            if self._last_s[position] < sample_s:
                self._dirty[position] = False
                self._snapshots.pop(position, None)
                self._show_with_sent(position, self._probes[position].load(sample_s))
            else:
                later.append(position)
                snapshot = self._snapshots.pop(position, None)
                if snapshot is not None:
                    self._show_with_sent(position, snapshot)
        self._changed = later

    def _arrive(self, now_s: float) -> None:
        later: list[int] = []
        for position in self._changed:
            last_s = self._last_s[position]
            if last_s < now_s:
                self._dirty[position] = False
                self._report(last_s, position)
            else:
                later.append(position)
        self._changed = later
        horizon_s = self._freshness.horizon_s(now_s)
        self._forget_sent(horizon_s)
        log = self._log
        while log and log[0][0] < horizon_s:
            _, _, position, load = heappop(log)
            self._show_with_sent(position, load)

    def _report(self, at_s: float, position: int) -> None:
        self._number += 1
        heappush(self._log, (at_s, self._number, position, self._probes[position].load(at_s)))

    def _forget_sent(self, horizon_s: float) -> None:
        """Leave out what the reports show by now."""
        sent = self._sent
        while sent and sent[0][0] < horizon_s:
            _, position, tokens, seconds, kv_wanted = sent.popleft()
            self._add(position, -1, -tokens, -seconds, -kv_wanted)

    def _add(self, position: int, requests: int, tokens: int, seconds: float, kv_wanted: float) -> None:
        self.waiting[position] += requests
        self.pending_tokens[position] += tokens
        self.pending_s[position] += seconds
        self.kv_wanted[position] += kv_wanted
        for watcher in self._watchers:
            watcher.append(position)

    def _show(self, position: int, load: Load) -> None:
        self.waiting[position] = load.waiting
        self.running[position] = load.running
        self.kv_used[position] = load.kv_used
        self.pending_tokens[position] = load.pending_tokens
        self.pending_s[position] = load.pending_s
        self.last_prefill_s[position] = load.last_prefill_s
        if self._demanded:
            self.kv_wanted[position] = load.kv_wanted
            self.kv_first[position] = load.kv_first
            self.urgent[position] = load.urgent
        for watcher in self._watchers:
            watcher.append(position)

    def _show_with_sent(self, position: int, load: Load) -> None:
        self._show(position, load)
        for _, to, tokens, seconds, kv_wanted in self._sent:
            if to == position:
                self._add(position, 1, tokens, seconds, kv_wanted)


class Caches:
    """Which replicas hold which prefixes, from what their caches publish and evict; as old as the scenario says.

    One index per block size. A look-up costs the branch points on a prompt's path, whatever the number of replicas.
    """

    __slots__ = ("_blocks", "_freshness", "_indexes", "_log", "sizes")

    def __init__(self, probes: Sequence[Probe], freshness: Freshness) -> None:
        self._freshness = freshness
        self._blocks = [probe.block_tokens for probe in probes]
        self.sizes = tuple(sorted(set(self._blocks)))
        """Block sizes of the replicas' caches."""
        self._indexes = {size: PrefixIndex(len(probes)) for size in self.sizes}
        self._log: deque[tuple[float, int, Path, int]] = deque()
        """What has happened and is not known yet: time, replica, path, blocks of it that are left (below 0: all, published)."""
        for position, probe in enumerate(probes):
            probe.publish(self, position)

    def published(self, now_s: float, position: int, path: Path) -> None:
        """Note that a replica holds all of `path` now."""
        if self._freshness.kind == "exact":
            self._indexes[self._blocks[position]].insert(path, position)
        else:
            self._log.append((now_s, position, path, -1))

    def evicted(self, now_s: float, position: int, path: Path, kept: int) -> None:
        """Note that a replica holds only the first `kept` blocks of `path` from now on."""
        if self._freshness.kind == "exact":
            self._indexes[self._blocks[position]].remove(path, kept, position)
        else:
            self._log.append((now_s, position, path, kept))

    def begin(self, now_s: float) -> None:
        """Bring the indexes to what is known at `now_s`."""
        log = self._log
        if not log:
            return
        horizon_s = self._freshness.horizon_s(now_s)
        while log and log[0][0] < horizon_s:
            _, position, path, kept = log.popleft()
            index = self._indexes[self._blocks[position]]
            if kept < 0:
                index.insert(path, position)
            else:
                index.remove(path, kept, position)

    def held_tokens(self, position: int, paths: dict[int, Path]) -> int:
        """Leading tokens that a replica holds of a prompt whose path is given by block size."""
        size = self._blocks[position]
        return self._indexes[size].held(paths[size], position) * size

    def mark(self, paths: dict[int, Path], limit: int, hits: Any) -> None:
        """Set ``hits[replica]`` to the tokens of the prompt that it holds, for up to `limit` holders of each of its parts."""
        for size in self.sizes:
            self._indexes[size].mark(paths[size], limit, size, hits)

    def levels(self, paths: dict[int, Path], limit: int) -> list[tuple[PrefixNode, int]]:
        """Runs by who holds them, and the tokens of the prompt up to there, longest first of each block size."""
        if len(self.sizes) == 1:
            size = self.sizes[0]
            return self._indexes[size].levels(paths[size], limit, size)
        return [level for size in self.sizes for level in self._indexes[size].levels(paths[size], limit, size)]

    def holders(self, paths: dict[int, Path], limit: int) -> dict[int, int]:
        """Up to `limit` replicas (of each block size) that hold a beginning of the prompt, and how many tokens of it.

        Those with the longest one come first; among equals, those that have held it for longest.
        """
        found: dict[int, int] = {}
        for size in self.sizes:
            blocks, at = self._indexes[size].longest(paths[size])
            node: PrefixNode | None = at
            room = limit
            while node is not None and blocks and room > 0:
                for holder in node.holders:
                    if holder not in found:
                        found[holder] = blocks * size
                        room -= 1
                        if room <= 0:
                            break
                node = node.parent
                blocks = 0 if node is None else node.end
        return found
