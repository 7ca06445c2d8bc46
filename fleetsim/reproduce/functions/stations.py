"""Queueing stations: engines whose steps all last the same, so that theory is exact."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.random import Generator

from fleetsim.reproduce.functions import makes_trace


@makes_trace
def exponential(rng: Generator, requests: int, rate: float, steps: int) -> pa.Table:
    """Poisson arrivals of requests that need an exponential number of steps, scaled so that their means are exact.

    Without the scaling, means near saturation would mostly tell how much work the seed happened to draw.

    Parameters
    ----------
    rng : Generator
        Where they are drawn.
    requests : int
        How many.
    rate : float
        Arrivals per second.
    steps : int
        Mean steps of a request: one-token prompts with that many output tokens.
    """
    gaps, services = rng.standard_exponential(requests), rng.standard_exponential(requests)
    arrivals = np.cumsum(gaps / gaps.mean()) / rate
    tokens = np.maximum(np.rint(services / services.mean() * steps), 1).astype(np.int64)
    return pa.table({"arrival_s": arrivals, "prompt_tokens": np.ones(requests, np.int64), "output_tokens": tokens})


@makes_trace
def fixed(rng: Generator, requests: int, rate: float, prompt_tokens: int, output_tokens: int) -> pa.Table:
    """Poisson arrivals, scaled so that the mean gap is exact, of requests that are all alike."""
    gaps = rng.standard_exponential(requests)
    lengths = {"prompt_tokens": prompt_tokens, "output_tokens": output_tokens}
    columns = {name: np.full(requests, tokens, np.int64) for name, tokens in lengths.items()}
    return pa.table({"arrival_s": np.cumsum(gaps / gaps.mean()) / rate, **columns})
