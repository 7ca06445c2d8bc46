"""Measured runs as result folders: the figures that went out come back, and what was not measured is null."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from ruamel.yaml import YAML

import fleetsim
from fleetsim.cli.main import cli
from fleetsim.errors import InputError
from fleetsim.output.tables import TABLES
from fleetsim.results.compare import compare
from fleetsim.results.export import export
from fleetsim.results.folder import open_results
from fleetsim.results.importing import import_results

from .conftest import SCENARIO

DATA = Path(os.environ.get("FLEETSIM_DATA", Path(__file__).parents[3] / "shared" / "data"))
MEASURED = DATA / "reference" / "open" / "vllm_requests.parquet"
LATENCIES = [f"{name}_{stat}_s" for name in ("ttft", "tpot", "e2el") for stat in ("mean", "p50", "p90", "p95", "p99")]
COUNTS = ["requests", "finished", "failed", "prompt_tokens", "output_tokens"]
RATES = ["makespan_s", "requests_per_s", "output_tokens_per_s", "total_tokens_per_s"]


def summary_of(folder: Path) -> dict[str, Any]:
    (run,) = open_results(folder).runs
    return dict(run.manifest["summary"])


def requests_of(folder: Path) -> pa.Table:
    results = open_results(folder)
    return pa.Table.from_batches(results.scan("requests", run=results.runs[0])).sort_by("request_id")


@pytest.mark.parametrize("to_format", ["vllm-bench", "aiperf"])
def test_requests_that_go_out_come_back(alone: Path, tmp_path: Path, to_format: str) -> None:
    written = export(alone, to_format, tmp_path / "x")
    folder = import_results(
        written.files[0], tmp_path / "back", slo={"ttft": "500 ms", "tpot": "60 ms", "attainment": 0.9}
    )
    ours, back = summary_of(alone), summary_of(folder)
    assert {name: back[name] for name in COUNTS} == {name: ours[name] for name in COUNTS}
    for name in (*LATENCIES, *RATES, "slo_attainment_ratio", "goodput_requests_per_s", "ttft_mean_ci_low_s"):
        assert back[name] == pytest.approx(ours[name], rel=1e-7), name
    one, two = requests_of(alone), requests_of(folder)
    assert two["arrival_s"].to_numpy() + one["arrival_s"][0].as_py() == pytest.approx(
        one["arrival_s"].to_numpy(), abs=2e-9
    )
    for name in ("ttft_s", "tpot_s", "e2el_s", "ntpot_s"):
        expected = np.array(one[name].to_pylist(), dtype=float)
        assert np.array(two[name].to_pylist(), dtype=float) == pytest.approx(expected, rel=1e-9, nan_ok=True)
    for name in ("prompt_tokens", "output_tokens", "status", "slo_met"):
        assert two[name].to_pylist() == one[name].to_pylist()
    for name in ("energy_j", "cost_usd", "pool", "replica", "queued_s", "cached_tokens"):
        assert two[name].null_count == 120


@pytest.mark.parametrize("ending", ["json", "yaml"])
def test_figures_of_an_llm_d_report_come_back(alone: Path, tmp_path: Path, ending: str) -> None:
    (file,) = export(alone, "llm-d", tmp_path / "r.json").files
    if ending == "yaml":
        with (tmp_path / "r.yaml").open("w") as text:
            YAML(typ="safe", pure=True).dump(json.loads(file.read_text()), text)
        file = tmp_path / "r.yaml"
    folder = import_results(file, tmp_path / "back", name="theirs")
    ours, back = summary_of(alone), summary_of(folder)
    for name in (*COUNTS, *LATENCIES, *RATES, "ntpot_p99_s", "itl_p99_s", "itl_mean_s"):
        assert back[name] == pytest.approx(ours[name], rel=1e-6), name
    assert requests_of(folder).num_rows == 0
    (run,) = open_results(folder).runs
    assert (run.name, run.is_measured, run.seed) == ("theirs", True, None)
    assert run.manifest["warnings"] == ["the file has figures only, no requests"]


def test_units_of_a_report_are_those_that_it_names(tmp_path: Path) -> None:
    latency = {"time_to_first_token": {"units": "ms", "mean": 250.0, "p99": 900.0}}
    latency["time_per_output_token"] = {"units": "ms/token", "mean": 20.0}
    aggregate = {"requests": {"total": 10, "failures": 1}, "latency": latency}
    report = {"version": "0.2", "run": {"uid": "x", "time": {"duration": "PT1M30.5S"}}}
    report["results"] = {"request_performance": {"aggregate": aggregate}}
    file = tmp_path / "r.json"
    file.write_text(json.dumps(report))
    summary = summary_of(import_results(file, tmp_path / "o"))
    assert (summary["ttft_mean_s"], summary["ttft_p99_s"], summary["tpot_mean_s"]) == (0.25, 0.9, 0.02)
    assert (summary["finished"], summary["makespan_s"], summary["e2el_p50_s"]) == (9, 90.5, None)
    latency["time_to_first_token"]["units"] = "fortnights"
    file.write_text(json.dumps(report))
    with pytest.raises(InputError, match=r"time_to_first_token\.units.*no unit of time"):
        import_results(file, tmp_path / "o")


def test_older_vllm_files_give_latency_and_gaps_from_their_tokens(tmp_path: Path) -> None:
    """Without `latencies` and `start_times`, as vLLM wrote them in 2024."""
    content = {
        "duration": 3.0,
        "completed": 2,
        "total_input_tokens": 30,
        "total_output_tokens": 5,
        "mean_ttft_ms": 150.0,
    }
    content |= {"ttfts": [0.1, 0.2, 0.0], "itls": [[0.02, 0.03], [0.04], []], "errors": ["", "", "Connection refused"]}
    content |= {"input_lens": [10, 20, 7], "output_lens": [3, 2, 0], "model_id": "some/model"}
    file = tmp_path / "r.json"
    file.write_text(json.dumps(content))
    folder = import_results(file, tmp_path / "o")
    rows = requests_of(folder).to_pylist()
    assert [row["e2el_s"] for row in rows] == pytest.approx([0.15, 0.24, None])
    assert [row["tpot_s"] for row in rows] == pytest.approx([0.025, 0.04, None])
    assert [row["itl_max_s"] for row in rows] == pytest.approx([0.03, 0.04, None])
    assert [row["status"] for row in rows] == ["finished", "finished", "failed"]
    assert rows[2]["reason"] == "Connection refused"
    assert all(row["arrival_s"] is None for row in rows)
    summary = summary_of(folder)
    assert (summary["name"], summary["makespan_s"], summary["failed"]) == ("some/model", 3.0, 1)
    gaps = open_results(folder).table("gaps").to_pylist()
    assert [row["count"] for row in gaps] == [1, 1, 1]
    for row, gap_s in zip(gaps, (0.02, 0.03, 0.04), strict=True):
        assert row["low_s"] <= gap_s < row["high_s"]
    assert summary["itl_p50_s"] == pytest.approx(0.03, rel=0.01)


def test_vllm_files_without_lists_give_figures(tmp_path: Path) -> None:
    content = {
        "duration": 3.0,
        "completed": 2,
        "failed": 1,
        "mean_ttft_ms": 150.0,
        "median_ttft_ms": 140.0,
        "p99_itl_ms": 31.0,
    }
    (tmp_path / "r.json").write_text(json.dumps(content | {"request_throughput": 0.67}))
    summary = summary_of(import_results(tmp_path / "r.json", tmp_path / "o"))
    assert (summary["ttft_mean_s"], summary["ttft_p50_s"], summary["itl_p99_s"]) == pytest.approx((0.15, 0.14, 0.031))
    assert (summary["requests"], summary["finished"], summary["requests_per_s"]) == (3, 2, 0.67)
    with pytest.raises(InputError, match="figures only"):
        import_results(tmp_path / "r.json", tmp_path / "o", slo={"ttft": "1 s"})


def test_aiperf_turns_sessions_and_failures_are_kept(tmp_path: Path) -> None:
    def record(number: int, turn: int, error: dict[str, Any] | None = None) -> dict[str, Any]:
        metadata = {"session_num": 0, "conversation_id": "abc", "turn_index": turn, "benchmark_phase": "profiling"}
        metadata["request_start_ns"] = 1_759_813_207_532_900_363 + number * 10**9
        metrics = {
            "input_sequence_length": {"value": 550, "unit": "tokens"},
            "time_to_first_token": {"value": 250, "unit": "ms"},
        }
        metrics |= {
            "request_latency": {"value": 1, "unit": "s"},
            "output_sequence_length": {"value": 9, "unit": "tokens"},
        }
        if error is not None:
            metrics = {"error_isl": {"value": 550, "unit": "tokens"}}
        return {"metadata": metadata, "metrics": metrics, "error": error}

    warm_up = record(0, 0)
    warm_up["metadata"]["benchmark_phase"] = "warmup"
    failed = record(3, 2, {"code": 499, "type": "RequestCancellationError", "message": "cancelled after 2 s"})
    records = [warm_up, record(1, 0), record(2, 1), failed]
    (tmp_path / "profile_export.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    rows = requests_of(import_results(tmp_path, tmp_path / "o")).to_pylist()
    assert [row["arrival_s"] for row in rows] == [0.0, 1.0, 2.0]
    assert [(row["session_id"], row["turn"]) for row in rows] == [(0, 0), (0, 1), (0, 2)]
    assert [row["ttft_s"] for row in rows] == [0.25, 0.25, None]
    assert [row["e2el_s"] for row in rows] == [1.0, 1.0, None]
    assert (rows[2]["status"], rows[2]["reason"], rows[2]["prompt_tokens"]) == ("failed", "cancelled after 2 s", 550)


def test_measured_and_simulated_stand_in_one_table_and_one_comparison(alone: Path, tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    (file,) = export(alone, "vllm-bench", tmp_path / "r.json").files
    folder = import_results(file, tmp_path / "measured", name="measured", slo={"ttft": "500 ms", "tpot": "60 ms"})
    found = fleetsim.query(
        "SELECT label, measured, ttft_p99_s FROM summary JOIN runs USING (run, label) ORDER BY measured",
        open_results(alone, folder),
    )
    assert found["label"].to_pylist() == ["two pools", "measured"]
    assert found["measured"].to_pylist() == [False, True]
    both = fleetsim.query("SELECT label, avg(ttft_s) AS t FROM requests GROUP BY label", open_results(alone, folder))
    assert both["t"][0].as_py() == pytest.approx(both["t"][1].as_py())
    (against,) = compare(alone, folder).blocks[0].others
    assert against.method == "one run of each, the same requests, 20 batches"
    assert [str(change) for change in against.changes] == ["tool: fleetsim -> vllm bench serve"]
    assert not any(difference.significant for difference in against.differences)
    results = open_results(folder)
    for table in TABLES:
        assert sum(map(len, results.scan(table))) == (120 if table == "requests" else 0)


def test_measured_runs_are_reported_beside_simulated_ones(alone: Path, tmp_path: Path) -> None:
    """With their requests, or with figures only."""
    detailed = import_results(
        export(alone, "vllm-bench", tmp_path / "r.json").files[0], tmp_path / "detailed", name="server"
    )
    figures = import_results(
        export(alone, "llm-d", tmp_path / "l.json").files[0], tmp_path / "figures", name="figures only"
    )
    page = fleetsim.report(alone, detailed, figures, out=tmp_path / "report.html").read_text(encoding="utf-8")
    for label in ("two pools", "server", "figures only"):
        assert label in page


@pytest.mark.skipif(not MEASURED.is_file(), reason=f"no {MEASURED} (FLEETSIM_DATA)")
def test_a_run_of_a_real_server_is_imported_as_it_was_measured(tmp_path: Path) -> None:
    """Requests that vLLM 0.19 served, told in the file that its benchmark writes."""
    table = pq.read_table(MEASURED)
    run = table["run"][0].as_py()
    rows = [row for row in table.to_pylist() if row["run"] == run]
    content = {
        "duration": max(row["last_token_s"] for row in rows) - min(row["queued_s"] for row in rows),
        "label": run,
        "ttfts": [row["ttft_ms"] / 1e3 for row in rows],
        "latencies": [row["e2e_ms"] / 1e3 for row in rows],
        "start_times": [row["queued_s"] for row in rows],
        "input_lens": [row["prompt_tokens"] for row in rows],
        "output_lens": [row["output_tokens"] for row in rows],
    }
    (tmp_path / "r.json").write_text(json.dumps(content))
    folder = import_results(tmp_path / "r.json", tmp_path / "o", slo={"ttft": "200 ms"})
    summary = summary_of(folder)
    assert summary["requests"] == len(rows)
    assert summary["ttft_mean_s"] == pytest.approx(np.mean([row["ttft_ms"] for row in rows]) / 1e3)
    tpot = [row["tpot_ms"] for row in rows if row["output_tokens"] > 1]
    assert summary["tpot_p90_s"] == pytest.approx(np.percentile(tpot, 90) / 1e3, rel=1e-3)
    met = np.mean([row["ttft_ms"] <= 200 for row in rows])
    assert summary["slo_attainment_ratio"] == pytest.approx(met)
    simulated = fleetsim.run(SCENARIO, out=tmp_path / "s").out
    assert [run.is_measured for run in open_results(folder, simulated).runs] == [True, False]
    assert compare(folder, simulated).blocks[0].others[0].method.endswith("independent requests, 20 batches")


def call(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, ["import", *map(str, args)])


def test_on_the_command_line(alone: Path, tmp_path: Path) -> None:
    (file,) = export(alone, "vllm-bench", tmp_path / "r.json").files
    result = call(file, "--out", tmp_path / "o", "--name", "server", "--slo", "ttft=500ms", "--slo", "tpot=60 ms")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"server: 120 requests, measured with vllm bench serve\n{tmp_path / 'o'}\n"
    told = json.loads(call(file, "--out", tmp_path / "o", "--json").stdout)
    assert told["summary"]["requests"] == 120
    assert told["summary"]["slo_attainment_ratio"] is None


def test_what_is_no_result_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    for name, text, message in (
        ("a.json", "{}", "is the result of no tool that is known here"),
        ("a.json", "{", "a.json:1  is not JSON"),
        ("a.yaml", "a: [", "is not YAML"),
        ("a.jsonl", '{"metadata": {}}\n', "a.jsonl:1  is no record of AIPerf"),
        ("a.json", '{"ttfts": [1], "input_lens": [1, 2], "duration": 1}', "input_lens: has 1 ttfts and another number"),
        ("a.json", '{"version": "0.1", "run": {}, "results": {}}', "is a report of version 0.1"),
    ):
        (tmp_path / name).write_text(text)
        result = call(tmp_path / name, "--out", tmp_path / "o")
        assert result.exit_code == 2, text
        assert message in result.stderr, result.stderr
    assert not (tmp_path / "o").exists()
    assert "there is no such file" in call(tmp_path / "b.json").stderr
    (tmp_path / "empty").mkdir()
    assert "is a folder without" in call(tmp_path / "empty").stderr
    assert "is no limit" in call(tmp_path / "a.json", "--slo", "itl=5ms").stderr
    (tmp_path / "a.json").write_text('{"ttfts": [1], "duration": 1}')
    assert call(tmp_path / "a.json", "--slo", "ttft=5 parsecs", "--out", tmp_path / "o").exit_code == 2
