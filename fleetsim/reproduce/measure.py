"""One run of an arm, and what its metrics say."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from math import exp, log
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fleetsim.errors import Finding, ScenarioError, nearest
from fleetsim.experiment.run import Result, run
from fleetsim.plugins import allowing_imports
from fleetsim.reproduce.functions import named
from fleetsim.reproduce.paper import Capacity, Metric, PaperFile, load_paper

Floats = np.ndarray[Any, np.dtype[np.float64]]


def measure(
    path: Path, arm: str, seed: int, metrics: Sequence[Metric], allow_import: bool = False
) -> dict[str, float | None]:
    """Run an arm once (as often as a capacity needs); its metrics by their place in `metrics`."""
    file = load_paper(path)
    with TemporaryDirectory(prefix="fleetsim-") as name, allowing_imports(allow_import):
        folder = Path(name)
        made = make_traces(file, seed, folder)
        values: dict[str, float | None] = {}
        plain = [(place, metric) for place, metric in enumerate(metrics) if metric.capacity is None]
        if plain:
            loaded = file.loaded(arm, seed, made, {})
            result = run(loaded, folder / "run", allow_import=allow_import)
            warmup_ratio = loaded.scenario.run.warmup_ratio
            values |= {str(place): value_of(result, metric, warmup_ratio) for place, metric in plain}
        for place, metric in enumerate(metrics):
            if metric.capacity is not None:
                values[str(place)] = _capacity(file, arm, seed, made, metric.capacity, folder, allow_import)
    return values


def make_traces(file: PaperFile, seed: int, folder: Path) -> dict[str, Path]:
    """Make the paper's traces in `folder`; the same for every arm."""
    made = {}
    for name, recipe in file.paper.traces.items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        made[name] = folder / f"{name}.parquet"
        pq.write_table(named(recipe.function, "trace")(rng, **recipe.arguments), made[name])
    return made


def _capacity(
    file: PaperFile, arm: str, seed: int, made: Mapping[str, Path], wanted: Capacity, folder: Path, allow_import: bool
) -> float:
    """The highest rate that keeps the limit, by bisection of its logarithm."""

    def keeps(rate: float) -> bool:
        text = f"{rate!r} req/s" if wanted.path.endswith("rate") else rate
        loaded = file.loaded(arm, seed, made, {wanted.path: text})
        result = run(loaded, folder / f"at-{rate!r}", allow_import=allow_import)
        enough = all((_summary(result, key) or 0.0) >= limit for key, limit in wanted.at_least.items())
        return enough and all(_at_most(_summary(result, key), limit) for key, limit in wanted.at_most.items())

    low, high = wanted.low, wanted.high
    if not keeps(low):
        return low
    if keeps(high):
        return high
    while high / low > 1 + wanted.tolerance:
        middle = exp((log(low) + log(high)) / 2)
        low, high = (middle, high) if keeps(middle) else (low, middle)
    return low


def _at_most(value: float | None, limit: float) -> bool:
    return value is not None and value <= limit


def value_of(result: Result, metric: Metric, warmup_ratio: float = 0.0) -> float | None:
    """What a metric says of a finished run; None where there is nothing to average."""
    if metric.function is not None:
        return float(named(metric.function, "figure")(result, **metric.arguments))
    if metric.summary is not None:
        return _summary(result, metric.summary)
    return _of_column(result, metric, warmup_ratio)


def _summary(result: Result, key: str) -> float | None:
    if key.startswith("class."):
        return _of_class(result, key)
    if key not in result.summary:
        raise ScenarioError(Finding(f'the summary has no "{key}"', hint=nearest(key, result.summary, "figures")))
    value = result.summary[key]
    return None if value is None else float(value)


def _of_class(result: Result, key: str) -> float | None:
    """Figure of one class of requests: ``class.NAME.FIGURE``."""
    name, _, figure = key.removeprefix("class.").rpartition(".")
    rows = {str(row["value"]): row for row in result.groups if row["by"] == "class"}
    if name not in rows:
        raise ScenarioError(Finding(f'no requests are of class "{name}"', hint=nearest(name, rows, "classes")))
    if figure not in rows[name]:
        raise ScenarioError(Finding(f'a class has no "{figure}"', hint=nearest(figure, rows[name], "figures")))
    value = rows[name][figure]
    return None if value is None else float(value)


def _of_column(result: Result, metric: Metric, warmup_ratio: float) -> float | None:
    assert metric.column is not None
    weights = {metric.column: 1.0} if isinstance(metric.column, str) else metric.column
    table = result.requests().sort_by("arrival_s")
    if metric.total or metric.share:
        values = np.nan_to_num(_weighted(table, weights))
        chosen = float(values[_members(table, metric)].sum())
        return chosen if metric.total else chosen / float(values.sum()) if values.sum() else None
    table = table.slice(int(warmup_ratio * len(table)))
    values = _weighted(table, weights)[_members(table, metric)]
    if metric.share_below is not None:
        return float((values <= metric.share_below).mean()) if len(values) else None  # NaN is not below
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    return float(values.mean() if metric.quantile is None else np.quantile(values, metric.quantile))


def _weighted(table: pa.Table, weights: Mapping[str, float]) -> Floats:
    return np.sum([weight * _floats(table[name]) for name, weight in weights.items()], axis=0)  # type: ignore[no-any-return]


def _members(table: pa.Table, metric: Metric) -> np.ndarray[Any, np.dtype[np.bool_]]:
    chosen = np.ones(len(table), dtype=bool)
    for name, wanted in metric.where.items():
        if isinstance(wanted, str):
            chosen &= pc.equal(table[name].cast(pa.string()), wanted).fill_null(False).to_numpy(zero_copy_only=False)
        else:
            values = _floats(table[name])
            chosen &= (values >= wanted[0]) & (values < wanted[1])
    return chosen


def _floats(column: pa.ChunkedArray) -> Floats:
    return np.asarray(column.cast(pa.float64()).fill_null(float("nan")).to_numpy(), dtype=np.float64)
