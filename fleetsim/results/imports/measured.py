"""A run that was measured, in the shape of a result folder: what is known of it, nulls for the rest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fleetsim import __version__
from fleetsim.engine.gaps import BUCKETS, EDGES_S
from fleetsim.experiment.run import NO_GROUPS
from fleetsim.metrics.columns import array_of, column
from fleetsim.metrics.slo import slo_met
from fleetsim.metrics.statistics import Floats, batch_means_interval, percentiles
from fleetsim.metrics.summary import LATENCIES, PERCENTILES, STATES
from fleetsim.output.parquet import MANIFEST, ResultFolder
from fleetsim.output.recorder import table_of
from fleetsim.output.tables import SCHEMA_VERSION, arrow_schema
from fleetsim.results.versions import current_batch
from fleetsim.scenario.schema import Slo

VERDICT = "MEASURED"
"""In place of a verdict on a simulated queue."""
FIGURES = (
    "requests", "finished", "rejected", "timed_out", "failed", "unfinished", "skipped_rows", "measured_requests",
    "prompt_tokens", "output_tokens", "prompt_tokens_mean", "output_tokens_mean", "makespan_s", "requests_per_s",
    "prompt_tokens_per_s", "output_tokens_per_s", "total_tokens_per_s", "slo_attainment_ratio", "goodput_requests_per_s",
)  # fmt: skip
"""Figures of a summary that a measurement can have, besides latencies."""


@dataclass(frozen=True, slots=True)
class Requests:
    """What was measured of each request; NaN where something is not known."""

    prompt_tokens: Floats
    output_tokens: Floats
    ttft_s: Floats
    e2el_s: Floats
    tpot_s: Floats
    finished: np.ndarray[Any, np.dtype[np.bool_]]
    arrival_s: Floats
    """On the tool's own clock."""
    reasons: Sequence[str | None]
    """Why one did not finish."""
    itl_max_s: Floats | None = None
    sessions: Sequence[int | None] | None = None
    turns: Sequence[int] | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """A measured run."""

    tool: str
    name: str
    requests: Requests | None
    """None where the file has figures only."""
    figures: Mapping[str, float | int | None] = field(default_factory=dict)
    """Of the summary, by our names, as the tool told them; used for what the requests do not tell."""
    gap_counts: Sequence[int] | None = None
    """Histogram of inter-token gaps, in our buckets."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What else the file says of the run: model, engine, load."""


def gap_counts_of(gaps_s: Floats) -> list[int]:
    """Histogram of gaps in our buckets."""
    places = np.searchsorted(np.asarray(EDGES_S), gaps_s, side="right") - 1
    return np.bincount(np.clip(places, 0, BUCKETS - 1), minlength=BUCKETS).tolist()  # type: ignore[no-any-return]


def write(measured: Measured, source: Path, out: Path, slo: Slo | None) -> Path:
    """Write a result folder.

    Parameters
    ----------
    measured : Measured
        The run.
    source : path
        File that it was read from.
    out : path
        Folder to write; an earlier result there is replaced.
    slo : Slo or None
        Limits that each request is held against.
    """
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    folder = ResultFolder(out, {"scenario_digest": digest, "fleetsim_version": __version__})
    try:
        figures = dict(measured.figures)
        if measured.requests is not None:
            batch, told = _rows(measured.requests, slo)
            folder.write("requests", batch)
            figures |= told
        if measured.gap_counts is not None:
            folder.write("gaps", _gaps(measured.gap_counts))
            figures |= {
                name: value for name, value in _gap_figures(measured.gap_counts).items() if figures.get(name) is None
            }
        folder.close_tables()
        row = {"run": digest[:12], "name": measured.name, "verdict": VERDICT, **_summary(figures)}
        folder.add_table("summary", table_of([row]))
        folder.add_table("groups", NO_GROUPS)
        folder.publish(_manifest(measured, source, digest, row, slo))
    except BaseException:
        folder.discard()
        raise
    return folder.out


def _manifest(measured: Measured, source: Path, digest: str, row: Mapping[str, Any], slo: Slo | None) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "fleetsim_version": __version__,
        "kind": "measured",
        "tool": measured.tool,
        "source_file": source.name,
        "scenario_digest": digest,
        "scenario_file": None,
        "scenario": {},
        "name": measured.name,
        "details": dict(measured.details),
        "slo": None if slo is None else slo.model_dump(mode="json", exclude_none=True),
        "seed": None,
        "status": "complete",
        "verdict": VERDICT,
        "verdict_reason": f"measured with {measured.tool}, not simulated",
        "warnings": [] if measured.requests is not None else ["the file has figures only, no requests"],
        "assumptions": [],
        "extrapolated": [],
        "summary": dict(row),
        "manifest": MANIFEST,
    }


