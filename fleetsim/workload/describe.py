"""What a trace file holds: counts, rates, lengths, burstiness, sessions, prefix reuse."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fleetsim.errors import DataError, Finding
from fleetsim.workload.formats import FORMATS, TraceFile, detect_format, locate
from fleetsim.workload.prefix_reuse import EndlessCache
from fleetsim.workload.readers.rows import BadRows, Row

_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
_WINDOWS_S = (1, 10, 60)
"""Windows of the index of dispersion."""
_TOP = 5

Numbers = npt.NDArray[Any]


def opened(path: Path | str, name: str | None = None) -> TraceFile:
    """A trace file (or ``embedded:NAME``) of the named format, or of the one that its first lines show.

    Raises
    ------
    DataError
        If it cannot be read, or no format fits.
    """
    path = locate(str(path), Path())
    found = name or detect_format(path)
    if found is None:
        known = ", ".join(FORMATS)
        raise DataError(Finding("is not a trace of a known format", file=str(path), hint=f"known formats: {known}"))
    return TraceFile.open(path, found)


def describe_trace(path: Path | str, name: str | None = None) -> dict[str, Any]:
    """Figures of a trace, ready for JSON; bad rows are counted and the first ones shown.

    Parameters
    ----------
    path
        Trace file.
    name
        Its format; None to find out.

    Raises
    ------
    DataError
        If the file cannot be read or holds no good row.
    """
    trace = opened(path, name)
    bad = BadRows()
    figures = _Figures()
    for row in trace.rows(bad):
        figures.add(row)
    if not figures.prompts:
        raise bad.refusal(trace.path, binary=trace.format == "parquet") if bad.count else _no_rows(trace)
    return {
        "path": str(trace.path),
        "format": trace.format,
        "bad_rows": bad.count,
        "late_rows": bad.late,
        "bad_rows_first": [{"row": number, "message": message} for number, message in bad.first],
        **figures.told(),
    }


def _no_rows(trace: TraceFile) -> DataError:
    return DataError(Finding("has no rows", file=str(trace.path)))


class _Figures:
    """Figures gathered row by row: lengths and times as packed numbers, everything else as counts."""

    def __init__(self) -> None:
        self.times = array("d")
        self.prompts = array("q")
        self.outputs = array("q")
        self._pauses = array("d")
        self._turns: Counter[Hashable] = Counter()
        self._names: dict[str, Counter[str]] = {"classes": Counter(), "tenants": Counter(), "models": Counter()}
        self._cache = EndlessCache()
        self._hashed = 0
        self._block_tokens: set[int] = set()

    def add(self, row: Row) -> None:
        """Take one more row."""
        self.times.append(row.time_s)
        self.prompts.append(row.prompt_tokens)
        self.outputs.append(row.output_tokens)
        if row.hashes or row.session is not None:
            self._cache.add(row)
        if row.hashes:
            self._hashed += 1
            self._block_tokens.add(row.hash_tokens)
        if row.session is not None:
            self._turns[row.session] += 1
        if row.pause_s is not None:
            self._pauses.append(row.pause_s)
        for kind, value in (("classes", row.klass), ("tenants", row.tenant), ("models", row.model)):
            if value is not None:
                self._names[kind][value] += 1

    def told(self) -> dict[str, Any]:
        """The figures by name."""
        prompts, outputs = np.frombuffer(self.prompts, np.int64), np.frombuffer(self.outputs, np.int64)
        told: dict[str, Any] = {
            "requests": len(prompts),
            "prompt_tokens_sum": int(prompts.sum()),
            "output_tokens_sum": int(outputs.sum()),
            **_arrivals(np.sort(np.frombuffer(self.times, np.float64))),
            "prompt_tokens": distribution(prompts),
            "output_tokens": distribution(outputs),
        }
        if self._cache.prompt_tokens:
            told["prefix"] = self._reuse(int(prompts.sum()))
        if self._turns:
            told["sessions"] = self._sessions()
        told |= {kind: _shares(names) for kind, names in self._names.items() if names}
        return told

    def _reuse(self, prompt_tokens: int) -> dict[str, Any]:
        cache = self._cache
        told: dict[str, Any] = {
            "source": "block hashes" if self._hashed else "session history",
            "requests": self._hashed,
        }
        told["hit_ratio"] = cache.cached_tokens / prompt_tokens
        if self._hashed:
            told |= {
                "block_tokens": sorted(self._block_tokens),
                "blocks": cache.blocks,
                "blocks_unique": cache.unique_blocks,
                "block_hit_ratio": cache.hit_blocks / cache.blocks if cache.blocks else 0.0,
            }
        return told

    def _sessions(self) -> dict[str, Any]:
        turns = np.fromiter(self._turns.values(), np.int64)
        told: dict[str, Any] = {"sessions": len(turns), "turns": distribution(turns)}
        if self._pauses:
            told["pause_s"] = distribution(np.frombuffer(self._pauses, np.float64))
        return told


def distribution(values: Numbers) -> dict[str, float]:
    """Mean, coefficient of variation, quantiles and extremes of some numbers."""
    mean = float(values.mean())
    levels = np.quantile(values, list(_QUANTILES.values())).tolist()
    return {
        "mean": mean,
        "cv": float(values.std()) / mean if mean else 0.0,
        "min": values.min().item(),
        **dict(zip(_QUANTILES, levels, strict=True)),
        "max": values.max().item(),
    }


def _arrivals(times: Numbers) -> dict[str, Any]:
    """Rate and burstiness."""
    span_s = float(times[-1] - times[0])
    told: dict[str, Any] = {"span_s": span_s, "rate_per_s": (len(times) - 1) / span_s if span_s > 0 else None}
    if span_s <= 0:
        return told
    gaps = np.diff(times)
    told["gap_cv"] = float(gaps.std() / gaps.mean())
    told["gap_s"] = distribution(gaps)
    told["zero_gap_ratio"] = float((gaps == 0).mean())
    told["dispersion"] = {f"{w}s": value for w in _WINDOWS_S if (value := _dispersion(times, float(w))) is not None}
    return told


def _dispersion(times: Numbers, window_s: float) -> float | None:
    """Variance over mean of the arrivals per window, over the trace's whole windows; None where they are too few."""
    windows = int((times[-1] - times[0]) / window_s)
    if windows < 10 or windows > 10**8:
        return None
    counts, _ = np.histogram(times - times[0], bins=windows, range=(0.0, windows * window_s))
    return float(counts.var(ddof=1) / counts.mean())


def _shares(names: Counter[str]) -> dict[str, Any]:
    total = names.total()
    return {"distinct": len(names), "top": {name: count / total for name, count in names.most_common(_TOP)}}
