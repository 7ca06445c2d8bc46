"""The simulator as judge: whether a scenario keeps its SLO, with a stated confidence."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from fleetsim.experiment.run import Result, run
from fleetsim.metrics.statistics import batch_means_interval, mean_interval
from fleetsim.planning.plan import require_slo
from fleetsim.scenario.load import LoadedScenario
from fleetsim.scenario.merge import Overrides
from fleetsim.scenario.schema import MixWorkload, TraceWorkload

FIGURES = ("cost_usd_per_h", "power_w", "ttft_p99_s", "tpot_p99_s", "energy_per_output_token_j", "makespan_s")
SITE_FIGURES = ("site_energy_j", "carbon_g")
"""Sums over a run; 0 where the scenario says nothing of them."""


@dataclass(frozen=True, slots=True)
class Confidence:
    """How sure a verdict must be."""

    level: float = 0.95
    """Of the confidence interval of the attainment."""
    min_seeds: int = 3
    """Runs before a verdict, …"""
    max_seeds: int = 8
    """… and at most: more are made where the interval still straddles the target."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What simulations said about a scenario's SLO."""

    verdict: Literal["met", "missed", "undecided"]
    """``undecided`` where the interval still straddles the target after all seeds."""
    attainment: tuple[float, float, float]
    """Mean share of requests within the SLO, and the ends of its interval."""
    target: float
    seeds: int
    figures: dict[str, float]
    """Means over the runs."""
    missed_by: dict[str, float]
    """Share of the first run's requests that were above each limit."""
    reason: str

    @property
    def met(self) -> bool:
        """Whether the SLO holds with the confidence asked for."""
        return self.verdict == "met"


def judge(
    loaded: LoadedScenario,
    overrides: Overrides = (),
    confidence: Confidence | None = None,
    allow_import: bool = False,
    force: bool = False,
) -> Judgement:
    """Simulate a scenario with more and more seeds until its attainment is on one side of the target.

    Seeds give independent runs, and Student's interval of their mean is looked at after each from the third on; its level is raised
    by the number of looks (Bonferroni), so that looking often does not make it optimistic. A replayed trace is the same in every
    run: then one run is cut into 20 batches in order of arrival. Where all runs are overloaded the SLO counts as missed whatever
    its attainment: with a longer workload it would be. Where only most are, and the attainment is above the target with
    confidence, they are taken to be short runs that look so.

    Parameters
    ----------
    loaded : LoadedScenario
        With an SLO.
    overrides
        Laid over it.
    confidence : Confidence, optional
        How sure the verdict must be.
    allow_import : bool
        Let the scenario name policies as ``module:Class``.
    force : bool
        Simulate what its checks refuse too, such as limits that no replica can keep.
    """
    confidence = confidence or Confidence()
    target = require_slo(loaded).attainment
    fixed = _same_every_time(loaded)
    looks = confidence.max_seeds - confidence.min_seeds + 1
    level = 1.0 - (1.0 - confidence.level) / looks
    shares: list[float] = []
    rows: list[dict[str, float]] = []
    overloaded = 0
    missed: dict[str, float] = {}
    interval = (0.0, 0.0, 1.0)
    seed = loaded.scenario.seed
    while True:
        with tempfile.TemporaryDirectory(prefix="fleetsim-judge-") as folder:
            changes = {**_as_mapping(overrides), "seed": seed + len(shares)}
            result = run(loaded, Path(folder) / "out", overrides=changes, allow_import=allow_import, force=force)
            rows.append(_figures(result))
            overloaded += result.verdict == "OVERLOADED"
            shares.append(float(result.summary["slo_attainment_ratio"] or 0.0))
            missed = missed or _missed(result, loaded)
            if fixed:
                interval = (shares[0], *_within_run(result, confidence.level))
        # one short run may look as if its queue grew
        sure = fixed or shares[-1] < target or len(shares) >= confidence.min_seeds
        if 2 * overloaded > len(shares) and sure and (fixed or overloaded == len(shares)):
            figures = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
            mean = float(np.mean(shares))
            span = interval if fixed else (mean, min(shares), max(shares))
            return Judgement("missed", span, target, len(shares), figures, missed, "overloaded: the queue grows")
        if not fixed and len(shares) >= confidence.min_seeds:
            mean, low, high = mean_interval(shares, level)
            interval = (mean, max(low, 0.0), min(high, 1.0))
        decided = fixed or (len(shares) >= confidence.min_seeds and not interval[1] < target <= interval[2])
        if decided or len(shares) >= confidence.max_seeds:
            break
    figures = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    mean, low, high = interval
    if overloaded == len(shares) or (2 * overloaded > len(shares) and low < target):
        return Judgement("missed", interval, target, len(shares), figures, missed, "overloaded: the queue grows")
    told = f"{mean:.2%} [{low:.2%}, {high:.2%}] of requests within the SLO, {target:.2%} wanted"
    if low >= target:
        return Judgement("met", interval, target, len(shares), figures, missed, told)
    word: Literal["missed", "undecided"] = "missed" if high < target else "undecided"
    return Judgement(word, interval, target, len(shares), figures, missed, told)


def _as_mapping(overrides: Overrides) -> dict[str, object]:
    if isinstance(overrides, str):
        overrides = (overrides,)
    if isinstance(overrides, Sequence):
        return dict(text.partition("=")[::2] for text in overrides)
    return dict(overrides)


def _same_every_time(loaded: LoadedScenario) -> bool:
    workload = loaded.scenario.workload
    parts = workload.parts.values() if isinstance(workload, MixWorkload) else [workload]
    return all(isinstance(part, TraceWorkload) and part.rate_scaling == "time" for part in parts)


def _within_run(result: Result, level: float) -> tuple[float, float]:
    met = result.requests().sort_by("request_id")["slo_met"].fill_null(False).to_numpy().astype(np.float64)
    low, high = batch_means_interval(met, level)
    return (0.0, 1.0) if np.isnan(low) else (max(low, 0.0), min(high, 1.0))


def _figures(result: Result) -> dict[str, float]:
    summary = result.summary
    hours = max(float(summary["makespan_s"]), 1e-9) / 3600.0
    values = {
        "cost_usd_per_h": float(summary["cost_usd"]) / hours,
        "power_w": float(summary["power_mean_w"]),
    }
    for name in (*FIGURES[2:], *SITE_FIGURES):
        values[name] = float(summary.get(name) or 0.0)
    return values


def _missed(result: Result, loaded: LoadedScenario) -> dict[str, float]:
    """Share of requests above each limit; those without a value count as above."""
    slo = require_slo(loaded)
    table = result.requests()
    shares = {}
    for name, limit in (("ttft", slo.ttft), ("tpot", slo.tpot), ("e2el", slo.e2el)):
        if limit is not None:
            values = table[f"{name}_s"].to_numpy().astype(np.float64)
            above = ~(values <= limit)
            if name == "tpot":
                above &= table["output_tokens"].to_numpy() > 1
            shares[name] = float(above.mean())
    return shares
