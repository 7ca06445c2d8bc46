"""What stands on the page, in the order of a reader's questions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import StringIO
from typing import Any

import plotly.graph_objects as go
import pyarrow as pa
from ruamel.yaml import YAML

from fleetsim import __version__
from fleetsim.metrics.definitions import METRICS
from fleetsim.plots import gantt, grid, latencies, over_time, pareto, rates
from fleetsim.plots.answers import calibration, regret
from fleetsim.plots.digest import PARTS
from fleetsim.plots.latencies import PART_HINTS, PART_TITLES
from fleetsim.plots.rates import NAMES
from fleetsim.plots.style import Mark, marks_of, number
from fleetsim.reporting import answers
from fleetsim.reporting.detail import Detail, Limits, limits_of, read
from fleetsim.reporting.series import MOST_DETAILED, Placed, axes_for_grid, detailed, placed, summary_of
from fleetsim.reporting.tables import Cell, Head, HtmlTable, formula, group_table, name, plain, ratio, seconds
from fleetsim.results.folder import Results, Run


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure with the words around it."""

    id: str
    title: str
    note: str
    table: str
    json: str
    height: int
    wide: bool
    run: str = ""
    """Label of the run that it is of, where several are shown one at a time."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A headline figure."""

    title: str
    value: str
    unit: str
    hint: str
    tone: str = ""
    under: str = ""


