"""What each figure of a summary means, by its name: the catalogue of metrics, and how names of statistics are made."""

from __future__ import annotations

import re
from functools import cache

from fleetsim.metrics.definitions import METRICS, Metric

_OF_THE_RUN = {
    "run": "Begin of the digest of the scenario, seed included",
    "name": "Name of the scenario",
    "seed": "Seed of its random numbers",
    "verdict": "STABLE, BACKLOGGED or OVERLOADED; MEASURED if it was not simulated",
}
_COUNTED = {
    "requests": "Requests that arrived",
    "finished": "Of them, those that finished",
    "rejected": "Of them, those that the gateway refused",
    "timed_out": "Of them, those whose client did not wait",
    "failed": "Of them, those that a failure ended",
    "unfinished": "Of them, those still in flight at the end",
    "skipped_rows": "Bad rows of a trace that were left out",
    "measured_requests": "Requests that count for latencies: the warm-up is left out",
    "prompt_tokens": "Tokens of all prompts",
    "prompt_tokens_mean": "Mean prompt length",
    "output_tokens": "Tokens produced",
    "output_tokens_mean": "Mean number of tokens produced per request",
    "cached_tokens": "Prompt tokens found in the prefix cache",
    "steps": "Steps of all replicas",
    "simulated_s": "Time simulated",
    "accelerators": "Accelerators of the fleet as it was declared",
    "kv_used_max_ratio": "Largest KV use of a replica at the end of an interval",
    "by": "What is grouped by: pool, class, tenant, model, site, origin or arm (a model at a reasoning budget)",
    "value": "Which of these",
    "cost_requests_per_million_slo_tokens_usd": "cost_requests_usd / slo_output_tokens x 1e6",
    "carbon_requests_per_million_slo_tokens_g": "carbon_requests_g / slo_output_tokens x 1e6",
}
_UNITS = {
    "s": "s",
    "j": "J",
    "g": "g",
    "w": "W",
    "c": "C",
    "usd": "USD",
    "bytes": "B",
    "tokens": "tokens",
    "hours": "h",
    "ratio": "",
}
"""Unit by the last word of a name."""
_STATISTICS = {
    "mean": "mean",
    "mean_ci_low": "low end of the 95 % confidence interval of the mean",
    "mean_ci_high": "high end of the 95 % confidence interval of the mean",
    "p50": "median",
    "p90": "90th percentile",
    "p95": "95th percentile",
    "p99": "99th percentile",
}
_STATISTIC = re.compile(rf"(.+)_({'|'.join(sorted(_STATISTICS, key=len, reverse=True))})_([a-z]+)")
_INTERVAL = re.compile(r"(.+)_ci_(low|high)_([a-z]+)")


@cache
def _metrics() -> dict[str, Metric]:
    return {metric.name: metric for metric in METRICS}


def meaning(name: str, whole: bool = False) -> tuple[str, str]:
    """Unit and description of a figure; an empty description of one that is not known.

    Parameters
    ----------
    name : str
        Column of the tables ``summary`` and ``groups``.
    whole : bool
        Whether it is a whole number; those count something unless their name says otherwise.
    """
    if name in _OF_THE_RUN:
        return "", _OF_THE_RUN[name]
    if name in _metrics():
        return _metrics()[name].unit, _metrics()[name].formula
    if name in _COUNTED:
        return ("count" if whole and not unit_of(name) else unit_of(name)), _COUNTED[name]
    return _statistic(name) or (unit_of(name), "")


def _statistic(name: str) -> tuple[str, str] | None:
    """A percentile, a mean or an end of a confidence interval, by the metric that it is of."""
    if found := _STATISTIC.fullmatch(name):
        metric = _metrics().get(f"{found[1]}_{found[3]}")
        if metric is not None:
            return metric.unit, f"{_STATISTICS[found[2]]} of {metric.formula}"
    if found := _INTERVAL.fullmatch(name):
        return unit_of(name), f"{found[2]} end of the 95 % confidence interval of {found[1]}_{found[3]}"
    return None


def unit_of(name: str) -> str:
    """Unit that a name ends with."""
    if found := re.search(r"_per_(s|h)(_per_\w+)?$", name):
        return f"1/{found[1]}"
    return _UNITS.get(name.removesuffix("_mean").rpartition("_")[2], "")
