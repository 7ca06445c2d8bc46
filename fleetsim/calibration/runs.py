"""Measured runs of a server, as benchmark tools and logs report them, in seconds and tokens.

Read are the JSON of ``vllm bench serve --save-result`` (with ``--save-detailed``, and several appended to one file),
GuideLLM's JSON (every benchmark of it), AIPerf's ``profile_export_aiperf.json`` and ``profile_export.jsonl``, and a log
with one row per request as CSV, Parquet or JSON lines.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fleetsim.errors import DataError, Finding
from fleetsim.workload.request import Request

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BUSY = 0.9
"""A client with both a rate and a limit of requests in flight is taken for a closed loop above this share of the limit."""
JITTER = 0.05
"""Spread of lengths of which only the mean is known: it breaks up the waves in which equal requests would go on for ever."""
FORMATS = "vllm bench serve, GuideLLM and AIPerf JSON, AIPerf JSON lines, or a log with arrival_s, prompt_tokens, output_tokens"


@dataclass(frozen=True)
class Load:
    """How a client sends requests: so many at a time, at a rate, or all at once."""

    concurrency: int | None = None
    """Requests in flight, a new one when one ends."""
    rate_per_s: float | None = None
    """Requests per second, whatever is in flight."""
    burstiness: float = 1.0
    """Shape of gamma-distributed gaps; infinite for equal ones."""

    def settled(self, in_flight: float) -> Load:
        """One or the other where a client has both, by how many requests were in flight on average."""
        if self.concurrency is None or self.rate_per_s is None:
            return self
        closed = in_flight >= BUSY * self.concurrency
        return replace(self, rate_per_s=None) if closed else replace(self, concurrency=None)

    def arrivals_s(self, requests: int) -> Floats:
        """Times of sending [s], where no end of another request decides; gaps are drawn, then scaled to the rate."""
        if self.rate_per_s is None:
            return np.zeros(requests)
        if math.isinf(self.burstiness):
            return np.arange(requests) / self.rate_per_s
        times = np.cumsum(np.random.default_rng(0).gamma(self.burstiness, 1.0, requests))
        scaled: Floats = times * (requests / self.rate_per_s / times[-1])
        return scaled

    def __str__(self) -> str:
        if self.concurrency is not None:
            return f"{self.concurrency} at a time"
        return "all at once" if self.rate_per_s is None else f"{self.rate_per_s:g} requests/s"


@dataclass(frozen=True)
class Run:
    """One measured run: what was sent, how, and how long it took."""

    name: str
    file: Path
    load: Load
    prompt_tokens: Ints
    """Of each request in the order of sending."""
    output_tokens: Ints
    arrival_s: Floats | None
    """Times of sending [s]; None where the end of another request decides."""
    ttft_s: Floats
    """Time to first token of each request, or its mean alone [s]."""
    tpot_s: Floats
    """Mean time per token after the first of each request (NaN where there is none), or its mean alone [s]."""
    by_token: bool = False
    """Whether the mean time per token is one over tokens, not over requests."""

    @property
    def detailed(self) -> bool:
        """Whether every request's times are known."""
        return len(self.ttft_s) == len(self.prompt_tokens) > 1

    @property
    def how(self) -> str:
        """How the requests are sent, for people."""
        recorded = self.arrival_s is not None and self.load == Load() and bool(self.arrival_s[-1])
        return "at the recorded times" if recorded else str(self.load)

    def first(self, requests: int) -> Run:
        """The same run cut to its first requests."""
        if len(self.prompt_tokens) <= requests:
            return self
        cut = slice(requests)
        return replace(
            self,
            prompt_tokens=self.prompt_tokens[cut],
            output_tokens=self.output_tokens[cut],
            arrival_s=None if self.arrival_s is None else self.arrival_s[cut],
            ttft_s=self.ttft_s[cut] if self.detailed else self.ttft_s,
            tpot_s=self.tpot_s[cut] if self.detailed else self.tpot_s,
        )


