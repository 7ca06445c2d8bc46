"""Ranks and differences, and how they are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

from fleetsim.arena.contest import Contest
from fleetsim.arena.suite import KINDS, Entry, version
from fleetsim.experiment.replicate import Figures
from fleetsim.metrics.statistics import mean_interval

Interval = tuple[float, float, float]
"""Mean, low and high end."""

SCORED = {"attainment": 1, "ttft_mean_s": -1, "ttft_p99_s": -1, "itl_p99_s": -1}
"""What the score is made of: 1 where more is better, -1 where less is."""
COLUMNS = {
    "attainment": ("SLO attainment", "%", 100.0),
    "ttft_mean_s": ("mean TTFT", "ms", 1e3),
    "ttft_p99_s": ("p99 TTFT", "ms", 1e3),
    "itl_p99_s": ("p99 gap", "ms", 1e3),
}
"""Title, unit and factor of what is shown of each scenario."""

HEAD = """\
# Arena

Policies against each other on a fixed suite of scenarios (version {version}, `scenarios/arena`), written by `{command}`.
{seeds} seeds; all policies meet the same requests. Policies run with their own defaults; where routers are compared the scheduler
is {scheduler}, where schedulers are the router is {router}, and orders of the queue see output lengths that the gateway learns.
Kinds meet where they have something to decide: admissions under bursts and overload, evictions where caches are too small, and
rebalancers where replicas are unlike or conversations are tied to them; `none` is nobody deciding. Policies without defaults of
their own get the suite's (`suite.yaml`).

- **Score** of a policy in a scenario and seed: the mean of its SLO attainment over the best one's, and of the best mean TTFT, p99
  TTFT and p99 gap between tokens over its own, the best of its kind in that scenario and seed: 1 is best in everything. The overall
  score is the mean over the scenarios that it can run.
- **Differences** to the baseline are taken seed by seed; in brackets their 95 % confidence interval (Student's t). *Better* and
  *worse* stand where that does not hold zero.
- SLO attainment counts requests that were rejected or not finished as missed. Scenarios: {scenarios}.
- In `straggler` a replica runs at a fifth of its clock; in `failure` two replicas fail and come back empty, a second unnoticed.
"""


@dataclass(frozen=True, slots=True)
class Row:
    """A policy's place."""

    entry: Entry
    score: float
    difference: Interval
    """Of the score, to the baseline's."""
    scenarios: int
    """In how many it ran."""


def scores(contest: Contest, kind: str) -> dict[Entry, dict[str, list[float]]]:
    """Score of each entry of a kind, by scenario and seed."""
    entries = [entry for entry in contest.entries if entry.kind == kind]
    found: dict[Entry, dict[str, list[float]]] = {entry: {} for entry in entries}
    for name in contest.scenarios:
        ran = {entry: contest.figures[entry, name] for entry in entries if (entry, name) in contest.figures}
        for seed in range(contest.seeds):
            best = {m: _best([runs[seed] for runs in ran.values()], m) for m in SCORED}
            for entry, runs in ran.items():
                parts = [_part(runs[seed][m], best[m], sign) for m, sign in SCORED.items()]
                found[entry].setdefault(name, []).append(sum(parts) / len(parts))
    return found


def _best(figures: Sequence[Figures], measure: str) -> float | None:
    known = [f[measure] for f in figures if f[measure] is not None]
    if not known:
        return None
    return float(max(known) if SCORED[measure] > 0 else min(known))


def _part(value: float | None, best: float | None, sign: int) -> float:
    """Ratio to the best, at most 1; nothing for who has no figure."""
    if value is None or best is None:
        return 0.0
    if value == best:
        return 1.0
    return value / best if sign > 0 else best / value


def ranking(contest: Contest, kind: str) -> list[Row]:
    """Entries of a kind, best first."""
    found = scores(contest, kind)
    (base,) = [entry for entry in found if entry.baseline]
    rows = []
    for entry, by_scenario in found.items():
        if not by_scenario:
            continue
        overall = _mean_over(by_scenario, list(by_scenario))
        common = [name for name in by_scenario if name in found[base]]
        own, other = _mean_over(by_scenario, common), _mean_over(found[base], common)
        difference = mean_interval([a - b for a, b in zip(own, other, strict=True)])
        rows.append(Row(entry, sum(overall) / len(overall), difference, len(by_scenario)))
    return sorted(rows, key=lambda row: (-row.scenarios, -row.score, row.entry.name))


def _mean_over(by_scenario: Mapping[str, Sequence[float]], names: Sequence[str]) -> list[float]:
    return [sum(parts) / len(parts) for parts in zip(*(by_scenario[name] for name in names), strict=True)]


def difference(contest: Contest, entry: Entry, name: str, measure: str) -> Interval:
    """Difference of a measure to the baseline's in a scenario; NaN where either has no figure."""
    base = Entry(entry.kind, KINDS[entry.kind].baseline)
    pairs = zip(contest.figures[entry, name], contest.figures.get((base, name), ()), strict=False)
    values = [a[measure] - b[measure] for a, b in pairs if a[measure] is not None and b[measure] is not None]
    return mean_interval(values) if values else (float("nan"),) * 3


def mean(runs: Sequence[Figures], measure: str) -> float | None:
    """Mean over the seeds."""
    known = [figures[measure] for figures in runs if figures[measure] is not None]
    return sum(known) / len(known) if known else None


def word(interval: Interval, sign: int = 1) -> str:
    """Better or worse where the interval is on one side of zero."""
    _, low, high = interval
    if isnan(low) or low <= 0 <= high:
        return ""
    return "better" if low * sign > 0 else "worse"


# --- page ---------------------------------------------------------------------------------------------------------------


def page(contest: Contest, command: str) -> str:
    """The whole page as Markdown; times of decisions stand in a section of their own at its end."""
    kinds = list(dict.fromkeys(entry.kind for entry in contest.entries))
    head = HEAD.format(
        version=version(),
        command=command,
        seeds=contest.seeds,
        scheduler=KINDS["schedulers"].baseline,
        router=KINDS["routers"].baseline,
        scenarios=", ".join(contest.scenarios),
    )
    parts = [head]
    for kind in kinds:
        parts += [f"## {kind.capitalize()}\n", overall_table(contest, kind), *_scenario_tables(contest, kind)]
    if contest.excluded:
        parts += ["## Who cannot run what\n", _excluded(contest)]
    if contest.decision_us:
        parts += [DECISIONS, _decisions(contest)]
    return "\n".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], right: int) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * (len(head) - right) + "--:|" * right]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def overall_rows(contest: Contest, kind: str) -> list[tuple[str, ...]]:
    """Cells of the ranked table of a kind."""
    rows = []
    for place, row in enumerate(ranking(contest, kind), 1):
        name = f"{row.entry.name} (baseline)" if row.entry.baseline else row.entry.name
        told = "" if row.entry.baseline else f"{_told(row.difference, 1, 3)} {word(row.difference)}".rstrip()
        by_scenario = scores(contest, kind)[row.entry]
        each = [
            f"{sum(by_scenario[n]) / len(by_scenario[n]):.2f}" if n in by_scenario else "–"
            for n in places(contest, kind)
        ]
        rows.append((str(place), name, f"{row.score:.3f}", told, *each))
    return rows


