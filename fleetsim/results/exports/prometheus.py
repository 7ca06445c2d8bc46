"""Time series in OpenMetrics text under vLLM's metric names, as ``promtool tsdb create-blocks-from openmetrics`` reads them.

Gauges and counters are told per replica (label ``engine``) at the end of every interval of the table of replicas; histograms of
latencies per pool, with vLLM's buckets, cumulative at the end of every interval. ``vllm:kv_cache_usage_perc`` is 0 to 1 there too.
What vLLM has no name for begins with ``fleetsim:``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from fleetsim.errors import InputError
from fleetsim.metrics.columns import values_of
from fleetsim.metrics.statistics import Floats
from fleetsim.results.exports.files import complete
from fleetsim.results.exports.options import Options, Written
from fleetsim.results.folder import Results, Run

_GAUGES = {
    "vllm:num_requests_running": ("running", "Number of requests in model execution batches."),
    "vllm:num_requests_waiting": ("waiting", "Number of requests waiting to be processed."),
    "vllm:kv_cache_usage_perc": ("kv_used_ratio", "KV-cache usage. 1 means 100 percent usage."),
    "fleetsim:busy_ratio": ("busy_ratio", "Share of the interval in which a step ran."),
    "fleetsim:power_watts": ("power_w", "Mean power of the replica's accelerators in the interval."),
}
_COUNTERS = {
    "vllm:prompt_tokens": ("prompt_tokens", "Number of prefill tokens processed."),
    "vllm:generation_tokens": ("output_tokens", "Number of generation tokens processed."),
}
_OF_POOLS = {
    "fleetsim:replicas_ready": ("replicas_ready", "Replicas that are ready."),
    "fleetsim:replicas_wanted": ("replicas_wanted", "Replicas that were asked for."),
    "fleetsim:cost_usd_per_hour": ("cost_usd_per_h", "Price of the replicas that are paid for."),
}
_TTFT = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0,
    640.0, 2560.0,
)  # fmt: skip
_TPOT = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_LATENCY = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0,
    7680.0,
)  # fmt: skip
_HISTOGRAMS = {
    "vllm:time_to_first_token_seconds": ("ttft_s", "first_token_s", _TTFT, "Time to first token, from the client."),
    "vllm:request_time_per_output_token_seconds": ("tpot_s", "end_s", _TPOT, "Mean gap between tokens of a request."),
    "vllm:e2e_request_latency_seconds": ("e2el_s", "end_s", _LATENCY, "End-to-end latency, from the client."),
    "vllm:request_queue_time_seconds": ("queue_wait_s", "first_scheduled_s", _LATENCY, "Time in the replica's queue."),
}
"""Metric -> our column, when it is observed, vLLM's buckets, help."""
_SUCCESS = "vllm:request_success"


def write(results: Results, run: Run, out: Path, options: Options) -> Written:
    """Write the series of one run."""
    replicas = results.table("replicas", run)
    if not len(replicas):
        raise InputError(f"{run.label}: it has no table of replicas, so there are no time series to write")
    with complete(out) as file:
        _of_replicas(file, replicas, options)
        _of_pools(file, results.table("fleet", run), options)
        _of_requests(file, results, run, np.unique(_floats(replicas, "end_s")), options)
        file.write("# EOF\n")
    return Written([out])


def _of_replicas(file: IO[str], table: pa.Table, options: Options) -> None:
    """Gauges and counters, one series after the other: a family's samples must not be mixed."""
    numbers, ends = _floats(table, "replica").astype(np.int64), _floats(table, "end_s")
    order = np.lexsort((ends, numbers))
    pools, models = table["pool"].to_pylist(), table["model"].to_pylist()
    labels: dict[int, str] = {}
    for place in order.tolist():  # a replica is told by the model that it holds first
        if models[place] is not None:
            labels.setdefault(
                int(numbers[place]), _labels(engine=str(numbers[place]), model_name=models[place], pool=pools[place])
            )
    for family, (column, text) in _GAUGES.items():
        _family(file, family, "gauge", text)
        values = _floats(table, column)
        for place in order.tolist():
            if (told := labels.get(int(numbers[place]))) is not None:
                _sample(file, family, told, values[place], options.epoch_ns(float(ends[place])))
    for family, (column, text) in _COUNTERS.items():
        _family(file, family, "counter", text)
        values, sums = _floats(table, column), dict.fromkeys(labels, 0.0)
        for place in order.tolist():
            number = int(numbers[place])
            if number in sums:
                sums[number] += values[place]
                _sample(file, f"{family}_total", labels[number], sums[number], options.epoch_ns(float(ends[place])))


