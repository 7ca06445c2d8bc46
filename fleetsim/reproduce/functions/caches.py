"""How much of a trace's prompts caches hold."""

from __future__ import annotations

from fleetsim.reproduce.functions import check
from fleetsim.workload.describe import opened
from fleetsim.workload.prefix_reuse import EndlessCache


@check
def endless_hit_ratio(seed: int, path: str, format: str) -> float:
    """Share of prompt tokens that a cache without limits would hold, requests served one after the other."""
    cache = EndlessCache()
    for row in opened(path, format).rows():
        cache.add(row)
    return cache.cached_tokens / cache.prompt_tokens
