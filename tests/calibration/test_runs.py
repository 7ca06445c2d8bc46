"""Results of benchmark tools read back as what was written, and what is said where they cannot be."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fleetsim
from fleetsim.calibration.runs import Load, Run, Sent, read_runs
from fleetsim.errors import DataError
from fleetsim.results.export import export

from .conftest import aiperf_json, aiperf_lines, guidellm_json, sent, vllm_json

Saved = Callable[[str, Any], Path]


def with_times(load: Load) -> Run:
    """A run with times that no two requests share."""
    run = sent(load, 60)
    order = np.arange(60)
    return replace(run, ttft_s=0.05 + order * 1e-3, tpot_s=0.01 + order * 1e-5)


OPEN, CLOSED = Load(rate_per_s=8.0), Load(concurrency=4)


def same(found: Run, run: Run) -> None:
    assert found.detailed
    assert found.prompt_tokens.tolist() == run.prompt_tokens.tolist()
    assert found.output_tokens.tolist() == run.output_tokens.tolist()
    assert found.ttft_s == pytest.approx(run.ttft_s)
    assert found.tpot_s == pytest.approx(run.tpot_s)
    if run.arrival_s is None:
        assert found.arrival_s is None
        assert found.load.concurrency == run.load.concurrency
    else:
        assert found.arrival_s == pytest.approx(run.arrival_s - run.arrival_s[0], abs=1e-6)


@pytest.mark.parametrize("load", [OPEN, CLOSED], ids=str)
def test_detailed_vllm_and_guidellm(load: Load, saved: Saved) -> None:
    run = with_times(load)
    same(read_runs(saved("v.json", vllm_json(run, detailed=True)))[0], run)
    same(read_runs(saved("g.json", guidellm_json([run], detailed=True)))[0], run)


def test_aiperf_lines_leave_out_what_failed(saved: Saved) -> None:
    run = with_times(OPEN)
    same(read_runs(saved("profile_export.jsonl", aiperf_lines(run)))[0], run)


def test_a_closed_loop_can_be_told(saved: Saved) -> None:
    run = with_times(OPEN)
    found = read_runs(saved("profile_export.jsonl", aiperf_lines(run)), concurrency=7)[0]
    assert (found.load, found.arrival_s) == (Load(concurrency=7), None)


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
@pytest.mark.parametrize("columns", [("ttft_s", "tpot_s"), ("ttft_ms", "e2e_ms")])
def test_logs(suffix: str, columns: tuple[str, str], tmp_path: Path) -> None:
    run = with_times(OPEN)
    assert run.arrival_s is not None
    last = run.tpot_s if columns[1] == "tpot_s" else (run.ttft_s + run.tpot_s * (run.output_tokens - 1)) * 1e3
    values = {
        "arrival_s": run.arrival_s.tolist(),
        "prompt_tokens": run.prompt_tokens.tolist(),
        "output_tokens": run.output_tokens.tolist(),
        columns[0]: (run.ttft_s * (1.0 if columns[0] == "ttft_s" else 1e3)).tolist(),
        columns[1]: last.tolist(),
    }
    path = tmp_path / f"log{suffix}"
    table = pa.table(values)
    if suffix == ".parquet":
        pq.write_table(table, path)
    elif suffix == ".csv":
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(values))
            writer.writeheader()
            writer.writerows(table.to_pylist())
    else:
        import json

        path.write_text("\n".join(json.dumps(row) for row in table.to_pylist()))
    same(read_runs(path)[0], run)


def test_summaries_keep_means_and_load(saved: Saved) -> None:
    run = with_times(CLOSED)
    for name, content in (("v", vllm_json(run, False)), ("g", guidellm_json([run], False)), ("a", aiperf_json(run))):
        found = read_runs(saved(f"{name}.json", content))[0]
        assert not found.detailed
        assert found.load.concurrency == 4
        assert len(found.prompt_tokens) == 60
        assert found.prompt_tokens.mean() == pytest.approx(run.prompt_tokens.mean(), rel=0.01)
        assert found.output_tokens.mean() == pytest.approx(run.output_tokens.mean(), rel=0.01)
        assert float(found.ttft_s[0]) == pytest.approx(run.ttft_s.mean())
        weights = run.output_tokens - 1 if name == "g" else None
        assert found.by_token == (name == "g")
        assert float(found.tpot_s[0]) == pytest.approx(np.average(run.tpot_s, weights=weights))


def test_quantiles_of_lengths_are_kept(saved: Saved) -> None:
    run = with_times(CLOSED)
    found = read_runs(saved("a.json", aiperf_json(run)))[0]
    levels = (0.1, 0.5, 0.9)
    assert np.quantile(found.prompt_tokens, levels) == pytest.approx(np.quantile(run.prompt_tokens, levels), rel=0.05)


def test_several_results_in_one_file(saved: Saved) -> None:
    import json

    runs = [with_times(CLOSED), with_times(Load(concurrency=9))]
    path = saved("appended.json", "\n".join(json.dumps(vllm_json(run, False)) for run in runs))
    assert [found.load.concurrency for found in read_runs(path)] == [4, 9]
    path = saved("g.json", guidellm_json(runs, True))
    assert [found.load.concurrency for found in read_runs(path)] == [4, 9]


@pytest.mark.parametrize(("in_flight", "closed"), [(1.0, False), (31.0, True)])
def test_a_client_with_a_rate_and_a_limit(in_flight: float, closed: bool) -> None:
    settled = Load(concurrency=32, rate_per_s=2.0).settled(in_flight)
    assert (settled.concurrency is not None, settled.rate_per_s is not None) == (closed, not closed)


@given(st.floats(0.1, 100), st.integers(2, 200), st.sampled_from([0.5, 1.0, 4.0, math.inf]))
def test_generated_arrivals_keep_the_rate(rate: float, requests: int, burstiness: float) -> None:
    times = Load(rate_per_s=rate, burstiness=burstiness).arrivals_s(requests)
    assert np.all(np.diff(times) >= 0)
    last = (requests - 1 if math.isinf(burstiness) else requests) / rate
    assert times[-1] == pytest.approx(last)


@given(st.integers(1, 40), st.integers(1, 30))
def test_a_closed_loop_sends_every_request_once(requests: int, users: int) -> None:
    ones = np.ones(requests, np.int64)
    run = Run("r", Path("r"), Load(concurrency=users), ones, ones, None, np.ones(1), np.ones(1))
    workload = Sent(run)
    ids = [request.id for request in workload.requests()]
    assert len(ids) == min(requests, users)
    waiting = list(ids)
    while waiting:
        waiting.pop()
        following = workload.released_by(None, 1.0)  # type: ignore[arg-type]
        if following is not None:
            ids.append(following.id)
            waiting.append(following.id)
    assert ids == list(range(requests))


def broken(content: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    inner: Any = content
    for key in path[:-1]:
        inner = inner[int(key)] if key.isdigit() else inner[key]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return content


@pytest.mark.parametrize(
    ("content", "path", "value", "message"),
    [
        (lambda r: vllm_json(r, False), ("mean_tpot_ms",), None, "mean_tpot_ms: is missing"),
        (lambda r: vllm_json(r, False), ("completed",), -3, "completed: expected a number not below 1, found -3"),
        (lambda r: vllm_json(r, True), ("input_lens",), [1, 2], "input_lens: has 2 entries, the other lists 60"),
        (lambda r: vllm_json(r, True), ("itls",), "x", "itls: expected 60 lists of gaps"),
        (
            lambda r: guidellm_json([r], False),
            ("benchmarks", "0", "config", "strategy", "type_"),
            "odd",
            "unknown strategy 'odd'",
        ),
        (
            lambda r: guidellm_json([r], False),
            ("benchmarks", "0", "metrics"),
            None,
            "benchmarks[0].metrics: is missing",
        ),
        (aiperf_json, ("input_config",), {}, "input_config: does not say the load"),
        (aiperf_json, ("time_to_first_token", "unit"), "fortnights", "time_to_first_token.unit: expected ms"),
        (aiperf_json, ("inter_token_latency",), None, "inter_token_latency: is missing"),
        (lambda r: {"something": 1}, ("other",), 2, "is no result that can be read; its keys: something, other"),
    ],
)
def test_what_is_wrong_is_named(content: Any, path: tuple[str, ...], value: Any, message: str, saved: Saved) -> None:
    file = saved("bad.json", broken(content(with_times(CLOSED)), path, value))
    with pytest.raises(DataError) as told:
        read_runs(file)
    assert message in str(told.value)
    assert "bad.json" in str(told.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", "is not JSON"),
        ("a.json", "", "is empty"),
        ("a.json", "[1, 2]", "expected JSON objects"),
        ("a.parquet", "no parquet", "cannot be read"),
        ("a.csv", "arrival_s,prompt_tokens,output_tokens\n1,2,3\n", "ttft_s: is missing"),
        ("a.csv", "arrival_s,prompt_tokens,output_tokens,ttft_s\n1,2,3,4\n", "tpot_s: is missing"),
        ("a.csv", "arrival_s,prompt_tokens,output_tokens,ttft_s,tpot_s\n1,2,3,4,5\n", "fewer than two requests"),
        (
            "a.csv",
            "arrival_s,prompt_tokens,output_tokens,ttft_s,tpot_s\nx,2,3,4,5\n",
            "arrival_s: expected a list of numbers",
        ),
    ],
)
def test_files_that_are_none(name: str, text: str, message: str, saved: Saved) -> None:
    with pytest.raises(DataError, match=message):
        read_runs(saved(name, text))


def test_what_a_run_exports_as_a_benchmark_reads_back(tmp_path: Path) -> None:
    """Requests in flight, lengths and times of `fleetsim export --format vllm-bench`, which knows latencies and no gaps."""
    scenario = {
        "schema": 1,
        "name": "server",
        "workload": {
            "kind": "synthetic",
            "requests": 40,
            "arrivals": {"process": "closed-loop", "concurrency": 4},
            "prompt_tokens": {"distribution": "lognormal", "mean": 200, "cv": 0.5, "min": 8, "max": 900},
            "output_tokens": {"distribution": "lognormal", "mean": 20, "cv": 0.5, "min": 1, "max": 90},
        },
        "pools": [{"name": "main", "llm": "llama-3.1-8b", "accelerator": "h100-sxm"}],
    }
    result = fleetsim.run(scenario, tmp_path / "run")
    [file] = export(result.out, "vllm-bench", tmp_path / "bench.json").files
    [run] = read_runs(file)
    assert run.load.concurrency == 4
    rows = result.requests().sort_by("arrival_s")
    assert sorted(run.prompt_tokens.tolist()) == sorted(rows["prompt_tokens"].to_pylist())
    assert sorted(run.ttft_s.tolist()) == pytest.approx(sorted(rows["ttft_s"].to_pylist()))
    told = sorted(t for t in rows["tpot_s"].to_pylist() if t is not None)
    assert sorted(run.tpot_s[np.isfinite(run.tpot_s)].tolist()) == pytest.approx(told)
