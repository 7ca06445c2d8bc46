"""Requests whose prompts and answers have lengths of a truncated power law."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.random import Generator

from fleetsim.reproduce.functions import makes_trace

_SHORTEST, _LONGEST = 1.0, 6144.0


@makes_trace
def requests(rng: Generator, count: int, prompt_mean: float, output_mean: float, cv: float = 1.0) -> pa.Table:
    """Requests at one per second on average, so that a workload's `rate_scale` is its rate; at most 6,144 tokens each way.

    Times between them follow a gamma distribution with coefficient of variation `cv` (1: Poisson).
    """
    shape = 1.0 / cv**2
    arrival_s = np.cumsum(rng.gamma(shape, 1.0 / shape, count))
    return pa.table(
        {
            "arrival_s": arrival_s - arrival_s[0],
            "prompt_tokens": lengths(rng, prompt_mean, count),
            "output_tokens": lengths(rng, output_mean, count),
        }
    )


def lengths(rng: Generator, mean: float, count: int) -> Any:
    """Whole numbers with density x^-a between 1 and 6,144, `a` such that their mean is `mean`."""
    low, high = 0.0, 3.0
    while high - low > 1e-9:
        middle = 0.5 * (low + high)
        if _mean(middle) > mean:
            low = middle
        else:
            high = middle
    share = rng.random(count)
    power = 1.0 - low
    found = (_SHORTEST**power + share * (_LONGEST**power - _SHORTEST**power)) ** (1.0 / power)
    return np.maximum(np.rint(found), 1).astype(np.int64)


def _mean(exponent: float) -> float:
    return _integral(exponent - 1.0) / _integral(exponent)


def _integral(exponent: float) -> float:
    """Of x^-exponent between the shortest and the longest."""
    power = 1.0 - exponent
    if abs(power) < 1e-7:
        return float(np.log(_LONGEST / _SHORTEST))
    return float((_LONGEST**power - _SHORTEST**power) / power)
