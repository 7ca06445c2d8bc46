"""One word for a run, by a rule that is told with it: whether the fleet keeps up."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fleetsim.metrics.statistics import rising

Floats = np.ndarray[Any, np.dtype[np.float64]]

STABLE, BACKLOGGED, OVERLOADED = "STABLE", "BACKLOGGED", "OVERLOADED"

POINTS = 20
"""Instants, equally spaced over the time of arrivals, at which the waiting requests are counted."""
SIGNIFICANCE = 0.01
"""Level of the trend test."""
FELT_RATIO = 0.1
"""A wait below this share of the mean time in service is not felt."""
PATIENCE = 10.0
"""Times in service after which requests that pile up are no longer a fleet that fills."""
CHANCE = 3.0
"""Standard deviations by which two counts of the requests in a system that is sound may differ."""
MATERIAL_RATIO = 0.02
"""A queue below this share of all arrivals is never called a problem of capacity."""


class Verdict(NamedTuple):
    """The word and the rule that gave it, with the numbers put in."""

    word: str
    reason: str


def verdict(arrival_s: Floats, start_s: Floats, end_s: Floats, rejected: int) -> Verdict:
    """Whether the fleet keeps up with the arrivals.

    Parameters
    ----------
    arrival_s : float array, shape (n,)
        Arrivals of the requests that were served or wait, ascending.
    start_s : float array, shape (n,)
        When each was first scheduled; NaN if never.
    end_s : float array, shape (n,)
        When each ended; NaN if it has not.
    rejected : int
        Requests turned away.

    Notes
    -----
    Let Q be the requests that wait for their first step, at 20 instants over the time in which requests arrive.

    - OVERLOADED: Q rises over the second half of the instants or over all of them (Mann-Kendall, p < 0.01), ends above 2 % of
      all arrivals, and the last quarter of the requests waits longer than 10 % of the mean time in service (below that it is the
      wait for a step to end, and a run of a moment would look like growth); or more than 2 % of all arrivals were turned away;
      or, where arrivals go on for ten times the mean time in service, the requests in the system rise over the second half
      (p < 0.01, and by more than three standard deviations of the difference between two Poisson numbers of their mean, as
      instants closer than a time in service are alike) while fewer than 95 % as many end as arrive (a batch with ample seats
      has no queue, it slows down).
    - BACKLOGGED: not overloaded, but waits are that long and Q is above 2 % of all arrivals at the end, or the median request waits
      longer than 1 % of the whole time of arrivals; or requests wait longer than they are served, in the mean.
    - STABLE: everything else.
    """
    total = len(arrival_s) + rejected
    if not len(arrival_s):
        return Verdict(OVERLOADED, "every request was rejected") if rejected else Verdict(STABLE, "no requests")
    begin, end = float(arrival_s[0]), float(arrival_s[-1])
    instants = np.linspace(begin, end, POINTS + 1)[1:]
    arrived = np.searchsorted(arrival_s, instants, side="right")
    started = _happened(start_s, instants)
    queue = (arrived - started).astype(np.float64)
    material = MATERIAL_RATIO * total
    p_value = min(rising(queue), rising(queue[POINTS // 2 :]))
    last = queue[-3:].mean()
    figures = f"{last:.0f} of {total} requests wait at the end of the arrivals, trend p = {p_value:.2g}"
    if rejected > material:
        return Verdict(OVERLOADED, f"{rejected} of {total} requests were rejected")
    service = end_s - start_s
    missing = np.isnan(service)
    service[missing] = 0.0
    ended = len(service) - int(missing.sum())
    service_s = float(service.sum()) / ended if ended else float("inf")
    del service, missing  # columns of long runs are large
    if reason := _piling_up(instants, arrived, end_s, service_s, end - begin):
        return Verdict(OVERLOADED, reason)
    seen_s = max(float(np.fmax.reduce(values)) for values in (arrival_s, start_s, end_s) if len(values))
    waits = start_s - arrival_s
    never = np.isnan(waits)  # these have waited until the end at least
    waits[never] = seen_s - arrival_s[never]
    felt = not service_s < float("inf") or float(waits[-max(len(waits) // 4, 1) :].mean()) > FELT_RATIO * service_s
    if p_value < SIGNIFICANCE and last > max(material, 1.0) and felt:
        return Verdict(OVERLOADED, f"the queue grows: {figures}")
    mean = float(waits.mean())
    median = float(np.median(waits, overwrite_input=True))
    if mean > service_s or (felt and (last > max(material, 1.0) or (end > begin and median > 0.01 * (end - begin)))):
        return Verdict(
            BACKLOGGED,
            f"a queue stands without growing: {figures}, median wait {median:.3g} s, mean {mean:.3g} s",
        )
    return Verdict(STABLE, f"the queue does not grow: {figures}")


def _happened(times_s: Floats, instants: Floats) -> np.ndarray[Any, Any]:
    """How many of some times in any order, NaN for never, are not after each instant: without a sorted copy of them."""
    return np.array([np.count_nonzero(times_s <= instant) for instant in instants])


def _piling_up(instants: Floats, arrived: np.ndarray[Any, Any], end_s: Floats, service_s: float, span_s: float) -> str:
    """Why the requests in the system grow without end; empty if they do not."""
    if span_s < PATIENCE * service_s:
        return ""
    ended = _happened(end_s, instants)
    half = POINTS // 2
    inside = (arrived - ended).astype(np.float64)[half:]
    came, went = arrived[-1] - arrived[half], ended[-1] - ended[half]
    by_chance = CHANCE * (2.0 * inside.mean()) ** 0.5
    if went >= 0.95 * came or came - went <= by_chance or rising(inside) >= SIGNIFICANCE:
        return ""
    return f"requests pile up in the batches: {came} came and {went} ended in the second half of the arrivals"