def _of_pools(file: IO[str], table: pa.Table, options: Options) -> None:
    pools, ends = np.array(table["pool"].to_pylist(), dtype=object), _floats(table, "end_s")
    for family, (column, text) in _OF_POOLS.items():
        _family(file, family, "gauge", text)
        values = _floats(table, column)
        for pool in dict.fromkeys(pools):
            for place in np.flatnonzero(pools == pool).tolist():
                _sample(file, family, _labels(pool=pool), values[place], options.epoch_ns(float(ends[place])))


def _of_requests(file: IO[str], results: Results, run: Run, ends: Floats, options: Options) -> None:
    """Histograms of latencies and the requests that finished, by pool, cumulative at the end of every interval."""
    for family, (column, when, bounds, text) in _HISTOGRAMS.items():
        _family(file, family, "histogram", text)
        for pool, (counts, sums) in _observed(results, run, (column, when), bounds, ends).items():
            labels = _labels(pool=pool)
            running, total = np.cumsum(np.cumsum(counts, axis=0), axis=1), np.cumsum(sums)
            for place, end_s in enumerate(ends.tolist()):
                for bound, count in zip((*map(str, bounds), "+Inf"), running[place].tolist(), strict=True):
                    _sample(file, f"{family}_bucket", _labels(pool=pool, le=bound), count, options.epoch_ns(end_s))
                _sample(file, f"{family}_count", labels, running[place, -1], options.epoch_ns(end_s))
                _sample(file, f"{family}_sum", labels, total[place], options.epoch_ns(end_s))
    _family(file, _SUCCESS, "counter", "Count of successfully processed requests.")
    for pool, (counts, _) in _observed(results, run, ("e2el_s", "end_s"), (), ends).items():
        labels = _labels(finished_reason="length", pool=pool)
        for end_s, count in zip(ends.tolist(), np.cumsum(counts[:, 0]).tolist(), strict=True):
            _sample(file, f"{_SUCCESS}_total", labels, count, options.epoch_ns(end_s))


def _observed(
    results: Results, run: Run, columns: tuple[str, str], bounds: tuple[float, ...], ends: Floats
) -> Mapping[str, tuple[Floats, Floats]]:
    """By pool: how many values fell into each bucket in each interval, and their sum in it."""
    found: dict[str, tuple[Floats, Floats]] = {}
    for pool, values, times in _by_pool(results, run, columns):
        counts, sums = found.setdefault(pool, (np.zeros((len(ends), len(bounds) + 1)), np.zeros(len(ends))))
        known = ~np.isnan(values) & ~np.isnan(times)
        rows = np.minimum(np.searchsorted(ends, times[known], side="left"), len(ends) - 1)
        np.add.at(counts, (rows, np.searchsorted(bounds, values[known], side="left")), 1.0)
        np.add.at(sums, rows, values[known])
    return found


def _by_pool(results: Results, run: Run, columns: tuple[str, str]) -> Iterator[tuple[str, Floats, Floats]]:
    for batch in results.scan("requests", ["pool", *columns], run):
        pools = np.array(batch.column(0).to_pylist(), dtype=object)
        values, times = (np.asarray(values_of(batch.column(place)), dtype=np.float64) for place in (1, 2))
        for pool in dict.fromkeys(pools):
            if pool is not None:
                chosen = pools == pool
                yield pool, values[chosen], times[chosen]


def _family(file: IO[str], name: str, kind: str, text: str) -> None:
    file.write(f"# TYPE {name} {kind}\n# HELP {name} {text}\n")


def _sample(file: IO[str], name: str, labels: str, value: float, time_ns: int) -> None:
    if value == value:
        seconds, rest = divmod(
            time_ns, 1_000_000_000
        )  # a float of today's seconds tells no more than some 200 ns apart
        file.write(f"{name}{labels} {float(value)!r} {seconds}.{rest:09d}\n")


def _labels(**labels: Any) -> str:
    told = (f'{name}="{_escaped(str(value))}"' for name, value in labels.items())
    return "{" + ",".join(told) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _floats(table: pa.Table, column: str) -> Floats:
    return np.asarray(values_of(table[column]), dtype=np.float64)