class Sent:
    """The requests of a measured run as a workload: at their times, or each user's next one when one ends.

    Parameters
    ----------
    run : Run
        What to send.
    chance : int
        0 sends at the very times; any other number shifts those that no end decides by up to one step of the engine, which
        shows how much of a result is chance.
    """

    skipped_rows = 0

    def __init__(self, run: Run, chance: int = 0) -> None:
        self._run = run
        self._next = 0
        times = (
            np.zeros(min(run.load.concurrency or 1, len(run.prompt_tokens))) if run.arrival_s is None else run.arrival_s
        )
        if chance:
            step_s = float(np.nanmean(run.tpot_s)) if np.isfinite(run.tpot_s).any() else 0.01
            times = np.sort(times + np.random.default_rng(chance).uniform(0.0, step_s, len(times)))
        self._times_s = times.tolist()

    def requests(self) -> Iterator[Request]:
        """Requests that no other one's end releases."""
        for time_s in self._times_s:
            yield self._request(time_s)

    def released_by(self, request: Request, now_s: float) -> Request | None:  # noqa: ARG002
        """The next request of a closed loop."""
        if self._run.arrival_s is not None or self._next == len(self._run.prompt_tokens):
            return None
        return self._request(now_s)

    def _request(self, time_s: float) -> Request:
        index = self._next
        self._next += 1
        return Request(index, time_s, int(self._run.prompt_tokens[index]), int(self._run.output_tokens[index]))


# --- fields, with one message when they are not as expected ------------------------------------------------------------


@dataclass(frozen=True)
class Fields:
    """A mapping of a file, read field by field."""

    content: Mapping[str, Any]
    file: Path
    path: str = ""

    def wrong(self, key: str, message: str, hint: str = "") -> DataError:
        """What to raise about a field."""
        return DataError(
            Finding(message, path=f"{self.path}.{key}" if self.path else key, file=str(self.file), hint=hint)
        )

    def part(self, key: str) -> Fields:
        """The mapping below a key."""
        inner = self.content.get(key)
        if not isinstance(inner, dict):
            raise self.wrong(key, "is missing" if inner is None else f"expected a mapping, found {inner!r:.60}")
        return Fields(inner, self.file, f"{self.path}.{key}" if self.path else key)

    def has(self, key: str) -> bool:
        """Whether a key is there and not null."""
        return self.content.get(key) is not None

    def number(self, key: str, lowest: float = 0.0) -> float:
        """Finite number of at least `lowest`."""
        value = self.content.get(key)
        if value is None:
            raise self.wrong(key, "is missing")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < lowest:
            raise self.wrong(key, f"expected a number not below {lowest:g}, found {value!r:.60}")
        return float(value)

    def numbers(self, key: str, length: int | None = None) -> Floats:
        """List of numbers; null is NaN."""
        values = self.content.get(key)
        if not isinstance(values, list) or not values:
            raise self.wrong(
                key, "is missing" if values is None else f"expected a list of numbers, found {values!r:.60}"
            )
        if length is not None and len(values) != length:
            raise self.wrong(key, f"has {len(values)} entries, the other lists {length}")
        try:
            return np.array([math.nan if v is None else v for v in values], dtype=np.float64)
        except (TypeError, ValueError):
            raise self.wrong(key, "expected a list of numbers") from None


def read_runs(file: Path, concurrency: int | None = None, rate_per_s: float | None = None) -> list[Run]:
    """The runs that a file holds.

    Parameters
    ----------
    file
        Result of a benchmark tool, or a log.
    concurrency, rate_per_s
        How the client sent, where the file does not say or should not be believed.

    Raises
    ------
    DataError
        If it cannot be read or lacks what is needed.
    """
    told = Load(concurrency, rate_per_s) if concurrency or rate_per_s else None
    documents = _documents(file)
    first = documents[0]
    if "metadata" in first and "metrics" in first:
        return [_aiperf_records(documents, file, told)]
    if "arrival_s" in first:
        return [_log(documents, file, told)]
    runs: list[Run] = []
    for number, document in enumerate(documents, 1):
        name = file.name if len(documents) == 1 else f"{file.name}, result {number}"
        runs += _runs_of(Fields(document, file), name, told)
    return runs


