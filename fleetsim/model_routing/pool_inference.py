"""What a gateway can infer of a pool that says nothing: its queue, and how fast it computes prompts."""

from __future__ import annotations

from collections import deque

_SETTLED = 50
"""Prompts after which a rate is a baseline."""


class PoolInference:
    """A queue by counting, and the rate of prompts by a regression of the time to the first token on their length.

    Parameters
    ----------
    forget : float
        Weight of an observation after another one.
    window : int
        Observations that count: the last ones.
    slow : float
        Share of the baseline below which a pool counts as slow.
    """

    def __init__(self, forget: float = 0.99, window: int = 100, slow: float = 0.7) -> None:
        self._forget, self._window, self._slow = forget, window, slow
        self._oldest = forget**window
        self._last: deque[tuple[float, float]] = deque()
        self.sent = 0
        self.done = 0
        self.service_s = 0.0
        """Running mean of the time from asking to the end of an answer [s]."""
        self._served = 0
        self._sums = [0.0] * 5
        """Discounted sums of 1, x, y, x², xy; x are prompt tokens, y times to the first token."""
        self.seen = 0
        self.baseline = 0.0
        """Rate of the first prompts [tokens/s]; 0 before there are enough."""

    @property
    def queue(self) -> int:
        """Requests that were sent and have not come back."""
        return self.sent - self.done

    @property
    def rate(self) -> float:
        """Prompt tokens per second; infinite while times do not rise with lengths."""
        n, x, y, xx, xy = self._sums
        spread = n * xx - x * x
        slope = (n * xy - x * y) / spread if spread > 1e-9 * max(n * xx, 1.0) else 0.0
        return float(1.0 / slope) if slope > 0.0 else float("inf")

    @property
    def slow(self) -> bool:
        """Whether prompts are computed much slower than at the beginning."""
        return self.baseline > 0.0 and self.rate < self._slow * self.baseline

    def prefill_s(self, prompt_tokens: int) -> float:
        """Expected time to the first token [s]; 0 before anything is known."""
        n, x, y, _, _ = self._sums
        if n == 0.0:
            return 0.0
        slope = 1.0 / self.rate
        return float(max((y - slope * x) / n + slope * prompt_tokens, 0.0))

    def started(self, prompt_tokens: int, ttft_s: float) -> None:
        """A first token came."""
        x, y = float(prompt_tokens), ttft_s
        self._add((1.0, x, y, x * x, x * y), self._forget, 1.0)
        self._last.append((x, y))
        if len(self._last) > self._window:
            x, y = self._last.popleft()
            self._add((1.0, x, y, x * x, x * y), 1.0, -self._oldest)
        self.seen += 1
        if self.seen == _SETTLED:
            rate = self.rate
            self.baseline = rate if rate < float("inf") else 0.0

    def _add(self, terms: tuple[float, ...], kept: float, weight: float) -> None:
        self._sums = [kept * old + weight * term for old, term in zip(self._sums, terms, strict=True)]

    def served(self, latency_s: float) -> None:
        """An answer came."""
        self._served += 1
        weight = max(1.0 / self._served, 1.0 / self._window)
        self.service_s += weight * (latency_s - self.service_s)
