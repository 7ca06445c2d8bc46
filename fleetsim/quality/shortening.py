"""Training that makes answers shorter, as a factor on their length."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

Shortening = Literal["hbpo", "drqa"]

HBPO_EASY, HBPO_HARD, HBPO_MEAN = 0.25, 0.8, 0.394
"""Ratio of lengths for the easiest and the hardest requests (assumption), and the published mean: 60.6 % fewer tokens
(arXiv:2507.15844)."""
_HBPO_POWER = (HBPO_HARD - HBPO_EASY) / (HBPO_MEAN - HBPO_EASY) - 1.0
DRQA = 0.675
"""Ratio of lengths: more than 30 % fewer tokens at equal accuracy (arXiv:2508.17803); 0.65 to 0.7 (assumption)."""


def ratio(shortening: Shortening | None, rank: Any) -> Any:
    """Length of an answer over that of a model without the training, by where its request stands among all.

    Parameters
    ----------
    shortening : str or None
        The training.
    rank : float or array
        Share of the requests of its domain that are easier: uniform, so that ``0.25 + 0.55 rank^k`` has the mean
        ``0.25 + 0.55 / (k + 1)``.
    """
    if shortening == "hbpo":
        return HBPO_EASY + (HBPO_HARD - HBPO_EASY) * np.asarray(rank) ** _HBPO_POWER
    return np.full_like(np.asarray(rank, dtype=np.float64), 1.0 if shortening is None else DRQA)


def mean_ratio(shortening: Shortening | None) -> float:
    """The same over all requests."""
    return {None: 1.0, "hbpo": HBPO_MEAN, "drqa": DRQA}[shortening]
