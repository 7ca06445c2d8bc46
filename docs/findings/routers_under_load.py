"""The page docs/findings/routers-under-load.md and its picture.

    python docs/findings/routers_under_load.py

runs scenarios/models/under-load.yaml under each router at each load and with each complication (some 450 runs, a few minutes
on one core) and writes both. Routers and their parameters were fixed before the first run. After a first, unfinished one a router
was left out for time, and late feedback was made ten seconds instead of sixty, of which a bandit hears nothing in a run of this
length. Load 0.2 and the last two seeds came later.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau, t

import fleetsim

HERE = Path(__file__).parent
SCENARIOS = HERE.parents[1] / "scenarios" / "models"
CAPACITY = 41.0
"""Requests per second that the four replicas serve together when each always has work (12.9, 14.8 and 13.4 by model)."""
LOADS = (0.01, 0.2, 0.5, 0.8, 0.95)
"""The first one stands for the published experiments: one request at a time."""
SEEDS = (1, 2, 3, 4, 5)
GRACE_S, PER_TOKEN_S = 2.0, 0.08
"""An answer is in time within two seconds and 80 ms for each of its tokens."""
THRIFT = 0.25
"""Quality that the price of the best single model is worth."""
ROUTERS: Mapping[str, Mapping[str, Any]] = {
    "best single": {"policy": "single"},
    "random": {"policy": "random"},
    "threshold": {"policy": "threshold"},
    "frugal-gpt": {"policy": "frugal-gpt"},
    "pool-aware": {"policy": "pool-aware-cascade", "limit": 5.0},
    "radar": {"policy": "radar", "weight": 0.8},
    "avengers-pro": {"policy": "avengers-pro"},
    "linucb": {"policy": "linucb", "weight": 0.3, "cost": "price"},
    "route-balance": {"policy": "route-balance"},
    "oracle": {"policy": "oracle"},
}
"""With the parameters of their cards; nothing is tuned to this fleet."""
BEYOND: Mapping[str, Mapping[str, Any]] = {
    "queues and batches": {},
    "feedback ten seconds late, of one answer in ten": {"quality.feedback": {"delay": "10 s", "share": 0.1}},
    "loads seen five seconds late": {
        "gateway.view": {"freshness": "delayed", "delay": "5 s", "own_counts": False},
    },
    "a predictor that sees less (AUC 0.65)": {"quality.features": {"auc": 0.65}},
    "four L40S that load models when they are needed": {"scenario": "shared-replicas.yaml"},
}
"""At load 0.8, each by itself on top of queues and batches."""
COLOURS = (
    "#222222",
    "#c8641b",
    "#2c6fbb",
    "#8a3b8f",
    "#c05a9c",
    "#0b6e4f",
    "#6aa84f",
    "#b8860b",
    "#d62728",
    "#000080",
)


@dataclass(frozen=True)
class Point:
    """What one run came to."""

    quality: float
    in_time: float
    good: float
    """Mean over requests of quality, 0 for answers that are late or missing."""
    usd: float
    """List price of a request."""
    joules: float
    """Energy of the steps for a request."""
    e2el_p99_s: float


def run(router: str, load: float, seed: int, more: Mapping[str, Any], folder: str) -> Point:
    """One run."""
    overrides: dict[str, Any] = {
        "gateway.model_router": dict(ROUTERS[router]),
        "workload.arrivals.rate": f"{CAPACITY * load:g} req/s",
        "seed": seed,
        "workload.requests": 1200 if load > 0.1 else 400,
        **{path: value for path, value in more.items() if path != "scenario"},
    }
    scenario = SCENARIOS / more.get("scenario", "under-load.yaml")
    result = fleetsim.run(scenario, f"{folder}/run", overrides=overrides)
    table = result.requests()
    e2el, tokens, quality, usd, joules = (
        np.array(table[name].to_pylist(), dtype=np.float64)
        for name in ("e2el_s", "output_tokens", "quality", "list_usd", "energy_j")
    )
    timely = e2el <= GRACE_S + PER_TOKEN_S * tokens  # NaN, which has no answer, is not
    return Point(
        float(np.nanmean(quality)),
        float(timely.mean()),
        float((np.nan_to_num(quality) * timely).mean()),
        float(np.nansum(usd) / len(usd)),
        float(joules.mean()),
        float(np.nanquantile(e2el, 0.99)),
    )


def utility(point: Point, single_usd: float) -> float:
    """Quality in time, less the price."""
    return point.good - THRIFT * point.usd / single_usd


def interval(values: Sequence[float]) -> str:
    """Mean and half width of its 95 % confidence interval."""
    half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return f"{np.mean(values):.3f} ± {half:.3f}"


def ranks(points: Mapping[str, Sequence[float]]) -> dict[str, int]:
    """Place of each router by its mean, 1 for the best."""
    order = sorted(points, key=lambda name: -float(np.mean(points[name])))
    return {name: place for place, name in enumerate(order, 1)}


def main() -> None:
    """Run all, and write the page and the picture."""
    setups: list[tuple[str, float, Mapping[str, Any]]] = [(f"load {load:g}", load, {}) for load in LOADS]
    setups += [(name, 0.8, more) for name, more in BEYOND.items() if more]
    points: dict[str, dict[str, list[Point]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, load, more in setups:
            points[name] = {router: [run(router, load, seed, more, folder) for seed in SEEDS] for router in ROUTERS}
            sys.stderr.write(f"{name}\n")
    single_usd = float(np.mean([p.usd for p in points["load 0.01"]["best single"]]))
    values = {
        name: {router: [utility(p, single_usd) for p in own] for router, own in of.items()}
        for name, of in points.items()
    }
    (HERE / "routers-under-load.md").write_text(page(points, values), encoding="utf-8")
    (HERE / "routers-under-load.svg").write_text(picture(values), encoding="utf-8")


def page(
    points: Mapping[str, Mapping[str, Sequence[Point]]], values: Mapping[str, Mapping[str, Sequence[float]]]
) -> str:
    """The page."""
    loads = [f"load {load:g}" for load in LOADS]
    alone = [router for router in ROUTERS if router != "oracle"]
    first, last = (ranks({router: values[name][router] for router in alone}) for name in (loads[0], loads[-1]))
    lines = [
        "# Published rankings of model routers under load",
        "",
        "Written by `python docs/findings/routers_under_load.py` from "
        "[scenarios/models/under-load.yaml](../../scenarios/models/under-load.yaml): three models on four replicas of two kinds "
        "of chip, abilities fitted to GreenServ's answers, a predictor with an AUC of 0.7. Load 0.01 is one request at a time, as "
        "routers are published; load 1 is what the replicas serve together if each always has work "
        f"({CAPACITY:g} requests/s). {len(SEEDS)} seeds; every router meets the same requests and the same answers. Parameters "
        "are those of the cards.",
        "",
        f"An answer is in time within {GRACE_S:g} s and {1e3 * PER_TOKEN_S:g} ms for each of its tokens. *Utility* is the mean "
        f"quality of answers in time (others count 0) less {THRIFT:g} times the list price over the best single model's.",
        "",
        "![Utility of model routers against the load](routers-under-load.svg)",
        "",
        "## Utility by load",
        "",
        *head(["router", *loads, "place alone → at 0.95"]),
    ]
    for router in ROUTERS:
        place = f"{first[router]} → {last[router]}" if router in first else "bound"
        lines.append(row([router, *(interval(values[load][router]) for load in loads), place]))
    lines += ["", "## How much of the published order is left", ""]
    lines += head(["at", "Kendall's tau with the order alone", "best, without the oracle"])
    for name in values:
        taus = []
        for seed in range(len(SEEDS)):
            here, there = ([values[at][router][seed] for router in alone] for at in (name, loads[0]))
            taus.append(float(kendalltau(here, there).statistic))
        winner = min(alone, key=ranks({router: values[name][router] for router in alone}).__getitem__)
        lines.append(row([name, interval(taus), f"{winner} ({interval(values[name][winner])})"]))
    lines += ["", "## What lies behind", ""]
    shown = (
        ("quality alone", "load 0.01", "quality", 1.0, 3),
        ("in time at 0.8", "load 0.8", "in_time", 1.0, 2),
        ("in time at 0.95", "load 0.95", "in_time", 1.0, 2),
        ("p99 at 0.95 [s]", "load 0.95", "e2el_p99_s", 1.0, 0),
        ("J a request alone", "load 0.01", "joules", 1.0, 0),
        ("J at 0.8", "load 0.8", "joules", 1.0, 0),
        ("USD per 1,000", "load 0.01", "usd", 1000.0, 3),
    )
    lines += head(["router", *(title for title, *_ in shown)])
    for router in ROUTERS:
        cells = [
            f"{scale * float(np.mean([getattr(point, figure) for point in points[at][router]])):.{digits}f}"
            for _, at, figure, scale, digits in shown
        ]
        lines.append(row([router, *cells]))
    lines += ["", "## One complication at a time, at load 0.8", "", *head(["router", *BEYOND])]
    names = ["load 0.8", *[name for name, more in BEYOND.items() if more]]
    lines += [row([router, *(interval(values[name][router]) for name in names)]) for router in ROUTERS]
    story = HERE / "routers-under-load.txt"
    if story.exists():
        lines += ["", story.read_text(encoding="utf-8").rstrip()]
    return "\n".join(lines) + "\n"


def head(titles: Sequence[str]) -> list[str]:
    """Head of a table."""
    return [row(titles), "|---|" + "---:|" * (len(titles) - 1)]


def row(cells: Sequence[str]) -> str:
    """A row of a table."""
    return f"| {' | '.join(cells)} |"


def picture(values: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Utility against the load, a line for each router."""
    width, height, left, right, top, bottom = 760, 420, 56, 150, 30, 44
    means = {r: [float(np.mean(values[f"load {load:g}"][r])) for load in LOADS] for r in ROUTERS}
    low, high = min(map(min, means.values())) - 0.02, max(map(max, means.values())) + 0.02

    def x(load: float) -> float:
        return left + load * (width - left - right)

    def y(value: float) -> float:
        return top + (high - value) / (high - low) * (height - top - bottom)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="18">Quality in time less price, by load of the fleet</text>',
    ]
    for step in np.arange(np.ceil(low * 10) / 10, high, 0.1):
        parts.append(f'<line x1="{left}" x2="{x(1.0):.0f}" y1="{y(step):.1f}" y2="{y(step):.1f}" stroke="#dddddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y(step) + 4:.1f}" text-anchor="end">{step:.1f}</text>')
    parts += [
        f'<text x="{x(load):.0f}" y="{height - bottom + 18}" text-anchor="middle">{load:g}</text>' for load in LOADS
    ]
    places: list[float] = []
    for (router, line), colour in sorted(zip(means.items(), COLOURS, strict=True), key=lambda item: -item[0][1][-1]):
        dots = " ".join(f"{x(load):.1f},{y(value):.1f}" for load, value in zip(LOADS, line, strict=True))
        dash = ' stroke-dasharray="5 4"' if router == "oracle" else ""
        parts.append(f'<polyline points="{dots}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        place = max(y(line[-1]), (places[-1] + 14) if places else 0.0)
        places.append(place)
        parts.append(f'<text x="{x(LOADS[-1]) + 8:.0f}" y="{place + 4:.1f}" fill="{colour}">{router}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
