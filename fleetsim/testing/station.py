"""Replicas that serve nothing: what they publish follows from what happens at the gateway."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fleetsim.routing.api import RequestView
from fleetsim.routing.prefix_index import PrefixIndex
from fleetsim.routing.telemetry import Board, Caches, Load, Probe
from fleetsim.workload.prefixes import Path
from fleetsim.workload.request import Request

_CAPACITY_TOKENS = 60_000


class Station(Probe):
    """A replica as a router sees it through telemetry; its times are told to it.

    Parameters
    ----------
    speed : float
        Prompt tokens per second, alone.
    block_tokens : int
        Tokens per block of its cache.
    time_s : callable
        The time now [s].
    """

    def __init__(self, speed: float, block_tokens: int, time_s: Callable[[], float]) -> None:
        self.block_tokens = block_tokens
        self.frontend_s = 0.002
        self._speed = speed
        self._time_s = time_s
        self._boards: list[tuple[Board, int]] = []
        self._caches: list[tuple[Caches, int]] = []
        self._index = PrefixIndex(1)
        self._waiting: dict[int, tuple[int, float]] = {}
        self._running: dict[int, int] = {}
        self._tokens = 0
        self._last_prefill_s = 0.0

    # --- what happens -------------------------------------------------------------------------------------------------

    def sent(self, request: Request) -> None:
        """A request comes."""
        self._changing()
        cached = self.held_tokens(RequestView(request).reusable(self.block_tokens))
        tokens = request.prompt_tokens - cached
        self._waiting[request.id] = tokens, self.prefill_s(tokens, cached)

    def started(self, request: Request) -> None:
        """It gets its first token; its prompt is cached from here on."""
        self._changing()
        del self._waiting[request.id]
        self._running[request.id] = request.prompt_tokens
        self._tokens += request.prompt_tokens
        self._last_prefill_s = self._time_s()
        path = RequestView(request).reusable(self.block_tokens)
        if path:
            self._index.insert(path, 0)
            for caches, position in self._caches:
                caches.published(self._time_s(), position, path)

    def ended(self, request: Request) -> None:
        """It is done."""
        self._changing()
        self._tokens -= self._running.pop(request.id)

    def _changing(self) -> None:
        for board, position in self._boards:
            board.changing(position, self._time_s())

    # --- what it is asked ---------------------------------------------------------------------------------------------

    def watch(self, board: Board, position: int) -> None:
        """Tell `board` before it changes."""
        self._boards.append((board, position))

    def show_demand(self, figures: Sequence[str]) -> None:
        """It always does."""

    def show_kv(self) -> None:
        """It always does."""

    def publish(self, caches: Caches, position: int) -> None:
        """Tell `caches` what it holds."""
        self._caches.append((caches, position))

    def load(self, at_s: float) -> Load:
        """Its load."""
        tokens = sum(tokens for tokens, _ in self._waiting.values())
        seconds = sum(seconds for _, seconds in self._waiting.values())
        running = len(self._running)
        wanted = tokens / _CAPACITY_TOKENS
        first = next(iter(self._waiting.values()), (0, 0.0))[0] / _CAPACITY_TOKENS
        return Load(
            len(self._waiting), running, self.kv_used(at_s), tokens, seconds, self._last_prefill_s, wanted, first
        )

    def kv_used(self, at_s: float) -> float:  # noqa: ARG002
        """Part of its cache in use."""
        return min(1.0, self._tokens / _CAPACITY_TOKENS)

    def held_tokens(self, path: Path) -> int:
        """Tokens of a prompt that it holds."""
        return self._index.held(path, 0) * self.block_tokens

    def prefill_terms(self) -> tuple[float, float, float]:
        """Seconds per prompt, per token and per pair of tokens."""
        return 0.001, 1.0 / self._speed, 1e-4 / self._speed

    def prefill_s(self, tokens: float, cached: float) -> float:
        """Seconds that a prompt takes."""
        base_s, token_s, pair_s = self.prefill_terms()
        return base_s + tokens * (token_s + pair_s * (cached + 0.5 * (tokens + 1.0))) if tokens > 0.0 else 0.0

    def tpot_s(self, batch: int) -> float:
        """Seconds of a decode step."""
        return (200.0 + batch) / self._speed

    def decode_terms(self) -> tuple[float, float, float]:
        """Seconds of a decode step per step, per request and per token of context."""
        return 200.0 / self._speed, 1.0 / self._speed, 1e-4 / self._speed