def _runs_of(fields: Fields, name: str, told: Load | None) -> list[Run]:
    if "benchmarks" in fields.content:
        return _guidellm(fields, name, told)
    if "time_to_first_token" in fields.content:
        return [_aiperf(fields, name, told)]
    if "mean_ttft_ms" in fields.content or "ttfts" in fields.content:
        return [_vllm(fields, name, told)]
    known = ", ".join(map(str, list(fields.content)[:8])) or "none"
    raise DataError(
        Finding(f"is no result that can be read; its keys: {known}", file=str(fields.file), hint=f"known: {FORMATS}")
    )


def _documents(file: Path) -> list[dict[str, Any]]:
    """Objects of a JSON file, or rows of a table."""
    try:
        if file.suffix == ".parquet":
            found: list[Any] = pq.read_table(file).to_pylist()
        elif file.suffix == ".csv":
            with file.open(encoding="utf-8-sig", newline="") as stream:
                found = [{k: _cell(v) for k, v in row.items()} for row in csv.DictReader(stream)]
        else:
            found = _json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(Finding(f"cannot be read: {error.strerror or error}", file=str(file))) from None
    except (pa.ArrowException, csv.Error, UnicodeDecodeError) as error:
        raise DataError(Finding(f"cannot be read: {str(error).splitlines()[0]}", file=str(file))) from None
    except json.JSONDecodeError as error:
        raise DataError(
            Finding(f"is not JSON: {error.msg}", file=str(file), line=error.lineno, column=error.colno)
        ) from None
    if not found:
        raise DataError(Finding("is empty", file=str(file), hint=f"known: {FORMATS}"))
    if not all(isinstance(document, dict) for document in found):
        raise DataError(Finding("expected JSON objects", file=str(file), hint=f"known: {FORMATS}"))
    return found


def _json(text: str) -> list[Any]:
    """One document, or several one after the other, whatever stands between them."""
    decoder, at, found = json.JSONDecoder(), 0, []
    text = text.strip()
    while at < len(text):
        document, at = decoder.raw_decode(text, at)
        found.append(document)
        while at < len(text) and text[at].isspace():
            at += 1
    return found


def _cell(text: str | None) -> float | str | None:
    try:
        return None if not text else float(text)
    except ValueError:
        return text


# --- tools -------------------------------------------------------------------------------------------------------------


def _vllm(fields: Fields, name: str, told: Load | None) -> Run:
    """``vllm bench serve --save-result``: means in ms; with ``--save-detailed`` lists in seconds."""
    rate = fields.content.get("request_rate")
    load = told or Load(
        int(fields.number("max_concurrency", 1)) if fields.has("max_concurrency") else None,
        None if rate in (None, "inf") else fields.number("request_rate", 1e-9),
        fields.number("burstiness", 1e-9) if fields.has("burstiness") else 1.0,
    )
    if fields.has("ttfts"):
        return _vllm_detailed(fields, name, load)
    completed = int(fields.number("completed", 1))
    prompt = np.full(completed, round(fields.number("total_input_tokens", 1) / completed), np.int64)
    output = _alike(completed, fields.number("total_output_tokens", 1) / completed)
    means = np.array([[fields.number("mean_ttft_ms", 1e-9) / 1e3], [fields.number("mean_tpot_ms") / 1e3]])
    return _run(name, fields.file, load, prompt, output, means)


def _vllm_detailed(fields: Fields, name: str, load: Load) -> Run:
    ttft = fields.numbers("ttfts")
    count = len(ttft)
    prompt, output = fields.numbers("input_lens", count), fields.numbers("output_lens", count)
    after_s = _after_first_s(fields, ttft)
    with np.errstate(divide="ignore", invalid="ignore"):
        tpot = np.where(output > 1, after_s / (output - 1), np.nan)
    starts = fields.numbers("start_times", count) if fields.has("start_times") else None
    return _kept(name, fields.file, load, prompt, output, np.stack([ttft, tpot]), starts)