def overall_head(contest: Contest, kind: str) -> tuple[str, ...]:
    """Titles of that table."""
    return ("", "policy", "score", "difference to the baseline", *places(contest, kind))


def places(contest: Contest, kind: str) -> list[str]:
    """Scenarios in which a kind has met."""
    met = {name for entry, name in (*contest.figures, *contest.excluded) if entry.kind == kind}
    return [name for name in contest.scenarios if name in met]


def overall_table(contest: Contest, kind: str) -> str:
    """The ranked table of a kind as Markdown."""
    head = overall_head(contest, kind)
    return _table(head, overall_rows(contest, kind), len(head) - 2)


def _scenario_tables(contest: Contest, kind: str) -> list[str]:
    parts = []
    for name in places(contest, kind):
        ran = [row.entry for row in ranking(contest, kind) if (row.entry, name) in contest.figures]
        rows = [_scenario_row(contest, entry, name) for entry in ran]
        head = ["policy"]
        for title, unit, _ in COLUMNS.values():
            head += [f"{title} [{unit}]", "difference"]
        parts += [f"### {kind.capitalize()}, {name}\n", _table(head, rows, len(head) - 1)]
    return parts


def _scenario_row(contest: Contest, entry: Entry, name: str) -> list[str]:
    cells = [entry.name]
    for measure, (_, _, factor) in COLUMNS.items():
        value = mean(contest.figures[entry, name], measure)
        digits = 1 if measure == "attainment" else 0
        cells.append("–" if value is None else f"{value * factor:,.{digits}f}")
        interval = difference(contest, entry, name, measure)
        verdict = word(interval, SCORED[measure])
        cells.append("" if entry.baseline else f"{_told(interval, factor, digits)} {verdict}".rstrip())
    return cells


def _told(interval: Interval, factor: float, digits: int) -> str:
    middle, low, high = (end * factor for end in interval)
    if isnan(middle):
        return "–"
    if isnan(low):
        return f"{middle:+,.{digits}f}"
    return f"{middle:+,.{digits}f} ({low:+,.{digits}f} to {high:+,.{digits}f})"


def _excluded(contest: Contest) -> str:
    rows = [(entry.kind, entry.name, name, why) for (entry, name), why in contest.excluded.items()]
    return _table(("kind", "policy", "scenario", "why"), rows, 0)


DECISIONS = """\
## Cost of a decision

Mean wall time of a decision (a request routed, a step planned) in the first scenario, on the machine that wrote this page: plain
Python, reading the clock included. What is above depends on scenarios and seeds alone; this does not, and no score counts it.
"""


def _decisions(contest: Contest) -> str:
    rows = [(entry.kind, entry.name, f"{spent:.1f}") for entry, spent in contest.decision_us.items()]
    return _table(("kind", "policy", "µs"), rows, 1)


def as_mapping(contest: Contest) -> dict[str, Any]:
    """The same as one JSON object."""
    kinds = list(dict.fromkeys(entry.kind for entry in contest.entries))
    return {
        "schema": "fleetsim-arena/1",
        "suite_version": version(),
        "seeds": contest.seeds,
        "scenarios": list(contest.scenarios),
        "rankings": {kind: [_row_mapping(contest, row) for row in ranking(contest, kind)] for kind in kinds},
        "excluded": [
            {"kind": entry.kind, "policy": entry.name, "scenario": name, "reason": why}
            for (entry, name), why in contest.excluded.items()
        ],
        "decision_us": {f"{entry.kind}/{entry.name}": spent for entry, spent in contest.decision_us.items()},
    }


def _row_mapping(contest: Contest, row: Row) -> dict[str, Any]:
    runs = {
        name: contest.figures[row.entry, name] for name in contest.scenarios if (row.entry, name) in contest.figures
    }
    return {
        "policy": row.entry.name,
        "baseline": row.entry.baseline,
        "score": row.score,
        "difference": dict(zip(("mean", "low", "high"), row.difference, strict=True)),
        "scenarios": {name: {m: mean(figures, m) for m in figures[0]} for name, figures in runs.items()},
    }
