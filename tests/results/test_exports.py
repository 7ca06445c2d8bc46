"""Runs in the formats of other tools: their figures are ours by the definitions of theirs, and their readers would take them."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

import fleetsim
from fleetsim.cli.main import cli
from fleetsim.errors import InputError
from fleetsim.results.export import FORMATS, export
from fleetsim.results.exports.options import Options
from fleetsim.results.folder import open_results

from .conftest import SCENARIO

SPLIT = {
    **SCENARIO,
    "name": "split",
    "pools": [
        {"name": "prompts", "llm": "llama-3.1-8b", "accelerator": "h100-sxm", "replicas": 1, "role": "prefill"},
        {"name": "tokens", "llm": "llama-3.1-8b", "accelerator": "h100-sxm", "replicas": 2, "role": "decode"},
    ],
}


def told(folder: Path, to_format: str, out: Path, **options: Any) -> Any:
    """What the only file of an export says."""
    (file,) = export(open_results(folder), to_format, out, options=Options(**options)).files
    return json.loads(file.read_text())


def requests(folder: Path) -> pa.Table:
    results = open_results(folder)
    return pa.Table.from_batches(results.scan("requests", run=results.runs[0])).sort_by("request_id")


def test_vllm_bench_has_figures_in_ms_and_lists_in_s(alone: Path, tmp_path: Path) -> None:
    file = told(alone, "vllm-bench", tmp_path / "r.json")
    summary = open_results(alone).runs[0].manifest["summary"]
    for theirs, ours in (("ttft", "ttft"), ("tpot", "tpot"), ("e2el", "e2el")):
        assert file[f"mean_{theirs}_ms"] == pytest.approx(summary[f"{ours}_mean_s"] * 1e3, rel=1e-9)
        assert file[f"median_{theirs}_ms"] == pytest.approx(summary[f"{ours}_p50_s"] * 1e3, rel=1e-9)
        assert file[f"p99_{theirs}_ms"] == pytest.approx(summary[f"{ours}_p99_s"] * 1e3, rel=1e-9)
    assert file["mean_itl_ms"] == pytest.approx(summary["itl_mean_s"] * 1e3)
    assert file["p99_itl_ms"] == pytest.approx(summary["itl_p99_s"] * 1e3, rel=1e-6)
    assert (file["completed"], file["failed"], file["num_prompts"]) == (120, 0, 120)
    assert file["duration"] == pytest.approx(summary["makespan_s"])
    assert file["output_throughput"] == pytest.approx(summary["output_tokens_per_s"])
    assert file["total_token_throughput"] == pytest.approx(summary["total_tokens_per_s"])
    assert file["request_goodput"] == summary["goodput_requests_per_s"]
    table = requests(alone)
    assert file["ttfts"] == table["ttft_s"].to_pylist()
    assert file["latencies"] == table["e2el_s"].to_pylist()
    assert file["input_lens"] == table["prompt_tokens"].to_pylist()
    assert file["start_times"] == sorted(table["arrival_s"].to_pylist())
    assert set(file["errors"]) == {""}


def test_the_warm_up_and_what_failed_are_left_out_of_latencies(tmp_path: Path) -> None:
    scenario = {**SCENARIO, "run": {"warmup_ratio": 0.25, "horizon": "5 s"}}
    out = fleetsim.run(scenario, out=tmp_path / "o").out
    file = told(out, "vllm-bench", tmp_path / "r.json")
    summary = open_results(out).runs[0].manifest["summary"]
    table = requests(out).sort_by("arrival_s").to_pylist()[summary["requests"] // 4 :]
    unfinished = sum(row["status"] == "unfinished" for row in table)
    assert 0 < unfinished < summary["requests"]
    assert file["num_prompts"] == summary["measured_requests"] == len(file["ttfts"]) == len(table)
    assert file["failed"] == unfinished == sum(error == "unfinished" for error in file["errors"])
    finished = [ttft for ttft, error in zip(file["ttfts"], file["errors"], strict=True) if not error]
    assert file["mean_ttft_ms"] == pytest.approx(np.mean(finished) * 1e3)
    assert all(ttft == 0 for ttft, error in zip(file["ttfts"], file["errors"], strict=True) if error)


def test_aiperf_has_figures_and_one_record_per_request(alone: Path, tmp_path: Path) -> None:
    written = export(
        open_results(alone), "aiperf", tmp_path / "a", options=Options(start=datetime(2026, 3, 1, tzinfo=UTC))
    )
    assert [file.name for file in written.files] == ["profile_export_aiperf.json", "profile_export.jsonl"]
    figures = json.loads(written.files[0].read_text())
    records = [json.loads(line) for line in written.files[1].read_text().splitlines()]
    summary = open_results(alone).runs[0].manifest["summary"]
    assert figures["time_to_first_token"]["p99"] == pytest.approx(summary["ttft_p99_s"] * 1e3, rel=1e-9)
    assert figures["inter_token_latency"]["avg"] == pytest.approx(summary["tpot_mean_s"] * 1e3, rel=1e-9)
    assert figures["request_throughput"] == {"unit": "requests/sec", "avg": pytest.approx(summary["requests_per_s"])}
    assert figures["benchmark_duration"]["avg"] == pytest.approx(summary["makespan_s"])
    assert figures["start_time"].startswith("2026-03-01T00:00:00")
    assert len(records) == 120
    by_id = {int(record["metadata"]["x_request_id"]): record for record in records}
    base_ns = 1772323200 * 10**9
    for row in requests(alone).to_pylist():
        record = by_id[row["request_id"]]
        start_ns, end_ns = (record["metadata"][name] for name in ("request_start_ns", "request_end_ns"))
        assert start_ns - base_ns == round(row["arrival_s"] * 1e9)
        assert end_ns - start_ns == round(row["e2el_s"] * 1e9)
        assert record["metrics"]["time_to_first_token"] == {"value": row["ttft_s"] * 1e3, "unit": "ms"}
        assert ("inter_token_latency" in record["metrics"]) is (row["output_tokens"] > 1)
        assert record["error"] is None


LLM_D = {
    "": {"version", "run", "scenario", "results"},
    "run": {"uid", "eid", "cid", "pid", "time", "user", "description", "keywords"},
    "scenario": {"stack", "load"},
    "scenario.load": {"metadata", "standardized", "native"},
    "results": {"request_performance", "session_performance", "observability", "profiling", "component_health"},
    "results.request_performance": {"aggregate", "time_series"},
    "results.request_performance.aggregate": {"requests", "latency", "throughput"},
    "results.request_performance.aggregate.requests": {
        "total", "failures", "incomplete", "input_length", "output_length", "request_size", "multimodal",
    },
    "results.request_performance.aggregate.latency": {
        "time_to_first_token", "normalized_time_per_output_token", "time_per_output_token", "inter_token_latency",
        "request_latency",
    },
    "results.request_performance.aggregate.throughput": {
        "input_token_rate", "output_token_rate", "total_token_rate", "request_rate", "image_rate", "video_rate", "audio_rate",
    },
}  # fmt: skip
"""Fields that version 0.2.1 has at each place; it allows no others there."""
UNITS = {"count", "percent", "s", "s/token", "tokens/s", "queries/s", "Watts"}
"""Of those that it has, the ones that we use."""


def test_llm_d_report_has_the_fields_of_its_schema_and_no_others(alone: Path, tmp_path: Path) -> None:
    report = told(alone, "llm-d", tmp_path / "r.json")
    for path, fields in LLM_D.items():
        place = report
        for name in filter(None, path.split(".")):
            place = place[name]
        assert set(place) <= fields, path
    assert report["version"] == "0.2.1"
    aggregate = report["results"]["request_performance"]["aggregate"]
    summary = open_results(alone).runs[0].manifest["summary"]
    assert aggregate["requests"]["total"] == 120
    for theirs, ours in (
        ("time_to_first_token", "ttft"),
        ("time_per_output_token", "tpot"),
        ("request_latency", "e2el"),
    ):
        assert aggregate["latency"][theirs]["mean"] == pytest.approx(summary[f"{ours}_mean_s"], rel=1e-9)
        assert aggregate["latency"][theirs]["p99"] == pytest.approx(summary[f"{ours}_p99_s"], rel=1e-9)
    assert aggregate["latency"]["normalized_time_per_output_token"]["p50"] == pytest.approx(summary["ntpot_p50_s"])
    assert aggregate["throughput"]["output_token_rate"]["mean"] == pytest.approx(summary["output_tokens_per_s"])
    stack = {component["metadata"]["label"]: component["standardized"] for component in report["scenario"]["stack"]}
    assert set(stack) == {"fast", "cheap"}
    assert stack["fast"]["accelerator"] == {
        "model": "h100-sxm",
        "count": 1,
        "parallelism": {"tp": 1, "dp": 1, "ep": 1, "pp": 1},
    }
    observed = {each["component_label"]: each for each in report["results"]["observability"]["components"]}
    assert set(observed) == set(stack)
    assert 0 < observed["fast"]["aggregate"]["kv_cache_usage"]["mean"] <= 100
    assert {unit for unit in _units(report)} <= UNITS


def _units(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["units"]] if isinstance(node.get("units"), str) else []
        return own + [unit for child in node.values() for unit in _units(child)]
    return [unit for child in node for unit in _units(child)] if isinstance(node, list) else []


def test_mooncake_trace_reads_back_with_the_arrivals_of_the_run(alone: Path, tmp_path: Path) -> None:
    (file,) = export(open_results(alone), "mooncake", tmp_path / "t.jsonl").files
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    table = requests(alone)
    assert [row["input_length"] for row in rows] == table["prompt_tokens"].to_pylist()
    assert [row["output_length"] for row in rows] == table["output_tokens"].to_pylist()
    assert [row["timestamp"] for row in rows] == [round(time_s * 1e3) for time_s in table["arrival_s"].to_pylist()]
    replay = {**SCENARIO, "workload": {"kind": "trace", "path": str(file), "format": "mooncake"}}
    again = fleetsim.run(replay, out=tmp_path / "again")
    assert again.summary["prompt_tokens"] == open_results(alone).runs[0].manifest["summary"]["prompt_tokens"]


def parsed(parser: Any, text: str) -> dict[str, Any]:
    """Families by name; histograms as they stand at the end.

    The parser takes samples for duplicates where a histogram has several points in time, so it is given one point at a time.
    """
    assert text.endswith("# EOF\n")
    lines = text.splitlines()[:-1]
    histograms = {line.split()[2] for line in lines if line.startswith("# TYPE") and line.endswith(" histogram")}

    def of_histogram(line: str) -> bool:
        name = line.split()[2] if line.startswith("#") else line.partition("{")[0].rpartition("_")[0]
        return name in histograms

    found: dict[str, Any] = {}
    times = dict.fromkeys(line.rpartition(" ")[2] for line in lines if of_histogram(line) and line[0] != "#")
    for time in times:
        at_once = [line for line in lines if of_histogram(line) and (line[0] == "#" or line.endswith(f" {time}"))]
        found |= {f.name: f for f in parser.text_string_to_metric_families("\n".join([*at_once, "# EOF", ""]))}
    rest = [line for line in lines if not of_histogram(line)]
    return found | {f.name: f for f in parser.text_string_to_metric_families("\n".join([*rest, "# EOF", ""]))}


def test_time_series_parse_and_tell_what_the_tables_tell(alone: Path, tmp_path: Path) -> None:
    parser = pytest.importorskip("prometheus_client.openmetrics.parser")
    (file,) = export(open_results(alone), "prometheus", tmp_path / "m.txt", options=Options()).files
    families = parsed(parser, file.read_text())
    assert {"vllm:num_requests_running", "vllm:kv_cache_usage_perc", "vllm:generation_tokens"} <= set(families)
    results = open_results(alone)
    run, start_s = results.runs[0], Options().start.timestamp()
    replicas = results.table("replicas", run).sort_by([("replica", "ascending"), ("end_s", "ascending")]).to_pylist()
    running = families["vllm:num_requests_running"].samples
    assert [(s.labels["engine"], s.value) for s in running] == [
        (str(row["replica"]), row["running"]) for row in replicas
    ]
    times = [float(sample.timestamp) - start_s for sample in running]
    assert times == pytest.approx([row["end_s"] for row in replicas], abs=1e-6)
    tokens = families["vllm:generation_tokens"].samples
    last = {sample.labels["engine"]: sample.value for sample in tokens}
    assert sum(last.values()) == run.manifest["summary"]["output_tokens"]
    histogram = families["vllm:time_to_first_token_seconds"].samples
    counts = {s.labels["pool"]: s.value for s in histogram if s.name.endswith("_count")}
    sums = {s.labels["pool"]: s.value for s in histogram if s.name.endswith("_sum")}
    assert sum(counts.values()) == 120
    assert sum(sums.values()) == pytest.approx(120 * run.manifest["summary"]["ttft_mean_s"])
    half = {s.labels["pool"]: s.value for s in histogram if s.labels.get("le") == "0.5"}
    table = requests(alone).to_pylist()
    assert half == Counter(
        {pool: sum(r["ttft_s"] <= 0.5 for r in table if r["pool"] == pool) for pool in ("fast", "cheap")}
    )
    success = families["vllm:request_success"].samples
    assert sum({s.labels["pool"]: s.value for s in success}.values()) == 120


def spans(trace: dict[str, Any]) -> dict[tuple[int, str, str], tuple[float, float]]:
    """Begin and end of each async span, which must come in pairs."""
    begun: dict[tuple[int, str, str], float] = {}
    found = {}
    for event in trace["traceEvents"]:
        if event["ph"] in "be":
            key = event["pid"], event["id"], event["name"]
            if event["ph"] == "b":
                assert key not in begun
                begun[key] = event["ts"]
            else:
                assert event["ts"] >= begun[key]
                found[key] = (begun.pop(key), event["ts"])
    assert not begun
    return found


def test_perfetto_trace_has_nested_spans_counters_and_one_track_per_replica(alone: Path, tmp_path: Path) -> None:
    trace = told(alone, "perfetto", tmp_path / "t.json")
    events = trace["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert names == {0: "gateway", 1: "fast · replica 0", 2: "cheap · replica 1"}
    found = spans(trace)
    assert sum(name.startswith("request ") for _, _, name in found) == 120
    for row in requests(alone).to_pylist():
        pid, key = row["replica"] + 1, hex(row["request_id"])
        whole = found[pid, key, f"request {row['request_id']}"]
        assert whole == pytest.approx((row["arrival_s"] * 1e6, row["end_s"] * 1e6))
        edges = [found[pid, key, stage] for stage in ("queue", "prefill", "decode")]
        assert edges[0][0] >= whole[0]
        assert edges[-1][1] == whole[1]
        assert all(one[1] == other[0] for one, other in pairwise(edges))
    counters = [event for event in events if event["ph"] == "C"]
    assert {event["name"] for event in counters} == {"requests", "KV in use", "tokens per step", "power"}
    assert all(isinstance(value, int | float) for event in counters for value in event["args"].values())
    rows = open_results(alone).table("replicas")
    assert len(counters) == 4 * rows.num_rows


def test_prompts_computed_elsewhere_stand_with_the_replica_that_did(tmp_path: Path) -> None:
    out = fleetsim.run(SPLIT, out=tmp_path / "o").out
    found = spans(told(out, "perfetto", tmp_path / "t.json"))
    row = requests(out).to_pylist()[0]
    key = hex(row["request_id"])
    assert (row["prefill_replica"] + 1, key, "prefill") in found
    assert (row["replica"] + 1, key, "decode") in found
    assert row["prefill_replica"] != row["replica"]


def test_traces_stay_below_the_size_asked_for_and_say_what_is_missing(alone: Path, tmp_path: Path) -> None:
    written = export(open_results(alone), "perfetto", tmp_path / "t.json", options=Options(max_bytes=40_000))
    assert written.files[0].stat().st_size <= 40_000
    trace = json.loads(written.files[0].read_text())
    told_requests = trace["otherData"]["requests_told"]
    assert 0 < told_requests < 120
    assert sum(name.startswith("request ") for _, _, name in spans(trace)) == told_requests
    assert any(f"{told_requests:,} of 120 requests" in note for note in written.notes)


def test_a_window_leaves_out_what_lies_beyond_it(alone: Path, tmp_path: Path) -> None:
    trace = told(alone, "perfetto", tmp_path / "t.json", window=(2.0, 3.0))
    inside = [row for row in requests(alone).to_pylist() if row["arrival_s"] < 3 and row["end_s"] >= 2]
    assert sum(name.startswith("request ") for _, _, name in spans(trace)) == len(inside) < 120
    assert all(2e6 <= event["ts"] <= 3e6 for event in trace["traceEvents"] if event["ph"] == "C")


def call(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, ["export", *map(str, args)])


def test_several_runs_become_several_files(study: Path, tmp_path: Path) -> None:
    result = call(study, "--format", "vllm-bench", "--out", tmp_path / "o", "--json")
    assert result.exit_code == 0
    files = json.loads(result.stdout)["files"]
    assert len({*files}) == 8
    assert all(json.loads(Path(file).read_text())["completed"] == 120 for file in files)
    one = call(study, "--format", "mooncake", "--run", "router=round-robin rate=10 #1", "--out", tmp_path / "t.jsonl")
    assert one.stdout == f"{tmp_path / 't.jsonl'}\n"


def test_formats_are_listed_and_mistakes_told(alone: Path, tmp_path: Path) -> None:
    assert [line.split()[0] for line in call("--list").stdout.splitlines()[1:]] == list(FORMATS)
    for args, message in (
        ((), "name a result folder and a --format"),
        ((alone, "--format", "perfeto"), 'did you mean "perfetto"'),
        ((alone, "--format", "perfetto", "--window", "9:3"), "is no part of a run"),
        ((alone, "--format", "aiperf", "--start", "now"), "is no time"),
        ((alone, "--format", "llm-d", "--out", tmp_path), "is a folder"),
        ((alone, "--format", "llm-d", "--run", "x"), 'no run "x"'),
    ):
        result = call(*args)
        assert result.exit_code == 2, args
        assert message in result.stderr
    with pytest.raises(InputError, match="no format"):
        export(alone, "csv")


def test_a_trace_written_by_an_export_is_one(alone: Path, tmp_path: Path) -> None:
    (file,) = export(alone, "mooncake", tmp_path / "t.jsonl").files
    described = CliRunner().invoke(cli, ["trace", "describe", str(file), "--json"])
    assert described.exit_code == 0
    assert json.loads(described.stdout)["requests"] == 120
