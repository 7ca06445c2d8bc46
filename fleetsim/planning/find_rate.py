"""The highest Poisson rate at which a fleet keeps its SLO, by simulation: the rule of MLPerf's server scenario."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any

from fleetsim.errors import Finding, InputError
from fleetsim.experiment.replicate import Notice
from fleetsim.planning.judge import Confidence, Judgement, judge
from fleetsim.planning.plan import require_slo
from fleetsim.scenario.load import LoadedScenario
from fleetsim.scenario.schema import ClosedLoopArrivals, SyntheticWorkload, TraceWorkload
from fleetsim.units import show

REQUESTS = 2000
"""Requests of a run where the scenario says a duration instead."""
_WIDEST = 1e6
"""Factor on the first rate up to which the search looks, either way."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A rate that was simulated."""

    rate_per_s: float
    judgement: Judgement


@dataclass(frozen=True, slots=True, repr=False)
class Found:
    """The answer: the SLO holds at `rate_per_s` and was not shown to hold at `above_per_s`."""

    rate_per_s: float
    """Highest rate at which the SLO was shown to hold [1/s]."""
    above_per_s: float
    """Lowest rate at which it was not [1/s]."""
    attainment: tuple[float, float, float]
    """At `rate_per_s`: mean and interval."""
    target: float
    confidence: float
    probes: tuple[Probe, ...]
    rule: str

    def __repr__(self) -> str:
        """One line."""
        return f"Found({show(self.rate_per_s, 'requests/s')}, below {show(self.above_per_s)}, {len(self.probes)} rates tried)"


def search(
    loaded: LoadedScenario,
    tolerance: float = 0.02,
    confidence: Confidence | None = None,
    requests: int | Callable[[float], int] | None = None,
    notice: Notice = lambda _: None,
) -> Found:
    """Bisect for the highest rate that keeps the SLO.

    From the scenario's own rate the search doubles or halves until it has a rate that keeps the SLO and one that does not, then
    bisects their ratio. Each rate gets seeds until its attainment's interval is on one side of the target (`judge`); one that is
    still undecided then counts as not shown. Lengths, prefixes and everything else stay; arrivals become Poisson, except that a
    trace keeps its pattern and is replayed faster or slower.

    Parameters
    ----------
    loaded : LoadedScenario
        With an SLO, and a synthetic workload or a trace.
    tolerance : float
        Relative width at which the search ends.
    confidence : Confidence, optional
        How sure each verdict must be.
    requests : int or callable, optional
        Requests of each run, or how many at a rate; default: as the scenario says, or `REQUESTS`.
    notice : callable
        Told about each rate.

    Raises
    ------
    InputError
        If the workload has no rate that could be set, or the SLO holds at no rate or at every one.
    """
    confidence = confidence or Confidence()
    target = require_slo(loaded).attainment
    base, at = _dial(loaded, requests)
    probes: list[Probe] = []

    def holds(rate: float) -> bool:
        probe = Probe(rate, judge(loaded, at(rate), confidence))
        probes.append(probe)
        notice(f"{show(rate, 'requests/s')}: {probe.judgement.verdict}, {probe.judgement.reason}")
        return probe.judgement.met

    low = high = base
    if holds(base):
        while holds(high := high * 2.0):
            low = high
            if high > base * _WIDEST:
                raise InputError(Finding(f"the SLO holds even at {show(high, 'requests/s')}: give more requests"))
    else:
        while not holds(low := low / 2.0):
            high = low
            if low < base / _WIDEST or not probes[-1].judgement.figures:
                break
            if len(probes) > 12:
                best = probes[-1].judgement
                message = f"the SLO does not hold even at {show(low, 'requests/s')}: {best.reason}"
                above = ", ".join(f"{share:.1%} above {name}" for name, share in best.missed_by.items() if share)
                hint = f"at that rate load is not the reason ({above}): relax the limit or take a faster fleet"
                raise InputError(Finding(message, "slo", hint=hint))
    while high / low > 1.0 + tolerance:
        middle = sqrt(low * high)
        if holds(middle):
            low = middle
        else:
            high = middle
    best = next(probe.judgement for probe in probes if probe.rate_per_s == low)
    rule = (
        f"highest rate at which at least {target:.2%} of requests keep all limits with {confidence.level:.0%} confidence"
        f" and the queue does not grow"
    )
    return Found(low, high, best.attainment, target, confidence.level, tuple(probes), rule)


def _dial(
    loaded: LoadedScenario, requests: int | Callable[[float], int] | None
) -> tuple[float, Callable[[float], dict[str, Any]]]:
    """The scenario's own rate, and overrides that set another."""
    workload = loaded.scenario.workload
    if isinstance(workload, TraceWorkload):
        from fleetsim.planning.demand import demand_of

        recorded = demand_of(loaded, 1, 1).mean_rate_per_s
        own = workload.rate_scale
        if workload.rate_scaling == "thin":
            raise InputError(
                loaded.finding(("workload", "rate_scaling"), "a thinned trace cannot go faster", "use time")
            )

        def replayed(rate: float) -> dict[str, Any]:
            more = (
                {}
                if requests is None
                else {"workload.limit": requests if isinstance(requests, int) else requests(rate)}
            )
            return {"workload.rate_scale": own * rate / recorded, **more}

        return recorded, replayed
    if not isinstance(workload, SyntheticWorkload) or isinstance(workload.arrivals, ClosedLoopArrivals):
        message = "this workload has no single rate that could be set"
        raise InputError(
            loaded.finding(("workload",), message, "take a synthetic workload with open arrivals, or a trace")
        )
    own = float(getattr(workload.arrivals, "rate", 0.0) or 1.0)
    fixed = workload.requests or REQUESTS

    def at(rate: float) -> dict[str, Any]:
        count = fixed if requests is None else requests if isinstance(requests, int) else requests(rate)
        changes: dict[str, Any] = {"workload.arrivals": {"process": "poisson", "rate": f"{rate!r} req/s"}}
        changes["workload.requests"] = count
        if workload.duration is not None:
            changes["workload.duration"] = f"{10.0 * count / rate!r} s"
        return changes

    return own, at