def _after_first_s(fields: Fields, ttft: Floats) -> Floats:
    """Time from the first to the last token: the sum of the gaps, or what is left of the latencies where a file has no gaps [s]."""
    count = len(ttft)
    if not fields.has("itls") and fields.has("latencies"):
        return fields.numbers("latencies", count) - ttft
    gaps = fields.content.get("itls")
    if (
        not isinstance(gaps, list)
        or len(gaps) != count
        or not all(isinstance(gap, list) and all(type(g) in (int, float) for g in gap) for gap in gaps)
    ):
        raise fields.wrong("itls", f"expected {count} lists of gaps")
    return np.array([math.fsum(g) for g in gaps])


def _guidellm(fields: Fields, name: str, told: Load | None) -> list[Run]:
    """GuideLLM: one run per benchmark; the mean of its inter-token latency is over tokens."""
    benchmarks = fields.content["benchmarks"]
    if not isinstance(benchmarks, list) or not benchmarks:
        raise fields.wrong("benchmarks", "expected a list of benchmarks")
    runs = []
    for index, content in enumerate(benchmarks):
        if not isinstance(content, dict):
            raise fields.wrong(f"benchmarks[{index}]", "expected a mapping")
        one = Fields(content, fields.file, f"benchmarks[{index}]")
        settings = one.part("config" if one.has("config") else "args")
        load = told or _strategy(settings.part("strategy"))
        runs.append(_guidellm_run(one, f"{name}, benchmark {index + 1}", load))
    return runs


def _strategy(fields: Fields) -> Load:
    kind = fields.content.get("type_", fields.content.get("kind"))
    if kind == "synchronous":
        return Load(concurrency=1)
    if kind == "concurrent":
        return Load(concurrency=int(fields.number("streams", 1)))
    if kind == "throughput":
        return Load(int(fields.number("max_concurrency", 1)) if fields.has("max_concurrency") else None)
    if kind in ("constant", "poisson"):
        return Load(rate_per_s=fields.number("rate", 1e-9), burstiness=math.inf if kind == "constant" else 1.0)
    raise fields.wrong("type_", f"unknown strategy {kind!r}", "say how it sent: --concurrency or --rate")


def _guidellm_run(one: Fields, name: str, load: Load) -> Run:
    metrics = one.part("metrics")
    summaries = {
        key: metrics.part(key).part("successful")
        for key in ("time_to_first_token_ms", "inter_token_latency_ms", "prompt_token_count", "output_token_count")
    }
    ttft, tpot, prompt, output = summaries.values()
    count = int(ttft.number("count", 1))
    records = one.content.get("requests")
    listed = records.get("successful") if isinstance(records, dict) else None
    if isinstance(listed, list) and len(listed) >= max(0.95 * count, 2) and all(isinstance(r, dict) for r in listed):
        started = [r.get("request_start_time", r.get("start_time")) for r in listed]
        rows = {
            "prompt_tokens": [r.get("prompt_tokens") for r in listed],
            "output_tokens": [r.get("output_tokens") for r in listed],
            "ttft_ms": [r.get("time_to_first_token_ms") for r in listed],
            "tpot_ms": [r.get("inter_token_latency_ms") for r in listed],
            "start": started,
        }
        table = Fields(rows, one.file, f"{one.path}.requests.successful")
        times = np.stack([table.numbers("ttft_ms"), table.numbers("tpot_ms")]) / 1e3
        counts = table.numbers("prompt_tokens"), table.numbers("output_tokens")
        return _kept(name, one.file, load, *counts, times, table.numbers("start"))
    levels = {"p01": 1, "p05": 5, "p10": 10, "p25": 25, "p50": 50, "p75": 75, "p90": 90, "p95": 95, "p99": 99}
    lengths = (
        _lengths(prompt, prompt.part("percentiles"), levels, "mean", count, 0),
        _lengths(output, output.part("percentiles"), levels, "mean", count, 1),
    )
    means = np.array([[ttft.number("mean", 1e-9) / 1e3], [tpot.number("mean") / 1e3]])
    return replace(_run(name, one.file, load, *lengths, means), by_token=True)


