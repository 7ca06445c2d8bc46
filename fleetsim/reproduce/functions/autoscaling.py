"""Autoscalers: what they want over a course of load, days with noise, and how often replicas start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.random import Generator

from fleetsim.plugins import load
from fleetsim.reproduce.functions import check, figure_of_run, makes_trace
from fleetsim.scaling.api import PoolState

if TYPE_CHECKING:
    from fleetsim.experiment.run import Result


def _prefill_s(tokens: float) -> float:
    return 1e-4 * tokens


def _step_s(batch: float, tokens: float) -> float:
    return 0.01 + 1e-4 * batch + 1e-7 * tokens


@check
def wanted(
    seed: int,
    policy: str,
    replicas: int,
    course: Sequence[Sequence[float]],
    parameters: Mapping[str, Any] | None = None,
    least: int = 0,
) -> float:
    """Replicas that an autoscaler wants after a course of load; what it wants is ready at its next look.

    Parameters
    ----------
    seed : int
        Of its random stream.
    policy : str
        Name of the autoscaler.
    replicas : int
        Ready at the beginning.
    course : sequence of (seconds, requests)
        For how long so many requests are in the pool.
    parameters : mapping, optional
        Of the autoscaler.
    least : int
        Fewest replicas of the pool.
    """
    pool = PoolState("main", "mixed", least, 10_000, 1, 100, 100_000, 10.0, _prefill_s, _step_s)
    pool.wanted = pool.ready = replicas
    kind = load("autoscalers", policy)
    scaler = kind(kind.Config.model_validate(dict(parameters or {})), np.random.default_rng(seed), pool)
    end_s = 0.0
    for seconds, requests in course:
        end_s += seconds
        while pool.now_s + scaler.period_s <= end_s + 1e-9:
            pool.now_s += scaler.period_s
            pool.elapsed_s = scaler.period_s
            pool.ready = pool.wanted
            pool.running = int(requests)
            pool.wanted = pool.clip(scaler.tick())
    return float(pool.wanted)


@makes_trace
def days(
    rng: Generator,
    days: int,
    day_s: float,
    rate: float,
    amplitude: float,
    noise_cv: float,
    prompt_tokens: float,
    output_tokens: float,
) -> pa.Table:
    """Poisson arrivals whose rate goes up and down like a sine, times a lognormal factor of mean 1 for every minute.

    Parameters
    ----------
    rng : Generator
        Where they are drawn.
    days : int
        How many cycles.
    day_s : float
        Length of one [s].
    rate : float
        Mean arrivals per second.
    amplitude : float
        Relative swing.
    noise_cv : float
        Coefficient of variation of the factor.
    prompt_tokens, output_tokens : float
        Mean lengths, lognormal with a coefficient of variation of 1.
    """
    starts = np.arange(0.0, days * day_s, 60.0)
    sigma = np.sqrt(np.log1p(noise_cv**2))
    factor = rng.lognormal(-0.5 * sigma**2, sigma, len(starts))
    rates = rate * (1.0 + amplitude * np.sin(2.0 * np.pi * starts / day_s)) * factor
    counts = rng.poisson(60.0 * rates)
    arrivals = np.sort(np.repeat(starts, counts) + 60.0 * rng.random(int(counts.sum())))
    one = np.sqrt(np.log(2.0))
    tokens = [
        np.clip(rng.lognormal(np.log(mean) - 0.5 * one**2, one, len(arrivals)), 2, 8 * mean).astype(np.int64)
        for mean in (prompt_tokens, output_tokens)
    ]
    return pa.table({"arrival_s": arrivals, "prompt_tokens": tokens[0], "output_tokens": tokens[1]})


@figure_of_run
def starts(result: Result) -> float:
    """Replicas that began to start in a run."""
    return float(result.table("events")["kind"].to_pylist().count("replica_starting"))