@dataclass(slots=True)
class Section:
    """A part of the page."""

    id: str
    title: str
    figures: list[Drawn] = field(default_factory=list)
    tables: list[HtmlTable] = field(default_factory=list)
    choices: Sequence[str] = ()
    """Runs that a reader can switch between."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not self.figures and not self.tables


@dataclass(slots=True)
class Page:
    """Everything that the template draws."""

    title: str
    subtitle: str
    word: str
    tone: str
    """``good``, ``fair`` or ``bad``."""
    sentence: str
    slo: str
    tiles: list[Tile]
    tables: list[HtmlTable]
    sections: list[Section]
    assumptions: list[str]
    extrapolated: list[str]
    warnings: list[str]
    commands: list[str]
    scenario: str
    """The resolved scenario as YAML."""
    versions: list[tuple[str, str]]
    metrics: list[tuple[str, str, str]]


class _Figures:
    """Numbers figures and turns them into JSON."""

    def __init__(self, kept: dict[str, go.Figure] | None) -> None:
        self.count = 0
        self._kept = kept
        """Figures as they were made, by name, if anybody wants them."""

    def __call__(self, fig: go.Figure, wide: bool = False, run: str = "") -> Drawn:
        self.count += 1
        if self._kept is not None:
            title = re.sub(r"[^a-z0-9]+", "-", f"{fig.layout.meta['title']} {run}".lower()).strip("-")
            self._kept[f"{self.count:02}-{title[:60]}"] = go.Figure(fig)
        meta = dict(fig.layout.meta)
        fig.update_layout(title=None, meta=None)
        named = (
            fig.layout.showlegend is not False
            and sum(t.showlegend is not False for t in fig.data if t.type != "heatmap") > 0
        )
        top = (34 if named else 8) + (22 if _subplots(fig) else 0)
        height = int(fig.layout.height) - 70 + top
        fig.layout.margin.t = top
        fig.layout.height = None
        text = fig.to_json()
        return Drawn(f"figure-{self.count}", meta["title"], meta["note"], meta["table"], text, height, wide, run)


def _subplots(fig: go.Figure) -> bool:
    return "xaxis2" in fig.to_dict()["layout"]


def page(
    results: Results,
    title: str | None = None,
    figures: dict[str, go.Figure] | None = None,
    most_detailed: int = MOST_DETAILED,
) -> Page:
    """Read results and lay out the page; `figures` takes those that it shows."""
    places = placed(results)
    summary = summary_of(results, places)
    limits = limits_of(results.runs[0])
    target = None if limits is None else limits.attainment
    best = rates.max_rates(summary, target) if target is not None and _rates_of(places) else {}
    chosen = detailed(places, best, most_detailed)
    labels = _labels(chosen)
    details = [read(results, place.run, labels[i]) for i, place in enumerate(chosen)]
    marks = marks_of(dict.fromkeys(place.series for place in places))
    marks |= {label: marks[place.series] for place, label in zip(chosen, labels, strict=True) if label not in marks}
    if len(results.runs) == 1:
        marks = {}
    draw = _Figures(figures)
    first = results.runs[0]
    each = _each(details, marks, draw)
    sections = [
        *_across(summary, places, limits, marks, draw),
        _latencies(details, limits, marks, draw),
        _times(details, draw),
        *each[:-1],
        *_answers(results, summary, places, dict(zip(labels, chosen, strict=True)), marks, draw),
        _groups(results, details, target),
        each[-1],
    ]
    one = len(results.runs) == 1
    word, tone, sentence = _verdict(results, summary, best, target)
    return Page(
        title=title or _title(results.runs),
        subtitle=_subtitle(results, places),
        word=word,
        tone=tone,
        sentence=sentence,
        slo=_slo(limits, summary) if one else _slo_target(limits),
        tiles=_tiles(first, limits) if one else [],
        tables=[_objectives(results, details[0], limits)]
        if one and limits is not None
        else []
        if one
        else [_runs(summary, places, marks, limits)],
        sections=[section for section in sections if not section.is_empty],
        assumptions=_all(results.runs, "assumptions"),
        extrapolated=_all(results.runs, "extrapolated"),
        warnings=_all(results.runs, "warnings") + [_failed(row) for row in results.missing[:20]],
        commands=_commands(results),
        scenario=_yaml(first.manifest.get("scenario")),
        versions=_versions(first),
        metrics=[(metric.name, metric.unit, metric.formula) for metric in METRICS],
    )


def _title(runs: Sequence[Run]) -> str:
    """Names of the scenarios, or of the studies, that the runs are of."""
    names = list(dict.fromkeys(run.study or run.name for run in runs))
    if len(names) == 1 and len(runs) > 1 and not runs[0].study:
        names = [run.label for run in runs]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _rates_of(places: Sequence[Placed]) -> bool:
    """Whether some line has several rates."""
    rates_of: dict[str, set[float]] = {}
    for place in places:
        if place.rate_per_s is not None:
            rates_of.setdefault(place.series, set()).add(place.rate_per_s)
    return any(len(found) > 1 for found in rates_of.values())


def _labels(chosen: Sequence[Placed]) -> list[str]:
    """Their lines where these tell them apart, else their labels."""
    names = [place.series for place in chosen]
    return names if len(set(names)) == len(names) else [place.run.label for place in chosen]


# --- the answer --------------------------------------------------------------------------------------------------------


_TONES = {"STABLE": "good", "BACKLOGGED": "fair", "OVERLOADED": "bad"}


def _verdict(
    results: Results, summary: pa.Table, best: Mapping[str, float | None], target: float | None
) -> tuple[str, str, str]:
    runs = results.runs
    if len(runs) == 1:
        word = str(runs[0].manifest.get("verdict") or "MEASURED")
        tone = _TONES.get(word, "fair")
        attained = (
            summary["slo_attainment_ratio"][0].as_py() if "slo_attainment_ratio" in summary.column_names else None
        )
        if tone == "good" and target is not None and attained is not None and attained < target:
            tone = "fair"
        return word, tone, str(runs[0].manifest.get("verdict_reason") or "imported from another tool")
    missing = f"; {len(results.missing)} more failed or are missing" if results.missing else ""
    ranked = sorted(((rate, series) for series, rate in best.items() if rate is not None), reverse=True)
    if best and not ranked:
        return "MISSED", "bad", f"no run keeps the SLO at every rate up to its own{missing}"
    if ranked:
        top, leader = ranked[0]
        equal = [series for rate, series in ranked if rate == top]
        if len(equal) > 1:
            return (
                f"{number(top)} req/s",
                "good",
                f"highest rate run that keeps the SLO, under {', '.join(equal)}{_beyond(summary, equal, top)}{missing}",
            )
        rest = [f"{series} {number(rate)}" for rate, series in ranked[1:4]]
        rest += [f"{series} at none" for series, rate in best.items() if rate is None][: 3 - len(rest)]
        against = f"; {', '.join(rest)}" if rest else ""
        return f"{number(top)} req/s", "good", f"highest rate run that keeps the SLO: {leader}{against}{missing}"
    words = summary["verdict"].to_pylist() if "verdict" in summary.column_names else []
    counts = {word: words.count(word) for word in (*_TONES, "MEASURED") if word in words}
    tone = "bad" if "OVERLOADED" in counts else "fair" if "BACKLOGGED" in counts else "good"
    return f"{len(runs)} runs", tone, ", ".join(f"{count} {word}" for word, count in counts.items()) + missing


def _beyond(summary: pa.Table, equal: Sequence[str], top: float) -> str:
    """Which of several lines that are equally good so far keeps most at the next rate."""
    found = {name: rows for name, rows in rates.points(summary, "slo_attainment_ratio").items() if name in equal}
    later = min((row[0] for rows in found.values() for row in rows if row[0] > top), default=None)
    if later is None:
        return ""
    there = {name: row[1] for name, rows in found.items() for row in rows if row[0] == later}
    leader = max(there, key=lambda name: there[name])
    return f"; at {number(later)} {leader} keeps most, {ratio(there[leader]).text}"


def _subtitle(results: Results, places: Sequence[Placed]) -> str:
    runs = results.runs
    if len(runs) == 1:
        scenario = runs[0].manifest.get("scenario") or {}
        pools = scenario.get("pools") or []
        fleet = ", ".join(
            f"{pool.get('replicas', 0)} × {pool.get('accelerator')} for {pool.get('llm')}" for pool in pools[:4]
        )
        more = f" and {len(pools) - 4} more pools" if len(pools) > 4 else ""
        count = (runs[0].manifest.get("summary") or {}).get("requests")
        return f"{count:,} requests on {fleet}{more}" if isinstance(count, int) and fleet else ""
    series = len({place.series for place in places})
    replications = max(run.replication for run in runs) + 1
    offered = sorted({place.rate_per_s for place in places if place.rate_per_s is not None})
    text = f"{len(runs)} runs: {series} {'lines' if series > 1 else 'line'}"
    if len(offered) > 1:
        text += f", {len(offered)} rates from {number(offered[0])} to {number(offered[-1])} requests/s"
    return text + (f", {replications} replications" if replications > 1 else "")


def _limit_words(limits: Mapping[str, float]) -> str:
    return ", ".join(f"{NAMES[metric]} ≤ {seconds(limit).text}" for metric, limit in limits.items())


def _slo(limits: Limits | None, summary: pa.Table) -> str:
    if limits is None:
        return ""
    attained = summary["slo_attainment_ratio"][0].as_py() or 0.0
    word = "met" if attained >= limits.attainment else "missed"
    words = _limit_words(limits.limits_s) or "limits by class"
    asked = ratio(limits.attainment).text
    return f"SLO {word}: {ratio(attained).text} of requests within all limits ({words}); {asked} asked"


def _slo_target(limits: Limits | None) -> str:
    if limits is None:
        return ""
    return f"SLO: {_limit_words(limits.limits_s) or 'limits by class'} for {ratio(limits.attainment).text} of requests"


def _tiles(run: Run, limits: Limits | None) -> list[Tile]:
    summary = run.manifest.get("summary") or {}
    tiles: list[Tile] = []
    for title, key, unit, factor in _TILES:
        value = summary.get(key)
        if value is None:
            continue
        tone, under = "", ""
        if key == "slo_attainment_ratio":
            if limits is None:
                continue
            tone = "good" if value >= limits.attainment else "bad"
            under = f"asked: {ratio(limits.attainment).text}"
        shown = ratio(value).text.removesuffix("%") if unit == "%" else number(value * factor)
        metric = key.split("_")[0]
        if limits is not None and metric in limits.limits_s and key.endswith("p99_s"):
            under = f"limit {seconds(limits.limits_s[metric]).text}"
        if unit == "s":
            shown, _, unit = seconds(value).text.rpartition(" ")
        tiles.append(Tile(title, shown, unit, formula(key), tone, under))
    return tiles[:MOST_TILES]


MOST_TILES = 8
_TILES = (
    ("SLO attainment", "slo_attainment_ratio", "%", 1.0),
    ("Goodput", "goodput_requests_per_s", "requests/s", 1.0),
    ("TTFT p99", "ttft_p99_s", "s", 1.0),
    ("TPOT p99", "tpot_p99_s", "s", 1.0),
    ("Output", "output_tokens_per_s", "tokens/s", 1.0),
    ("Cost", "cost_per_million_output_tokens_usd", "USD / M tokens", 1.0),
    ("Energy", "site_energy_per_output_token_j", "J / token", 1.0),
    ("Carbon", "carbon_per_million_output_tokens_g", "g / M tokens", 1.0),
    ("Busy", "busy_ratio", "%", 1.0),
)


def _objectives(results: Results, detail: Detail, limits: Limits) -> HtmlTable:
    """Each limit, how many keep it, and the percentiles beside it; limits of single classes below."""
    stats = ("mean", "p50", "p90", "p95", "p99")
    heads = [
        Head("metric", "", False),
        Head("limit"),
        Head("within it", "requests that finish within this limit / all requests, of the class where it is of one"),
        *(Head(stat) for stat in stats),
    ]
    groups = {row["value"]: row for row in results.table("groups", detail.run).to_pylist() if row["by"] == "class"}
    blocks: list[tuple[str | None, Mapping[str, float], Mapping[str, Any]]] = [
        (None, limits.limits_s, detail.run.manifest.get("summary") or {}),
        *((klass, block, groups.get(klass, {})) for klass, block in limits.classes.items()),
    ]
    rows = []
    for klass, block, figures in blocks:
        for metric in ("ttft", "tpot", "itl", "e2el") if klass is None else block:
            values = [figures.get(f"{metric}_{stat}_s") for stat in stats]
            if all(value is None for value in values):
                continue
            kept = detail.digest.share_within(metric, klass)
            text = NAMES[metric] if klass is None else f"{NAMES[metric]}, class {klass}"
            limit = block.get(metric)
            cells = [seconds(limit), Cell("–", None, "grey") if limit is None else ratio(kept, limits.attainment)]
            rows.append([Cell(text, text), *cells, *map(seconds, values)])
    note = f"The SLO asks that {ratio(limits.attainment).text} of all requests finish within all limits of theirs."
    return HtmlTable("Service-level objective", heads, rows, "summary.parquet, requests.parquet", note, "slo")


def _runs(
    summary: pa.Table,
    places: Sequence[Placed],
    marks: Mapping[str, Mark],
    limits: Limits | None,
) -> HtmlTable:
    """A row per line and rate: means over replications."""
    target = None if limits is None else limits.attainment
    groups: dict[tuple[str, float | None], list[dict[str, Any]]] = {}
    for place, row in zip(places, summary.to_pylist(), strict=True):
        groups.setdefault((place.series, place.rate_per_s), []).append(row)
    heads = [Head("line", "", False), Head("rate /s"), Head("runs"), Head("verdict", "", False)]
    heads += [Head(head, formula(key)) for head, key, _ in _RUN_COLUMNS]
    rows = []
    for (series, rate), members in groups.items():
        words = [str(row.get("verdict") or "–") for row in members]
        worst = max(words, key=lambda word: list(_TONES).index(word) if word in _TONES else -1)
        cells = [
            name(series, marks[series].colour),
            plain(rate),
            plain(len(members)),
            Cell(worst, worst, _TONES.get(worst, "grey")),
        ]
        for _, key, show in _RUN_COLUMNS:
            values = [row[key] for row in members if row.get(key) is not None]
            mean = sum(values) / len(values) if values else None
            cells.append(ratio(mean, target) if key == "slo_attainment_ratio" else show(mean))
        rows.append(cells)
    return HtmlTable(
        "Service-level objective by run" if limits else "Runs",
        heads,
        rows,
        "summary.parquet",
        _slo_target(limits),
        "runs",
    )


_RUN_COLUMNS = (
    ("within SLO", "slo_attainment_ratio", ratio),
    ("goodput /s", "goodput_requests_per_s", plain),
    ("TTFT p50", "ttft_p50_s", seconds),
    ("TTFT p99", "ttft_p99_s", seconds),
    ("TPOT p50", "tpot_p50_s", seconds),
    ("TPOT p99", "tpot_p99_s", seconds),
    ("USD / M tokens", "cost_per_million_output_tokens_usd", plain),
    ("J / token", "site_energy_per_output_token_j", plain),
)


# --- figures -----------------------------------------------------------------------------------------------------------


def _across(
    summary: pa.Table, places: Sequence[Placed], limits: Limits | None, marks: Mapping[str, Mark], draw: _Figures
) -> Iterator[Section]:
    """What several runs tell together."""
    if len(places) < 2:
        return
    target = None if limits is None else limits.attainment
    by_rate = _rates_of(places)
    whole, summary = summary, _best_lines(summary, target)
    section = Section("rates", "Against the rate" if by_rate else "Side by side")
    known = _known(summary)
    if by_rate:
        if "goodput_requests_per_s" in known and limits is not None:
            section.figures.append(draw(rates.goodput(summary, marks)))
            section.figures.append(draw(rates.attainment(summary, target, marks)))
        for metric in ("ttft", "tpot"):
            for percentile in ("p50", "p99"):
                if f"{metric}_{percentile}_s" in known:
                    limit = None if limits is None else limits.limits_s.get(metric)
                    section.figures.append(draw(rates.latency(summary, metric, percentile, limit, marks)))
    elif len({place.series for place in places}) > 1:
        section.figures.append(draw(grid.compared(summary, marks), wide=True))
    yield _told_if_fewer(section, whole, summary)
    trade = Section("pareto", "Trade-offs")
    pair = ("tpot_p50_s", "output_tokens_per_s_per_accelerator")
    if set(pair) <= known and sum(all(row[name] for name in pair) for row in summary.to_pylist()) > 1:
        trade.figures.append(draw(pareto.throughput_interactivity(summary, marks), wide=True))
    both = axes_for_grid(summary)
    if both is not None and "slo_attainment_ratio" in known and limits is not None:
        trade.figures.append(draw(grid.attainment_grid(summary, *both, target), wide=True))
    yield _told_if_fewer(trade, whole, summary)


MOST_LINES = 12
"""Lines of a figure at most: more cannot be told apart."""


def _best_lines(summary: pa.Table, target: float | None, by: str = "goodput_requests_per_s") -> pa.Table:
    """The summary, of studies of many lines that of the best: by the highest rate that keeps the SLO, then by another figure."""
    names = summary["series"].to_pylist()
    if len(set(names)) <= MOST_LINES:
        return summary
    best = rates.max_rates(summary, target) if target is not None else {}
    good: dict[str, float] = {}
    for line, value in zip(names, summary[by].to_pylist(), strict=True):
        good[line] = good.get(line, 0.0) + (value or 0.0)
    kept = set(sorted(good, key=lambda line: (-(best.get(line) or 0.0), -good[line]))[:MOST_LINES])
    return summary.filter(pa.array([line in kept for line in names]))


def _told_if_fewer(section: Section, whole: pa.Table, shown: pa.Table) -> Section:
    """Say under each figure that it shows the best lines only."""
    if len(shown) < len(whole):
        count = len(set(whole["series"].to_pylist()))
        section.figures = [
            replace(fig, note=f"{fig.note}; the {MOST_LINES} best of {count} lines") for fig in section.figures
        ]
    return section


def _answers(
    results: Results,
    summary: pa.Table,
    places: Sequence[Placed],
    chosen: Mapping[str, Placed],
    marks: Mapping[str, Mark],
    draw: _Figures,
) -> Iterator[Section]:
    """Only where somebody knows the quality of answers."""
    rated = answers.rated(summary)
    if not len(rated):
        return
    shown = _best_lines(rated, None, "quality")
    latency = Section("", "", [draw(fig, wide=True) for fig in answers.against_latency(shown, marks)])
    quality = Section("quality", "Quality of answers", [draw(answers.plane(results, rated, places, marks), wide=True)])
    quality.figures += _told_if_fewer(latency, rated, shown).figures
    found = answers.digests(results, chosen)
    if found:
        lines = set(shown["series"].to_pylist())
        quality.figures.append(draw(regret(answers.regrets(results, places, chosen, found, lines), marks)))
        tables = [digest.calibration_table(label) for label, digest in found.items()]
        quality.figures.append(draw(calibration(_together(tables), marks)))
    yield quality
    several = len(found) > 1
    models = Section("models", "Models", choices=list(found) if several else [])
    for label, fig in answers.shares(found).items():
        models.figures.append(draw(fig, wide=True, run=label if several else ""))
    yield models


def _known(table: pa.Table) -> set[str]:
    """Columns that are not null throughout."""
    return {name for name in table.column_names if table[name].null_count < len(table)}


def _together(tables: Sequence[pa.Table]) -> pa.Table:
    """Tables of several runs; those of a run without requests are empty and have no types to tell."""
    return pa.concat_tables(tables, promote_options="permissive")


def _latencies(details: Sequence[Detail], limits: Limits | None, marks: Mapping[str, Mark], draw: _Figures) -> Section:
    section = Section("latencies", "Latencies")
    table = _together([detail.digest.latency_table(detail.label) for detail in details])
    gaps = _together([detail.gaps for detail in details])
    for metric in ("ttft_s", "tpot_s", "e2el_s", "itl_s"):
        rows, source = (gaps, "gaps.parquet") if metric == "itl_s" else (table, "requests.parquet")
        if metric not in rows["metric"].to_pylist():
            continue
        fig = latencies.cdf(rows, metric, _lines(metric.removesuffix("_s"), limits), marks, source)
        fig.update_layout(showlegend=len(details) > 1)
        section.figures.append(draw(fig))
    return section


def _lines(metric: str, limits: Limits | None) -> dict[str, float]:
    if limits is None:
        return {}
    found = {f"SLO {name}": block[metric] for name, block in limits.classes.items() if metric in block}
    return ({"SLO": limits.limits_s[metric]} if metric in limits.limits_s else {}) | found


def _times(details: Sequence[Detail], draw: _Figures) -> Section:
    table = _together([detail.digest.parts_table(detail.label) for detail in details])
    known = set(table["by"].to_pylist())
    figures = [
        draw(latencies.where_time_goes(table, by), wide=len(details) > 1) for by in ("ttft", "e2el") if by in known
    ]
    return Section("time", "Where the time goes", figures, [_parts(details)] if figures else [])


def _parts(details: Sequence[Detail]) -> HtmlTable:
    """The same in numbers: some parts are too short to be seen beside decoding."""
    table = _together([detail.digest.parts_table(detail.label) for detail in details])
    rows = [row for row in table.to_pylist() if row["by"] == "e2el"]
    shown = [part for part in PARTS if any(row["seconds"] > 0 for row in rows if row["part"] == part)]
    heads = [Head("run", "", False)] * (len(details) > 1) + [Head("around", "", False)]
    heads += [Head(PART_TITLES.get(part, part), PART_HINTS[part]) for part in shown] + [Head("E2E latency")]
    found = {(row["label"], row["band"], row["part"]): row["seconds"] for row in rows}
    cells = []
    for label, band in dict.fromkeys((row["label"], row["band"]) for row in rows):
        first = [name(label)] * (len(details) > 1) + [Cell(band, band)]
        total = sum(found[label, band, part] for part in PARTS)
        cells.append([*first, *(seconds(found[label, band, part]) for part in shown), seconds(total)])
    return HtmlTable("To the last token, in numbers", heads, cells, "requests.parquet")


def _each(details: Sequence[Detail], marks: Mapping[str, Mark], draw: _Figures) -> list[Section]:
    """Figures of single runs, one shown at a time."""
    choices = [detail.label for detail in details] if len(details) > 1 else []
    heat, strip, meter, bars = (
        Section("heat", "Load of the fleet", choices=choices),
        Section("scaling", "Scaling", choices=choices),
        Section("meters", "Cost, energy, carbon", choices=choices),
        Section("gantt", "Single requests", choices=choices),
    )
    for detail in details:
        run = detail.label if choices else ""
        pools = marks_of(dict.fromkeys(detail.fleet["pool"].to_pylist()), marks) if len(detail.fleet) else {}
        if len(detail.bins):
            heat.figures.append(draw(over_time.heat_maps(detail.bins, detail.bins_of), True, run))
        if len(detail.fleet):
            attained = detail.digest.time_table(detail.label) if limits_of(detail.run) is not None else None
            strip.figures.append(draw(over_time.scaling(detail.fleet, pools, attained), True, run))
            meter.figures.append(draw(over_time.meters(detail.fleet, pools), True, run))
        if len(detail.some):
            bars.figures.append(draw(gantt.gantt(detail.some), True, run))
    return [heat, strip, meter, bars]


def _groups(results: Results, details: Sequence[Detail], target: float | None) -> Section:
    section = Section("groups", "Pools, classes and tenants")
    for detail in details:
        groups = results.table("groups", detail.run).to_pylist()
        of = f" of {detail.label}" if len(details) > 1 else ""
        for title, by in (
            ("Pools", "pool"),
            ("Tenants", "tenant"),
            ("Classes", "class"),
            ("LLMs", "model"),
            ("Sites", "site"),
            ("Origins", "origin"),
        ):
            table = group_table(f"{title}{of}", by, groups, "groups.parquet", target)
            if table is not None and (by in ("pool", "tenant") or len(table.rows) > 1):
                section.tables.append(table)
    return section


# --- where it comes from -----------------------------------------------------------------------------------------------


def _all(runs: Sequence[Run], key: str) -> list[str]:
    """Texts of all runs, each once."""
    return list(dict.fromkeys(str(text) for run in runs for text in run.manifest.get(key) or ()))


def _failed(row: Mapping[str, Any]) -> str:
    error = f": {row['error']}" if row.get("error") else ""
    return f"run {row.get('run')} {row.get('status') or 'is missing'}{error}"


def _commands(results: Results) -> list[str]:
    first = results.runs[0]
    if first.study:
        study = json.loads((first.path.parent / "study.json").read_text(encoding="utf-8"))
        command = study.get("command")
        if command:
            return [command if isinstance(command, str) else " ".join(map(str, command))]
    if first.manifest.get("scenario") is None:
        return []
    return ["fleetsim run scenario.yaml"]


def _yaml(scenario: Any) -> str:
    if scenario is None:
        return ""
    text = StringIO()
    YAML(typ="safe", pure=True).dump(scenario, text)
    return text.getvalue()


def _versions(run: Run) -> list[tuple[str, str]]:
    manifest = run.manifest
    rows = [("fleetsim", str(manifest.get("fleetsim_version", "–"))), ("report by fleetsim", __version__)]
    rows += [(package, str(version)) for package, version in (manifest.get("packages") or {}).items()]
    rows += [
        ("python", str(manifest.get("python", "–"))),
        ("digest of the scenario", str(manifest.get("scenario_digest", "–"))),
    ]
    return [
        *rows,
        ("seed", str(manifest.get("seed", "–"))),
        ("schema of the tables", str(manifest.get("schema_version", "–"))),
    ]