def _aiperf(fields: Fields, name: str, told: Load | None) -> Run:
    """``profile_export_aiperf.json``: statistics of every metric with its unit, and the settings of the client."""
    count = int(fields.part("request_count").number("avg", 1))
    load = told or _aiperf_load(fields)
    levels = {f"p{p}": p for p in (1, 5, 10, 25, 50, 75, 90, 95, 99)}
    prompt, output = fields.part("input_sequence_length"), fields.part("output_sequence_length")
    lengths = (_lengths(prompt, prompt, levels, "avg", count, 0), _lengths(output, output, levels, "avg", count, 1))
    gap = fields.part("inter_token_latency")
    means = np.array([[_seconds(fields.part("time_to_first_token"))], [_seconds(gap)]])
    return _run(name, fields.file, load, *lengths, means)


def _aiperf_load(fields: Fields) -> Load:
    settings = fields.part("input_config")
    concurrency, rate = (_found(settings.content, keys) for keys in (("concurrency",), ("request_rate", "rate")))
    if concurrency is None and rate is None:
        raise fields.wrong("input_config", "does not say the load", "say how it sent: --concurrency or --rate")
    pattern = json.dumps(settings.content)
    return Load(None if concurrency is None else int(concurrency), rate, math.inf if '"constant"' in pattern else 1.0)


def _found(content: Any, keys: Sequence[str]) -> float | None:
    """The first number under one of `keys`, however deep: AIPerf's settings changed shape between versions."""
    if isinstance(content, dict):
        for key in keys:
            value = content.get(key)
            if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
                return float(value)
        content = [value for key, value in content.items() if "warmup" not in str(key)]
    if isinstance(content, list):
        for value in content:
            if isinstance(value, dict) and value.get("name") == "warmup":
                continue
            if (found := _found(value, keys)) is not None:
                return found
    return None


def _seconds(fields: Fields, key: str = "avg") -> float:
    factors = {"ms": 1e-3, "s": 1.0, "sec": 1.0, "us": 1e-6, "ns": 1e-9}
    unit = fields.content.get("unit")
    if not isinstance(unit, str) or unit not in factors:
        raise fields.wrong("unit", f"expected {', '.join(factors)}, found {unit!r}")
    return fields.number(key) * factors[unit]


def _aiperf_records(documents: Sequence[Mapping[str, Any]], file: Path, told: Load | None) -> Run:
    """``profile_export.jsonl``: one request per line, at its time of sending unless a closed loop is told."""
    rows: list[tuple[float, float, float, float, float]] = []
    for number, document in enumerate(documents, 1):
        fields = Fields(document, file, f"line {number}")
        metadata, metrics = fields.part("metadata"), fields.part("metrics")
        if metadata.content.get("benchmark_phase") == "warmup" or fields.has("error"):
            continue
        gap = _seconds(metrics.part("inter_token_latency"), "value") if metrics.has("inter_token_latency") else math.nan
        lengths = [metrics.part(f"{kind}_sequence_length").number("value") for kind in ("input", "output")]
        sent_s = metadata.number("request_start_ns") / 1e9
        rows.append((*lengths, _seconds(metrics.part("time_to_first_token"), "value"), gap, sent_s))  # type: ignore[arg-type]
    if not rows:
        raise DataError(Finding("has no request that succeeded", file=str(file)))
    prompt, output, ttft, tpot, starts = np.array(rows).T
    return _kept(file.name, file, told or Load(), prompt, output, np.stack([ttft, tpot]), starts, recorded=told is None)


