"""Which requests kept their service-level objective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fleetsim.scenario.schema import Slo, SloLimits

Floats = np.ndarray[Any, np.dtype[np.float64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]


def slo_met(
    slo: Slo, classes: Sequence[str | None], finished: Bools, ttft_s: Floats, tpot_s: Floats, e2el_s: Floats
) -> Bools:
    """Whether each request finished and kept every limit of its class.

    A request with one output token has no `tpot_s` (NaN) and keeps that limit, as in vLLM's benchmark. Requests that did not finish
    miss the objective.
    """
    met = finished & _within(slo, ttft_s, tpot_s, e2el_s)
    for name, limits in slo.classes.items():
        members = np.array([c == name for c in classes])
        met = np.where(members, finished & _within(limits, ttft_s, tpot_s, e2el_s), met)
    return met


def _within(limits: SloLimits, ttft_s: Floats, tpot_s: Floats, e2el_s: Floats) -> Bools:
    kept = np.ones(len(ttft_s), dtype=bool)
    with np.errstate(invalid="ignore"):
        if limits.ttft is not None:
            kept &= ttft_s <= limits.ttft
        if limits.tpot is not None:
            kept &= ~(tpot_s > limits.tpot)
        if limits.e2el is not None:
            kept &= e2el_s <= limits.e2el
    return kept
