"""How evenly two tenants were served."""

from __future__ import annotations

from typing import Any

import numpy as np

from fleetsim.experiment.run import Result
from fleetsim.reproduce.functions import figure_of_run

Floats = np.ndarray[Any, np.dtype[np.float64]]


@figure_of_run
def share(result: Result, of: str, other: str, output_weight: float = 2.0) -> float:
    """Share of the service of two tenants that one of them got, up to the end of the run."""
    mine, others = (service(result, tenant, output_weight)[-1] for tenant in (of, other))
    return float(mine / (mine + others))


@figure_of_run
def gap(result: Result, of: str, other: str, output_weight: float = 2.0) -> float:
    """Largest difference of two tenants' service at any second [weighted tokens]."""
    mine, others = (service(result, tenant, output_weight) for tenant in (of, other))
    return float(np.abs(mine - others).max())


@figure_of_run
def gap_growth(result: Result, of: str, other: str, output_weight: float = 2.0, after_s: int = 60) -> float:
    """How fast one tenant's service runs ahead of another's after the first minute [weighted tokens per s]."""
    mine, others = (service(result, tenant, output_weight)[after_s:] for tenant in (of, other))
    return float(np.polyfit(np.arange(len(mine)), mine - others, 1)[0])


def service(result: Result, tenant: str, output_weight: float) -> Floats:
    """Weighted tokens that a tenant had been given at the end of each second of the run.

    The prompt counts with the first token, the other tokens evenly from there to the last. What a request that was still under way
    at the end got is not in the tables: it counts with its prompt and one token.
    """
    table = result.requests()
    mine = np.asarray(table["tenant"].cast("string").to_pylist()) == tenant
    first, last, prompts, outputs = (
        np.asarray(table[name].cast("double").fill_null(np.nan).to_numpy(), dtype=np.float64)[mine]
        for name in ("first_token_s", "end_s", "prompt_tokens", "output_tokens")
    )
    begun = np.isfinite(first)
    first, last, prompts, outputs = first[begun], last[begun], prompts[begun], outputs[begun]
    span_s = np.maximum(last - first, 1e-9)
    seconds = np.arange(0.0, float(result.summary["simulated_s"]), 1.0)
    served = np.empty(len(seconds))
    for place, time_s in enumerate(seconds):
        share = np.where(np.isfinite(last), np.clip((time_s - first) / span_s, 0.0, 1.0), 0.0)
        served[place] = np.sum(
            np.where(first <= time_s, prompts + output_weight * (1.0 + share * (outputs - 1.0)), 0.0)
        )
    return served
