"""Prompts of several kinds on replicas that compute prompts only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.random import Generator

from fleetsim.experiment.run import Result
from fleetsim.reproduce.functions import figure_of_run, makes_trace


@makes_trace
def kinds(rng: Generator, requests: int, rate: float, longest: int, kinds: Mapping[str, Sequence[float]]) -> pa.Table:
    """Poisson arrivals of prompts of several kinds, one output token each.

    Parameters
    ----------
    rng : Generator
        Where they are drawn.
    requests : int
        How many.
    rate : float
        Arrivals per second.
    longest : int
        Longest prompt [tokens].
    kinds : mapping
        By class: share, median of the lognormal length [tokens], and standard deviation of its logarithm.
    """
    names = sorted(kinds)
    shares = np.array([kinds[name][0] for name in names])
    drawn = rng.choice(len(names), requests, p=shares / shares.sum())
    medians, sigmas = (np.array([kinds[name][place] for name in names])[drawn] for place in (1, 2))
    lengths = medians * np.exp(sigmas * rng.standard_normal(requests))
    return pa.table(
        {
            "arrival_s": np.cumsum(rng.standard_exponential(requests)) / rate,
            "prompt_tokens": np.clip(np.rint(lengths), 1, longest).astype(np.int64),
            "output_tokens": np.ones(requests, np.int64),
            "category": [names[i] for i in drawn.tolist()],
        }
    )


@figure_of_run
def interruption_wait_s(result: Result) -> float:
    """Mean time from a request for which a step was stopped to the end of the operator under way [s]."""
    counts = {"interruptions": 0, "interruption_wait_us": 0}
    for row in result.table("events").to_pylist():
        if row["kind"] in counts:
            counts[row["kind"]] += row["count"]
    return counts["interruption_wait_us"] / 1e6 / max(counts["interruptions"], 1)
