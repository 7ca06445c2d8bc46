"""What a replica's telemetry reads: its queue, its running set, its KV cache, and how long prompts take it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fleetsim.engine.api import StepTimeModel
from fleetsim.engine.prefix_cache import Node
from fleetsim.engine.replica import Replica
from fleetsim.routing.api import RequestView
from fleetsim.routing.telemetry import Board, Caches, Filling, Load, Probe
from fleetsim.workload.prefixes import Path, Segment
from fleetsim.workload.request import Request

_ALL = 1 << 60
_TOKENS = (64, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
"""Lengths at which step times are read for the fit of prefill times."""
CONTEXT_TOKENS = 1024
"""Context of each request in the prediction of decode steps."""
_CACHED = (0, 2048, 16384)
_BATCHES = (1, 4, 16, 64, 256)
_CONTEXTS = (128, 512, 2048, 8192)
"""Batch sizes and contexts of each request at which decode steps are read."""


class PrefillTime:
    """Seconds to compute n prompt tokens after c cached ones: ``per_request + per_token n + per_pair (n c + n (n + 1) / 2)``.

    Fitted to a step-time model by least squares of relative errors, with no coefficient below zero. A prompt is computed in chunks
    of at most `chunk_tokens`, as the scheduler's budget says.

    Parameters
    ----------
    model : StepTimeModel
        Step times of the replica.
    chunk_tokens : int
        Prompt tokens per step.
    """

    __slots__ = ("error", "per_pair_s", "per_request_s", "per_token_s")

    def __init__(self, model: StepTimeModel, chunk_tokens: int) -> None:
        points = [(n, c) for n in _TOKENS for c in _CACHED]
        seconds = np.array([_alone_s(model, n, c, chunk_tokens) for n, c in points])
        terms = np.array([(1.0, n, n * c + n * (n + 1) / 2) for n, c in points]) / seconds[:, None]
        fitted = _fitted(terms)
        self.per_request_s, self.per_token_s, self.per_pair_s = fitted
        self.error = float(np.abs(terms @ np.array(fitted) - 1.0).max())
        """Largest relative error over the fitted points."""

    def seconds(self, tokens: float, cached: float) -> float:
        """Time [s]; 0 for no tokens."""
        if tokens <= 0.0:
            return 0.0
        pairs = tokens * (cached + 0.5 * (tokens + 1.0))
        return self.per_request_s + self.per_token_s * tokens + self.per_pair_s * pairs


class DecodeTime:
    """Seconds of a decode step: ``per_step + per_request batch + per_token context``, fitted like `PrefillTime`."""

    __slots__ = ("error", "per_request_s", "per_step_s", "per_token_s")

    def __init__(self, model: StepTimeModel) -> None:
        points = [(batch, batch * context) for batch in _BATCHES for context in _CONTEXTS]
        seconds = np.array([_step_s(model, batch, tokens) for batch, tokens in points])
        terms = np.array([(1.0, batch, tokens) for batch, tokens in points]) / seconds[:, None]
        fitted = _fitted(terms)
        self.per_step_s, self.per_request_s, self.per_token_s = fitted
        self.error = float(np.abs(terms @ np.array(fitted) - 1.0).max())
        """Largest relative error over the fitted points."""

    def seconds(self, batch: float, tokens: float) -> float:
        """Duration of a step of `batch` requests with `tokens` of context altogether [s]."""
        return self.per_step_s + self.per_request_s * batch + self.per_token_s * tokens


def _fitted(terms: np.ndarray) -> list[float]:
    """Coefficients of three terms, none below zero, that make their sums nearest to 1."""
    kept = [0, 1, 2]
    while True:
        found = np.linalg.lstsq(terms[:, kept], np.ones(len(terms)), rcond=None)[0]
        if found.min() >= 0.0:
            break
        del kept[int(found.argmin())]
    fitted = [0.0, 0.0, 0.0]
    for place, value in zip(kept, found.tolist(), strict=True):
        fitted[place] = value
    return fitted


def _step_s(model: StepTimeModel, batch: int, tokens: int) -> float:
    """A decode step of `batch` requests with `tokens` of context altogether [s]."""
    line = model.decode(batch, tokens, batch)
    return line.time_s + line.time_per_ctx_s * tokens


def _alone_s(model: StepTimeModel, tokens: int, cached: int, chunk_tokens: int) -> float:
    """Time that a prompt takes whose steps compute nothing else [s]."""
    total_s, done = 0.0, 0
    while done < tokens:
        n = min(chunk_tokens, tokens - done)
        c = cached + done
        done += n
        total_s += model.mixed(n, int(done == tokens), n * c + n * (n + 1) // 2, c + n, 1, 0, 0, n)[0]
    return total_s


class LeapFilling(Filling):
    """How a replica's KV cache fills during the leap under way."""

    def __init__(self, replica: Replica, capacity_blocks: int) -> None:
        self._capacity_blocks = capacity_blocks
        self._start_s, self._last = replica.leap_start_s, replica.leap_steps - 1
        self._first_s, self._slope_s = replica.first_s, replica.slope_s
        self._used = sum(batch.cache.used for batch in replica.batches)
        self._growth: list[list[int]] = []
        """Of each rank: blocks that its next 0, 1, 2, … steps need, up to as many as a block has tokens."""
        for batch in replica.batches:
            needed = [0]
            for step in range(batch.step, batch.step + batch.block_tokens):
                needed.append(needed[-1] + batch.phases[-step % batch.block_tokens])
            self._growth.append(needed)

    def kv_used(self, at_s: float) -> float:
        """Part of it in use at a time within the leap [ratio]."""
        elapsed_s = at_s - self._start_s
        low, high = 0, self._last
        while low < high:  # the last step that is over
            middle = (low + high + 1) // 2
            if middle * self._first_s + self._slope_s * (middle * (middle - 1) // 2) <= elapsed_s:
                low = middle
            else:
                high = middle - 1
        blocks = self._used
        for needed in self._growth:
            cycles, rest = divmod(low, len(needed) - 1)
            blocks += cycles * needed[-1] + needed[rest]
        return blocks / self._capacity_blocks


class ReplicaProbe(Probe):
    """One replica as its telemetry shows it.

    Pending work is counted, not scanned: each request with what of it was not in the cache when it came, requests that are being
    computed with what is left of them.
    """

    def __init__(
        self, replica: Replica, prefill_time: Callable[[], PrefillTime], decode_time: Callable[[], DecodeTime]
    ) -> None:
        batch = replica.batches[0]
        self.block_tokens = batch.block_tokens
        self.frontend_s = replica.model.frontend_s
        self._replica = replica
        self._fit = prefill_time
        self._fitted: PrefillTime | None = None
        self._decode_time = decode_time
        self._tpots_s: dict[int, float] = {}
        self._capacity_blocks = sum(batch.cache.capacity for batch in replica.batches)
        self._boards: list[tuple[Board, int]] = []
        self._caches: list[tuple[Caches, int]] = []
        self._queued: dict[int, tuple[float, float]] = {}
        """Requests without a first token, by id: tokens to compute when they came, and seconds for them."""
        self._tokens = 0.0
        self._seconds = 0.0
        self._last_prefill_s = 0.0
        self._shows_wanted = self._shows_first = self._shows_urgent = False
        self._shows_kv = False

    # --- what it is asked ---------------------------------------------------------------------------------------------

    def watch(self, board: Board, position: int) -> None:
        """Tell `board` from now on before this replica changes."""
        replica = self._replica
        if replica.listener is None:
            replica.listener = self
            for request in (
                *(r for batch in replica.batches for r in (*batch.running, *batch.waiting)),
                *replica.inbox,
            ):
                self.arrived(request)
            for batch in replica.batches:
                if batch.cache.enabled and batch.cache.journal is None:
                    batch.cache.journal = (
                        self  # pending work depends on what the cache holds: leaps end where it forgets
                    )
        self._boards.append((board, position))

    def show_kv(self) -> None:
        """Show how full the KV cache is too."""
        self._shows_kv = True

    def show_demand(self, figures: Sequence[str]) -> None:
        """Show these of what waiting requests will need, and how many that run are urgent, too."""
        self._shows_wanted = self._shows_wanted or "kv_wanted" in figures
        self._shows_first = self._shows_first or "kv_first" in figures
        self._shows_urgent = self._shows_urgent or "urgent" in figures

    def publish(self, caches: Caches, position: int) -> None:
        """Tell `caches` from now on which blocks this replica holds and forgets."""
        for batch in self._replica.batches:
            batch.cache.journal = self
            for node in batch.cache.nodes():
                caches.published(self._replica.clock.now_s, position, _path_to(node, node.keys))
        self._caches.append((caches, position))

    def load(self, at_s: float) -> Load:
        """Its load at `at_s`, not before its last change."""
        waiting = running = 0
        tokens, seconds = self._tokens, self._seconds
        for batch in self._replica.batches:
            waiting += len(batch.waiting) + batch.coming
            running += len(batch.running)
            for request in batch.prefilling:
                queued = self._queued.get(request.id)
                if queued is not None:
                    left = request.target - request.computed
                    tokens += left - queued[0]
                    seconds += self.prefill_s(left, request.computed) - queued[1]
        wanted, first, urgent = 0.0, 0.0, 0
        if self._shows_wanted:
            wanted = self._replica.wanted_blocks() / self._capacity_blocks
        if self._shows_first:
            first = self._replica.first_wanted_blocks() / self._capacity_blocks
        if self._shows_urgent:
            urgent = self._replica.urgent_count()
        used = self.kv_used(at_s) if self._shows_kv else 0.0
        return Load(waiting, running, used, tokens, max(seconds, 0.0), self._last_prefill_s, wanted, first, urgent)

    def kv_used(self, at_s: float) -> float:
        """Part of its KV cache in use at `at_s` [ratio]."""
        return self._replica.kv_used_blocks(at_s) / self._capacity_blocks

    def filling(self) -> Filling | None:
        """How its KV cache has filled since its last change."""
        replica = self._replica
        if replica.timer is None or replica.has_chunks or replica.leap_steps < 2:
            return None
        return LeapFilling(replica, self._capacity_blocks)

    def held_tokens(self, path: Path) -> int:
        """Tokens of a prompt, whose blocks have these keys, that the cache of the rank that would get it holds now."""
        replica = self._replica
        batch = replica.batches[replica.next_rank() if len(replica.batches) > 1 else 0]
        return batch.cache.held(path, _ALL) * batch.block_tokens if path and batch.cache.enabled else 0

    def prefill_s(self, tokens: float, cached: float) -> float:
        """Seconds that computing `tokens` after `cached` ones takes, alone [s]."""
        return self._prefill_time().seconds(tokens, cached)

    def prefill_terms(self) -> tuple[float, float, float]:
        """Seconds per prompt, per token and per pair of tokens that attention scores."""
        fitted = self._prefill_time()
        return fitted.per_request_s, fitted.per_token_s, fitted.per_pair_s

    def tpot_s(self, batch: int) -> float:
        """Seconds of a decode step of `batch` requests with `CONTEXT_TOKENS` each [s]."""
        known = self._tpots_s.get(batch)
        if known is None:
            known = self._tpots_s[batch] = _step_s(self._replica.model, batch, batch * CONTEXT_TOKENS)
        return known

    def decode_terms(self) -> tuple[float, float, float]:
        """Seconds of a decode step per step, per request and per token of context."""
        fitted = self._decode_time()
        return fitted.per_step_s, fitted.per_request_s, fitted.per_token_s

    def _prefill_time(self) -> PrefillTime:
        fitted = self._fitted
        if fitted is None:
            fitted = self._fitted = self._fit()
        return fitted

    # --- what it is told ----------------------------------------------------------------------------------------------

    def changing(self, now_s: float) -> None:
        """Note that the replica is about to change."""
        for board, position in self._boards:
            board.changing(position, now_s)

    def arrived(self, request: Request) -> None:
        """Note a request that joins."""
        if request.generated or request.id in self._queued:
            return
        cached = max(self.held_tokens(RequestView(request).reusable(self.block_tokens)), request.carried_tokens)
        tokens = float(request.prompt_tokens - cached)
        seconds = self.prefill_s(tokens, cached)
        self._queued[request.id] = (tokens, seconds)
        self._tokens += tokens
        self._seconds += seconds

    def left(self, request: Request, answered: bool) -> None:
        """Note that a request has its first token, or leaves without one."""
        queued = self._queued.pop(request.id, None)
        if queued is not None:
            self._tokens -= queued[0]
            self._seconds -= queued[1]
            if not self._queued:
                self._tokens = self._seconds = 0.0  # sums of seconds do not cancel to the last bit
        if answered:
            self._last_prefill_s = self._replica.clock.now_s

    def published(self, path: Path, blocks: int) -> None:
        """Note that the first `blocks` blocks of `path` are in the cache."""
        if not self._caches:
            return
        known = _first(path, blocks)
        for caches, position in self._caches:
            caches.published(self._replica.clock.now_s, position, known)

    def evicted(self, node: Node, kept: int) -> None:
        """Note that only the first `kept` blocks of a node's keys stay in the cache."""
        if not self._caches:
            return
        path = _path_to(node, node.keys)
        blocks = sum(len(segment) for segment in path) - len(node.keys) + kept
        for caches, position in self._caches:
            caches.evicted(self._replica.clock.now_s, position, path, blocks)


def _path_to(node: Node, keys: Segment) -> Path:
    """Keys of all blocks from the beginning to the end of `node`, in segments as long as contents give them."""
    segments: list[Segment] = [keys]
    above = node.parent
    while above is not None and above.length:
        segments.append(above.keys)
        above = above.parent
    joined: list[Segment] = [segments.pop()]
    while segments:
        last, following = joined[-1], segments.pop()
        if type(last) is range and type(following) is range:
            if last.stop == following.start and last.step == following.step:
                joined[-1] = range(last.start, following.stop, last.step)
                continue
        elif type(last) is tuple and type(following) is tuple:
            joined[-1] = (*last, *following)
            continue
        joined.append(following)
    return tuple(joined)


def _first(path: Path, blocks: int) -> Path:
    segments: list[Segment] = []
    for segment in path:
        if blocks <= 0:
            break
        segments.append(segment if len(segment) <= blocks else segment[:blocks])
        blocks -= len(segment)
    return tuple(segments)
