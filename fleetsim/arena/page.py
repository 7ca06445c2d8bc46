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

MODELS_HEAD = """\
# Arena of model routers

Routers that choose which model answers, on a fixed suite of scenarios (version {version}, `scenarios/arena/suite-models.yaml`),
written by `{command}`. {seeds} seeds; all routers meet the same requests, and a model's answer to a request is the same
whoever asks for it. Routers run with their own defaults, or the suite's where these do nothing; none is tuned to this fleet. `token-budget`
counts the tokens of sessions, of which there are none: it asks the model with the highest predicted chance.
Replicas are chosen by least-outstanding.

- **Score** of a router in a scenario and seed: the mean of its quality and its SLO attainment over the best ones, and of the lowest
  list price, energy and p99 latency over its own: 1 is best in everything. A score of five aims is a convention; the columns say
  what each router is good for, and the first picture which of them are worth their price.
- **Quality** is the mean over all requests, 0 without an answer. **Over a mix**: that less the quality of a random mix of single
  models at the same list price; below 0, tossing a coin is better. **PGR**: the part of the gap between the cheapest and the best
  model that is recovered. **Regret**: the best single answer's quality less that of the answer given; below 0, votes among several
  answers are better than any single one.
- **Price** and **energy** are those of all calls for a request. The predictor that routers share puts the requests in an order
  whose APGR is {apgr} (50 % at random); it does not depend on the router.
- **Differences** to the baseline (the best model for all) are taken seed by seed; in brackets their 95 % confidence interval
  (Student's t). *Better* and *worse* stand where that does not hold zero.
- `oracle` knows the answers: the bound, not a router that anybody can have. Scenarios: {scenarios}.
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
    signs = KINDS[kind].scored
    found: dict[Entry, dict[str, list[float]]] = {entry: {} for entry in entries}
    for name in contest.scenarios:
        ran = {entry: contest.figures[entry, name] for entry in entries if (entry, name) in contest.figures}
        for seed in range(contest.seeds):
            best = {m: _best([runs[seed] for runs in ran.values()], m, sign) for m, sign in signs.items()}
            for entry, runs in ran.items():
                parts = [_part(runs[seed][m], best[m], sign) for m, sign in signs.items()]
                found[entry].setdefault(name, []).append(sum(parts) / len(parts))
    return found


def _best(figures: Sequence[Figures], measure: str, sign: int) -> float | None:
    known = [f[measure] for f in figures if f[measure] is not None]
    if not known:
        return None
    return float(max(known) if sign > 0 else min(known))


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


def page(contest: Contest, command: str, pictures: Mapping[str, str] | None = None) -> str:
    """The whole page as Markdown, with pictures (title by file); times of decisions stand in a section of their own at its end."""
    kinds = list(dict.fromkeys(entry.kind for entry in contest.entries))
    parts = [_head(contest, kinds[0], command)]
    parts += [f"![{title}]({file})\n" for file, title in (pictures or {}).items()]
    for kind in kinds:
        parts += [f"## {_title(kind)}\n", overall_table(contest, kind), *_scenario_tables(contest, kind)]
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


def _head(contest: Contest, kind: str, command: str) -> str:
    """What stands before the tables."""
    told = {"command": command, "seeds": contest.seeds, "scenarios": ", ".join(contest.scenarios)}
    if KINDS[kind].suite == "models":
        known = [mean(runs, "apgr") for (entry, _), runs in contest.figures.items() if entry.baseline]
        apgr = ", ".join(dict.fromkeys(f"{100 * value:.0f} %" for value in known if value is not None))
        return MODELS_HEAD.format(version=version("models"), apgr=apgr or "not known", **told)
    baselines = {"scheduler": KINDS["schedulers"].baseline, "router": KINDS["routers"].baseline}
    return HEAD.format(version=version(), **baselines, **told)


def _title(kind: str) -> str:
    return kind.replace("_", " ").capitalize()


def _scenario_tables(contest: Contest, kind: str) -> list[str]:
    parts = []
    for name in places(contest, kind):
        ran = [row.entry for row in ranking(contest, kind) if (row.entry, name) in contest.figures]
        rows = [_scenario_row(contest, entry, name) for entry in ran]
        head = ["policy"]
        for measure in KINDS[kind].shown.values():
            head += [f"{measure.title} [{measure.unit}]", *["difference"] * measure.scored]
        parts += [f"### {_title(kind)}, {name}\n", _table(head, rows, len(head) - 1)]
    return parts


def _scenario_row(contest: Contest, entry: Entry, name: str) -> list[str]:
    cells = [entry.name]
    for name_of, measure in KINDS[entry.kind].shown.items():
        value = mean(contest.figures[entry, name], name_of)
        cells.append("–" if value is None else f"{value * measure.factor:,.{measure.digits}f}")
        if measure.scored:
            interval = difference(contest, entry, name, name_of)
            told = f"{_told(interval, measure.factor, measure.digits)} {word(interval, measure.sign)}".rstrip()
            cells.append("" if entry.baseline else told)
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

Mean processor time of a decision (a request routed, a step planned) in the first scenario, on the machine that wrote this page:
plain Python, reading the clock included, with what the policy does besides (feedback, further calls of a cascade). What is above
depends on scenarios and seeds alone; this does not, and no score counts it.
"""


def _decisions(contest: Contest) -> str:
    rows = [(entry.kind, entry.name, f"{spent:.1f}") for entry, spent in contest.decision_us.items()]
    return _table(("kind", "policy", "µs"), rows, 1)


def as_mapping(contest: Contest) -> dict[str, Any]:
    """The same as one JSON object."""
    kinds = list(dict.fromkeys(entry.kind for entry in contest.entries))
    return {
        "schema": "fleetsim-arena/1",
        "suite_version": version(KINDS[kinds[0]].suite),
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
        "scenarios": {
            name: {m: mean(figures, m) for m in KINDS[row.entry.kind].measures} for name, figures in runs.items()
        },
    }