def _rows(requests: Requests, slo: Slo | None) -> tuple[pa.RecordBatch, dict[str, Any]]:
    """The table, its rows in order of arrival, and the figures that it gives."""
    order = np.argsort(requests.arrival_s, kind="stable")  # NaN stay as they stand
    known = requests.arrival_s[~np.isnan(requests.arrival_s)]
    arrival = (requests.arrival_s - (known.min() if len(known) else 0.0))[order]
    finished = requests.finished[order]
    ttft, e2el, tpot = (
        np.where(finished, values[order], np.nan) for values in (requests.ttft_s, requests.e2el_s, requests.tpot_s)
    )
    prompts, outputs = requests.prompt_tokens[order], np.where(finished, requests.output_tokens[order], 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        ntpot = np.where(outputs > 0, e2el / outputs, np.nan)
    met = None if slo is None else slo_met(slo, [None] * len(order), finished, ttft, tpot, e2el)
    columns: dict[str, pa.Array] = {
        "request_id": column(np.arange(len(order)), None, pa.int64()),
        "status": array_of(["finished" if done else "failed" for done in finished.tolist()]),
        "reason": array_of([requests.reasons[place] for place in order.tolist()], pa.string()),
        "prompt_tokens": column(np.nan_to_num(prompts), np.isnan(prompts), pa.int64()),
        "output_tokens": column(np.nan_to_num(outputs), np.isnan(outputs), pa.int64()),
        "return_s": column(np.zeros(len(order))),
    }
    if requests.sessions is not None:
        columns["session_id"] = array_of([requests.sessions[place] for place in order.tolist()], pa.int64())
    if requests.turns is not None:
        columns["turn"] = array_of([requests.turns[place] for place in order.tolist()], pa.int32())
    largest = np.full(len(order), np.nan) if requests.itl_max_s is None else requests.itl_max_s[order]
    floats = {"arrival_s": arrival, "first_token_s": arrival + ttft, "end_s": arrival + e2el, "itl_max_s": largest}
    floats |= {"ttft_s": ttft, "tpot_s": tpot, "ntpot_s": ntpot, "e2el_s": e2el}
    columns |= {name: column(values, np.isnan(values)) for name, values in floats.items()}
    if met is not None:
        columns["slo_met"] = column(met)
    names = arrow_schema("requests").names
    batch = pa.RecordBatch.from_pydict(columns)
    batch = current_batch("requests", batch, names)
    return batch, _figures(floats, prompts, outputs, finished, met)


def _figures(
    values: Mapping[str, Floats],
    prompts: Floats,
    outputs: Floats,
    finished: np.ndarray[Any, np.dtype[np.bool_]],
    met: np.ndarray[Any, np.dtype[np.bool_]] | None,
) -> dict[str, Any]:
    figures: dict[str, Any] = {"requests": len(finished), "finished": int(finished.sum())}
    figures |= {"failed": len(finished) - figures["finished"], "measured_requests": len(finished), "skipped_rows": 0}
    for name in LATENCIES:
        ordered = values.get(f"{name}_s", np.zeros(0))
        ordered = ordered[~np.isnan(ordered)]
        if len(ordered):
            figures[f"{name}_mean_s"] = float(ordered.mean())
            told = percentiles(ordered, list(PERCENTILES.values()))
            figures |= {f"{name}_{label}_s": value for label, value in zip(PERCENTILES, told, strict=True)}
            low, high = batch_means_interval(ordered)
            figures |= {f"{name}_mean_ci_low_s": _number(low), f"{name}_mean_ci_high_s": _number(high)}
    figures["prompt_tokens"], figures["output_tokens"] = int(np.nansum(prompts)), int(np.nansum(outputs))
    figures["prompt_tokens_mean"], figures["output_tokens_mean"] = _mean(prompts), _mean(outputs)
    span_s = float(np.nanmax(values["end_s"])) if np.isfinite(values["end_s"]).any() else 0.0
    if span_s > 0:
        done = int(np.nansum(prompts[finished]))
        rates = {"requests": figures["finished"], "prompt_tokens": done, "output_tokens": figures["output_tokens"]}
        figures |= {f"{name}_per_s": amount / span_s for name, amount in rates.items()}
        figures |= {"makespan_s": span_s, "total_tokens_per_s": (done + figures["output_tokens"]) / span_s}
    if met is not None:
        figures["slo_attainment_ratio"] = float(met.mean()) if len(met) else None
        low, high = batch_means_interval(met.astype(np.float64))
        figures["slo_attainment_ci_low_ratio"], figures["slo_attainment_ci_high_ratio"] = _number(low), _number(high)
        figures["goodput_requests_per_s"] = float(met.sum()) / span_s if span_s > 0 else None
    return figures


def _mean(values: Floats) -> float | None:
    return float(np.nanmean(values)) if np.isfinite(values).any() else None


def _summary(figures: Mapping[str, Any]) -> dict[str, Any]:
    """All that a measurement can have, in the order of a simulation's summary; None for what is not known."""
    named = [*FIGURES[:13]]
    for name in (*LATENCIES, "itl"):
        named += [f"{name}_{statistic}_s" for statistic in ("mean", *PERCENTILES)]
    named += FIGURES[13:]
    counted = dict.fromkeys(STATES, 0)
    return {name: figures.get(name, counted.get(name)) for name in dict.fromkeys([*named, *figures])}


def _gaps(counts: Sequence[int]) -> pa.RecordBatch:
    places = [place for place, count in enumerate(counts) if count]
    low = np.array([EDGES_S[place] if place else 0.0 for place in places])
    high = np.array([EDGES_S[place + 1] if place + 1 < BUCKETS else np.inf for place in places])
    told = {
        "low_s": column(low),
        "high_s": column(high),
        "count": column(np.array([counts[p] for p in places], np.int64)),
    }
    return current_batch("gaps", pa.RecordBatch.from_pydict(told), arrow_schema("gaps").names)


def _gap_figures(counts: Sequence[int]) -> dict[str, float]:
    """Percentiles of gaps, as a simulation tells them from the same histogram."""
    reached = np.cumsum(counts)
    figures = {}
    for label, ratio in PERCENTILES.items():
        place = int(np.searchsorted(reached, ratio * reached[-1]))
        figures[f"itl_{label}_s"] = (EDGES_S[place] * EDGES_S[place + 1]) ** 0.5
    return figures


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
