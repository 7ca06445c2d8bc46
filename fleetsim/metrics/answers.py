"""How good answers were, what they cost, and how far a router is from what it could have been.

A *cost-quality curve* is drawn by sending ever more requests to the strong model, those with the highest predicted gain first. PGR
is the part of the gap between the weak and the strong model that is recovered; APGR its mean over the share of strong calls, 0.5
for a random order (RouteLLM, arXiv:2406.18665); CPT(x) the smallest share that recovers x; AIQ the area under the convex hull of
quality over cost, divided by the range of cost (RouterBench, arXiv:2403.12031).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from fleetsim.metrics.columns import Columns, Floats

if TYPE_CHECKING:
    from fleetsim.fleet.answering import Answering

CALIBRATION_BINS = 10
"""Of predicted chances, for the calibration error."""


def answer_figures(tables: Columns, answering: Answering | None) -> dict[str, float | int | None]:
    """Figures of the answers of a run, by name: none where nobody chooses among models; None where there is nothing to average."""
    if answering is None:
        return {}
    names = ("quality", "list_usd", "expected_quality", "calls")
    quality, usd, expected, calls = (tables.floats("requests", name) for name in names)
    known = ~np.isnan(calls)
    answered = ~np.isnan(quality)
    books = answering.books
    count = books.requests
    per_arm = books.quality / max(count, 1)
    single = int(per_arm.argmax()) if count else 0
    got = float(quality[answered].sum()) / count if count else None
    return {
        "quality_mean": _mean(quality[answered]),
        "quality_per_request": got,
        "quality_best_mean": books.best / count if count else None,
        "quality_single_mean": float(per_arm[single]) if count else None,
        "quality_random_mean": float(per_arm.mean()) if count else None,
        "quality_regret_mean": None if got is None else books.best / count - got,
        "pgr": None if got is None else recovered(got, per_arm[books.weak], per_arm[books.strong]),
        "list_usd": float(usd[known].sum()),
        "list_usd_best": books.best_usd,
        "list_usd_single": float(books.list_usd[single]),
        "calls_mean": _mean(calls[known]),
        "calls_rerouted": answering.rerouted,
        "model_stand_ins": answering.stand_ins,
        "predictor_brier": _mean((expected[answered] - quality[answered]) ** 2),
        "predictor_calibration_error": calibration_error(expected[answered], quality[answered]),
        **curve_figures(*(np.frombuffer(values) for values in books.pairs)),
    }


def recovered(quality: float, weak: float, strong: float) -> float | None:
    """Part of the gap between a weak and a strong model that answers of some mean quality recover; None where there is no gap."""
    return float((quality - weak) / (strong - weak)) if strong > weak else None


def with_arms(groups: Sequence[Mapping[str, Any]], answering: Answering | None) -> Sequence[Mapping[str, Any]]:
    """The groups of a run, and where somebody chooses among models a row for each arm: what it would come to if it answered all."""
    if answering is None or not groups or not answering.books.requests:
        return groups
    books = answering.books
    count = books.requests
    rows = [{**row, "quality_alone_mean": None, "list_usd_alone": None} for row in groups]
    nothing = dict.fromkeys(rows[0])
    for arm in answering.world.arms:
        quality, usd = float(books.quality[arm.number]) / count, float(books.list_usd[arm.number])
        told = {"requests": count, "quality_alone_mean": quality, "list_usd_alone": usd}
        rows.append({**nothing, "by": "arm", "value": arm.name, **told})
    return rows


def curve_figures(
    gain: Floats, weak: Floats, strong: Floats, weak_usd: Floats, strong_usd: Floats
) -> dict[str, float | None]:
    """APGR, CPT(50 %), CPT(80 %) and AIQ of an order of requests by predicted gain; None where the two models are equally good.

    Parameters
    ----------
    gain : array
        Predicted gain of the strong model over the weak one, for each request.
    weak, strong : array
        Quality of their answers.
    weak_usd, strong_usd : array
        Price of these.
    """
    names = ("apgr", "cpt_50_ratio", "cpt_80_ratio", "aiq")
    if len(gain) == 0:
        return dict.fromkeys(names, None)
    share, quality = cost_quality_curve(gain, weak, strong)
    _, usd = cost_quality_curve(gain, weak_usd, strong_usd)
    gap = quality[-1] - quality[0]
    if gap <= 0.0:
        return dict.fromkeys(names, None)
    part = (quality - quality[0]) / gap
    return {
        "apgr": float(((part[1:] + part[:-1]) / 2.0 * np.diff(share)).sum()),
        "cpt_50_ratio": share_that_recovers(share, part, 0.5),
        "cpt_80_ratio": share_that_recovers(share, part, 0.8),
        "aiq": area_under_hull(list(zip(usd.tolist(), quality.tolist(), strict=True))),
    }


def cost_quality_curve(gain: Floats, weak: Floats, strong: Floats) -> tuple[Floats, Floats]:
    """Shares of requests sent to the strong model, 0 to 1, and the mean of a figure at each.

    Requests with the same predicted gain go in any order, so that the curve is straight over them.
    """
    order = np.argsort(-gain, kind="stable")
    more = np.concatenate(([0.0], np.cumsum((strong - weak)[order]))) / len(gain)
    ends = np.flatnonzero(np.concatenate((np.diff(gain[order]) != 0.0, [True]))) + 1
    places = np.concatenate(([0], ends))
    return places / len(gain), weak.mean() + more[places]


def share_that_recovers(share: Floats, recovered: Floats, part: float) -> float | None:
    """The smallest share of strong calls at which so much of the gap is recovered."""
    above = np.flatnonzero(recovered >= part)
    if not len(above):
        return None
    i = int(above[0])
    if i == 0:
        return float(share[0])
    rise = recovered[i] - recovered[i - 1]
    return float(share[i - 1] + (part - recovered[i - 1]) / rise * (share[i] - share[i - 1]))


def area_under_hull(points: Sequence[tuple[float, float]]) -> float | None:
    """Area under the upper convex hull of quality over cost, divided by the range of cost; None where all cost the same."""
    hull = upper_hull(points)
    width = hull[-1][0] - hull[0][0]
    if width <= 0.0:
        return None
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2.0 for a, b in pairwise(hull))
    return area / width


def upper_hull(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points of (cost, quality) that no mixture of others beats, from the cheapest to the dearest."""
    best: dict[float, float] = {}
    for usd, quality in points:
        best[usd] = max(quality, best.get(usd, quality))
    hull: list[tuple[float, float]] = []
    top = -np.inf
    for usd, quality in sorted(best.items()):
        top = max(top, quality)  # nobody has to take the worse of two for more money
        while len(hull) > 1 and _turns_left(hull[-2], hull[-1], (usd, top)):
            hull.pop()
        hull.append((usd, float(top)))
    return hull


def _turns_left(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    return (b[0] - a[0]) * (c[1] - a[1]) >= (b[1] - a[1]) * (c[0] - a[0])


def calibration_error(expected: Floats, quality: Floats) -> float | None:
    """Mean difference between predicted and observed quality over ten bins of the prediction, by requests in them."""
    if not len(expected):
        return None
    bins = np.minimum((expected * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, expected - quality, CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(expected))


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if len(values) else None
