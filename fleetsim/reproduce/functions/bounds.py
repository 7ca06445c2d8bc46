"""Bounds that are arithmetic."""

from __future__ import annotations

from pathlib import Path

from fleetsim.catalog.llm import load_llm
from fleetsim.reproduce.functions import check


@check
def compute_bound(seed: int, llm: str, flop_per_s: float) -> float:
    """Tokens per second and accelerator, prompt and output together, when nothing but arithmetic takes time."""
    return flop_per_s / (2.0 * load_llm(llm, Path()).parameters_active)