def _log(rows: Sequence[Mapping[str, Any]], file: Path, told: Load | None) -> Run:
    """One row per request: arrival_s, prompt_tokens, output_tokens, ttft_s or ttft_ms, and tpot or e2e likewise."""
    table = Fields({key: [row.get(key) for row in rows] for key in rows[0]}, file)
    arrival, prompt, output = (table.numbers(key) for key in ("arrival_s", "prompt_tokens", "output_tokens"))
    ttft = _timed(table, "ttft")
    if ttft is None:
        raise table.wrong("ttft_s", "is missing", "a column ttft_s or ttft_ms is needed")
    tpot, e2e = _timed(table, "tpot"), _timed(table, "e2e")
    if tpot is None and e2e is None:
        raise table.wrong("tpot_s", "is missing", "a column tpot_s, tpot_ms, e2e_s or e2e_ms is needed")
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = np.where(output > 1, (e2e - ttft) / (output - 1), np.nan) if tpot is None and e2e is not None else tpot
    assert gap is not None
    return _kept(file.name, file, told or Load(), prompt, output, np.stack([ttft, gap]), arrival, recorded=told is None)


def _timed(table: Fields, name: str) -> Floats | None:
    for key, factor in ((f"{name}_s", 1.0), (f"{name}_ms", 1e-3)):
        if key in table.content:
            return table.numbers(key) * factor
    return None


def _alike(count: int, mean: float) -> Ints:
    """Output lengths of which only the mean is known."""
    spread = np.random.default_rng(2).uniform(1 - JITTER, 1 + JITTER, count)
    lengths: Ints = np.maximum(np.rint(mean * spread / spread.mean()), 1).astype(np.int64)
    return lengths


# --- from what was read to a run ---------------------------------------------------------------------------------------


def _lengths(fields: Fields, levels: Fields, known: Mapping[str, int], mean: str, count: int, stream: int) -> Ints:
    """Lengths like the quantiles of a summary, in random order; all alike where it has none."""
    points = {level / 100: levels.number(key) for key, level in known.items() if levels.has(key)}
    average = fields.number(mean, 1e-9)
    if len(points) < 2:
        return _alike(count, average)
    low = fields.number("min") if fields.has("min") else min(points.values())
    high = fields.number("max") if fields.has("max") else max(points.values())
    points = {0.0: low, **points, 1.0: high}
    values = np.interp((np.arange(count) + 0.5) / count, list(points), list(points.values()))
    values *= average / values.mean()  # straight lines between quantiles miss the mean a little
    drawn: Ints = np.random.default_rng(stream).permutation(np.maximum(np.rint(values), 1).astype(np.int64))
    return drawn


def _kept(
    name: str,
    file: Path,
    load: Load,
    prompt: Floats,
    output: Floats,
    times: Floats,
    starts: Floats | None = None,
    recorded: bool = True,
) -> Run:
    """A run with the requests that succeeded, in the order of sending."""
    good = (prompt >= 1) & (output >= 1) & (times[0] > 0) & np.isfinite(prompt + output + times[0])
    if starts is not None:
        good &= np.isfinite(starts)
    if good.sum() < 2:
        raise DataError(Finding("has fewer than two requests with lengths and a time to first token", file=str(file)))
    order = np.flatnonzero(good)
    if starts is not None:
        order = order[np.argsort(starts[order], kind="stable")]
    sent = None if starts is None else starts[order] - starts[order[0]]
    lengths = prompt[order].astype(np.int64), output[order].astype(np.int64)
    return _run(name, file, load, *lengths, times[:, order], sent if recorded else None)


def _run(
    name: str, file: Path, load: Load, prompt: Ints, output: Ints, times: Floats, starts: Floats | None = None
) -> Run:
    ttft, tpot = times
    span_s = float(starts[-1]) if starts is not None else 0.0
    rate = load.rate_per_s or (len(prompt) / span_s if span_s else 0.0)
    each_s = float(ttft.mean()) + float(np.nanmean(tpot) if np.isfinite(tpot).any() else 0.0) * float(output.mean() - 1)
    load = load.settled(rate * each_s)
    arrival = None
    if load.concurrency is None:
        arrival = starts if starts is not None else load.arrivals_s(len(prompt))
    return Run(name, file, load, prompt, output, arrival, ttft, tpot)
