"""How long a prompt takes: a quadratic fitted to a replica's own step times, cheap enough to ask for every request."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fleetsim.engine.api import StepTimeModel

_SIZES = (16, 64, 256, 1024, 2048, 4096, 8192, 16384)
_CACHED = (0, 1024, 8192)


@dataclass(frozen=True, slots=True)
class PrefillTime:
    """Duration of the steps that compute one prompt on an otherwise idle replica.

    ``step_s * steps + token_s * n + pair_s * (n * c + n * (n + 1) / 2)`` for n new tokens after c cached ones.
    """

    step_s: float
    """Once per step [s]."""
    token_s: float
    """Per new token [s]."""
    pair_s: float
    """Per (query, key) pair of causal attention [s]."""
    chunk_tokens: int = 0
    """Most prompt tokens in one step; 0 where prompts are never split."""
    worst_ratio: float = 0.0
    """Largest relative difference from the step-time model over the sizes fitted (16 to 16,384 tokens)."""

    def seconds(self, tokens: int, cached: int = 0) -> float:
        """Time to compute `tokens` prompt tokens after `cached` ones that need not be computed [s]."""
        steps = -(-tokens // self.chunk_tokens) if self.chunk_tokens else 1
        return self.step_s * steps + self.token_s * tokens + self.pair_s * tokens * (cached + 0.5 * (tokens + 1))


def fit(model: StepTimeModel, chunk_tokens: int = 0) -> PrefillTime:
    """The quadratic nearest to a step-time model, by relative error, with no negative term.

    Parameters
    ----------
    model : StepTimeModel
        Physics of a step.
    chunk_tokens : int
        Most prompt tokens in one step; 0 where prompts are never split. ≥ 0.
    """
    sizes = [n for n in _SIZES if not chunk_tokens or n <= chunk_tokens] or [chunk_tokens]
    cases = [(n, c) for n in sizes for c in _CACHED]
    rows = np.array([(1.0, n, n * c + n * (n + 1) / 2) for n, c in cases])
    times = np.array([model.mixed(n, 1, n * c + n * (n + 1) // 2, c + n, 1, 0, 0, n)[0] for n, c in cases])
    scale = (rows / times[:, None]).max(axis=0)
    from scipy.optimize import nnls  # half a second that runs without such an order or router need not pay

    solution, _ = nnls(rows / times[:, None] / scale, np.ones(len(cases)))
    step_s, token_s, pair_s = (solution / scale).tolist()
    worst = float(np.abs(rows @ (solution / scale) / times - 1.0).max())
    return PrefillTime(step_s, token_s, pair_s, chunk_tokens, worst)
