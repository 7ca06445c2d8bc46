"""The acceptance scenarios and what each must show (EXPECTED.md beside them).

Good scenarios run unchanged with every law checked; bad ones through the command line in a process of their own.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import fleetsim
from fleetsim.calibration.tables import MISSING, OPEN
from fleetsim.catalog.accelerator import load_accelerator
from fleetsim.experiment.run import Result

HOME = Path(os.environ.get("FLEETSIM_ACCEPTANCE", Path(__file__).parents[3] / "shared" / "acceptance"))

pytestmark = pytest.mark.skipif(not HOME.is_dir(), reason=f"no acceptance files in {HOME} (FLEETSIM_ACCEPTANCE)")

CHAT = HOME.parent / "data" / "traces" / "open" / "chat"
VLLM = {
    "vllm-rtxpro6000-llama-3.1-8b": "RTXPRO6000__Llama-3.1-8B",
    "vllm-rtxpro6000-qwen3-30b-a3b": "RTXPRO6000__Qwen3-30B-A3B-Instruct-2507",
    "vllm-rtxpro6000-qwen3-32b": None,
    "vllm-rtx4090-llama-3.1-8b": None,
}
"""Scenarios of real runs, and their names among the measurements where those are public."""
STATES = {"finished", "rejected", "timed_out", "failed", "unfinished"}
COLUMNS = re.findall(
    r"\w+",
    """request_id, arrival_s, queued_s, first_scheduled_s, first_token_s, end_s, status, pool, replica, prompt_tokens,
    output_tokens, cached_tokens, preemptions, ttft_s, tpot_s, e2el_s, energy_j, cost_usd""",
)
COUNTS = re.findall(
    r"\w+", "requests, finished, rejected, failed, unfinished, skipped_rows, prompt_tokens, output_tokens, preemptions"
)
NUMBERS = re.findall(
    r"\w+",
    """prefix_hit_ratio, ttft_mean_s, ttft_p50_s, ttft_p90_s, ttft_p99_s, tpot_mean_s, tpot_p50_s, tpot_p99_s, itl_p99_s,
    e2el_mean_s, e2el_p50_s, e2el_p99_s, queue_wait_mean_s, makespan_s, slo_attainment_ratio, goodput_requests_per_s,
    output_tokens_per_s, energy_j, energy_per_output_token_j, power_mean_w, cost_usd, cost_per_million_output_tokens_usd""",
)

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run a scenario with every law checked, once for all tests that look at it."""
    done: dict[tuple[str, ...], Result] = {}

    def run(name: str, *overrides: str) -> Result:
        key = (name, *overrides)
        if key not in done:
            out = tmp_path_factory.mktemp(name) / "out"
            done[key] = fleetsim.run(HOME / f"{name}.yaml", out=out, overrides=overrides, check=True)
        return done[key]

    return run


def command(*args: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """What ``fleetsim ARGS`` does in a process of its own."""
    line = [sys.executable, "-m", "fleetsim", *map(str, args)]
    return subprocess.run(line, capture_output=True, text=True, env={**os.environ, **environment}, timeout=600)


def hit_ratio(result: Result) -> float:
    """Cached prompt tokens / prompt tokens, from the table."""
    rows = result.requests()
    return float(pc.sum(rows["cached_tokens"]).as_py() / pc.sum(rows["prompt_tokens"]).as_py())


def recorded(name: str) -> list[tuple[float, int, int]]:
    """Arrival since the first row, prompt and output tokens of each row of an Azure trace."""
    with gzip.open(CHAT / name, "rt", newline="") as file:
        rows = [(datetime.fromisoformat(time[:26]), int(a), int(b)) for time, a, b in list(csv.reader(file))[1:]]
    return [((time - rows[0][0]).total_seconds(), a, b) for time, a, b in rows]


# --- contract of the outputs ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, subprocess.CompletedProcess[str]]]:
    """The main job, by the command line, in two processes with different hash seeds."""
    folders = [tmp_path_factory.mktemp("conv") / "out" for _ in range(2)]
    arguments = ("run", HOME / "azure-conv.yaml", "--json", "--check", "--out")
    return [(out, command(*arguments, out, PYTHONHASHSEED=str(seed))) for seed, out in enumerate(folders)]


def test_json_contract(twice: list[tuple[Path, subprocess.CompletedProcess[str]]]) -> None:
    out, process = twice[0]
    assert process.returncode == 0, process.stderr
    told, end = json.JSONDecoder().raw_decode(process.stdout)
    assert process.stdout[end:] == "\n"
    assert (told["verdict"], told["out"]) == ("STABLE", str(out))
    assert type(told["events"]) is int
    for key in ("wall_s", "requests_per_wall_s"):
        assert type(told[key]) is float
        assert told[key] > 0
    summary = told["summary"]
    for key in COUNTS:
        assert type(summary[key]) is int, key
    for key in NUMBERS:
        assert type(summary[key]) is float, key
    assert told["requests_per_wall_s"] == pytest.approx(summary["requests"] / told["wall_s"])


def test_the_contract_is_the_documented_one(twice: list[tuple[Path, subprocess.CompletedProcess[str]]]) -> None:
    text = (HOME / "EXPECTED.md").read_text(encoding="utf-8")
    block = re.search(r"(?:^    .*\n)+", text, re.MULTILINE)
    assert block is not None
    documented = json.loads(block[0])
    assert set(documented["summary"]) == {*COUNTS, *NUMBERS}
    assert documented.keys() <= json.loads(twice[0][1].stdout).keys()
    columns = re.search(r"at least the columns `([^`]+)`", text)
    assert columns is not None
    assert columns[1].split(", ") == COLUMNS


def test_python_shows_what_the_command_prints(
    twice: list[tuple[Path, subprocess.CompletedProcess[str]]], checked: Run
) -> None:
    told, result = json.loads(twice[0][1].stdout), checked("azure-conv")
    assert result.verdict == told["verdict"]
    assert dict(result.summary) == told["summary"]
    assert result.requests().equals(pq.read_table(twice[0][0] / "requests.parquet"))


def test_two_processes_write_the_same_bytes(twice: list[tuple[Path, subprocess.CompletedProcess[str]]]) -> None:
    first, second = ({path.name: path.read_bytes() for path in out.glob("*.parquet")} for out, _ in twice)
    assert {"requests.parquet", "replicas.parquet", "fleet.parquet", "gaps.parquet", "events.parquet"} <= first.keys()
    assert first == second


@pytest.mark.parametrize(
    "name", ["azure-conv", "azure-code-two-pools", "mooncake-reuse", "mooncake-fleet", *VLLM], ids=str
)
def test_tables_agree_with_the_summary(name: str, checked: Run) -> None:
    result = checked(name)
    rows, summary = result.requests(), result.summary
    assert set(COLUMNS) <= set(rows.column_names)
    assert set(rows["status"].to_pylist()) <= STATES
    assert rows.num_rows == summary["requests"]
    assert pc.sum(rows["prompt_tokens"]).as_py() == summary["prompt_tokens"]
    assert pc.sum(rows["output_tokens"]).as_py() == summary["output_tokens"]
    assert pc.sum(rows["preemptions"]).as_py() == summary["preemptions"]
    assert hit_ratio(result) == pytest.approx(summary["prefix_hit_ratio"])
    for latency in ("ttft", "tpot", "e2el"):
        times = rows[f"{latency}_s"].drop_null().to_numpy()
        assert times.mean() == pytest.approx(summary[f"{latency}_mean_s"])
        assert np.quantile(times, 0.99) == pytest.approx(summary[f"{latency}_p99_s"], rel=0.01)
    instants = [
        rows[f"{event}_s"].to_numpy() for event in ("arrival", "queued", "first_scheduled", "first_token", "end")
    ]
    assert all((earlier <= later).all() for earlier, later in pairwise(instants))
    np.testing.assert_allclose(rows["ttft_s"].to_numpy(), instants[3] - instants[0], atol=1e-9)
    np.testing.assert_allclose(rows["e2el_s"].to_numpy(), instants[4] - instants[0], atol=1e-9)
    fleet = result.table("fleet").filter(pc.field("pool") == rows["pool"][0].as_py())
    starts, ends = fleet["start_s"].to_numpy(), fleet["end_s"].to_numpy()
    assert starts[0] == 0
    assert (starts[1:] == ends[:-1]).all()
    assert (ends - starts).max() <= 10
    assert ends[-1] == instants[4].max()


# --- traces of production ---------------------------------------------------------------------------------------------


def test_azure_conv(checked: Run) -> None:
    result = checked("azure-conv")
    trace = recorded("AzureLLMInferenceTrace_conv_first40min.csv.gz")
    prompt, output = sum(row[1] for row in trace), sum(row[2] for row in trace)
    rows, summary = result.requests(), result.summary
    assert result.verdict == "STABLE"
    assert (summary["requests"], summary["finished"], len(trace)) == (14_176, 14_176, 14_176)
    assert [summary[key] for key in ("rejected", "timed_out", "failed", "unfinished", "skipped_rows")] == [0] * 5
    assert pc.sum(rows["prompt_tokens"]).as_py() == prompt
    assert pc.sum(rows["output_tokens"]).as_py() == output
    assert round(prompt / 14_176, 1) == 1195.1
    assert round(output / 14_176, 1) == 201.5
    rows = rows.sort_by("request_id")
    assert rows["prompt_tokens"].to_pylist() == [row[1] for row in trace]
    assert rows["output_tokens"].to_pylist() == [row[2] for row in trace]
    np.testing.assert_allclose(rows["arrival_s"].to_numpy(), [row[0] / 2 for row in trace], atol=2e-6)


def test_azure_code_pools(checked: Run) -> None:
    result = checked("azure-code-two-pools")
    rows = result.requests()
    assert (result.summary["requests"], result.summary["finished"]) == (7_491, 7_491)
    means = rows.group_by("pool").aggregate([("tpot_s", "mean"), ("tpot_s", "count")]).to_pylist()
    pools = {row["pool"]: row for row in means}
    assert pools.keys() == {"fast", "cheap"}
    assert min(row["tpot_s_count"] for row in pools.values()) > 100
    assert pools["cheap"]["tpot_s_mean"] > pools["fast"]["tpot_s_mean"]


def test_azure_code_is_idle_in_minutes_without_arrivals(checked: Run) -> None:
    result = checked("azure-code-two-pools")
    rows = result.requests()
    arrivals, ends = rows["arrival_s"].to_numpy(), rows["end_s"].to_numpy()
    busy_minutes = set((arrivals // 60).astype(int).tolist())
    idle_w = {"fast": load_accelerator("h100-sxm").power.idle_w, "cheap": load_accelerator("a10g").power.idle_w}
    quiet: set[float] = set()
    for row in result.table("replicas").to_pylist():
        start, end = row["start_s"], row["end_s"]
        in_flight = ((arrivals < end) & (ends > start)).any()
        if end - start == 10 and int(start // 60) not in busy_minutes and not in_flight:
            assert (row["busy_ratio"], row["steps"], row["running"], row["waiting"]) == (0, 0, 0, 0)
            assert row["power_w"] == pytest.approx(idle_w[row["pool"]], rel=1e-12)
            quiet.add(start)
    assert len(quiet) > 10


@pytest.mark.parametrize(
    ("capacity", "expected", "within"),
    [(None, 0.3575, 0.002), (3_000_000, 0.137, 0.01), (10_000_000, 0.284, 0.01), (25_000_000, 0.352, 0.01)],
)
def test_mooncake_reuse(capacity: int | None, expected: float, within: float, checked: Run) -> None:
    smaller = () if capacity is None else (f"pools[0].engine.kv.capacity_tokens={capacity}",)
    result = checked("mooncake-reuse", *smaller)
    rows = result.requests()
    assert (result.summary["requests"], result.summary["finished"]) == (7_851, 7_851)
    assert abs(hit_ratio(result) - expected) < within
    cached, prompts = rows["cached_tokens"].to_numpy(), rows["prompt_tokens"].to_numpy()
    assert (cached % 512 == 0).all()
    assert (cached < prompts).all()


def test_mooncake_fleet(checked: Run) -> None:
    result = checked("mooncake-fleet")
    replicas = result.table("replicas")
    assert (result.summary["requests"], result.summary["finished"]) == (7_851, 7_851)
    assert 0 < hit_ratio(result) < hit_ratio(checked("mooncake-reuse"))
    used, cached = replicas["kv_used_ratio"].to_numpy(), replicas["kv_cached_ratio"].to_numpy()
    assert 0.05 < used.max() <= 1
    assert (used >= 0).all()
    assert 0.9 < (used + cached).max() <= 1
    assert result.summary["kv_used_max_ratio"] <= 1
    assert set(result.requests()["replica"].to_pylist()) == set(range(8))


# --- speed ------------------------------------------------------------------------------------------------------------


def shares_of_million(result: Result) -> tuple[float, float, float]:
    """Hit ratio, share of prompt tokens in group prefixes, and the share that cold caches and whole blocks cost at most."""
    prompts = result.requests()["prompt_tokens"].to_numpy()
    share = np.minimum(prompts, 512).sum() / prompts.sum()
    cold = (64 * 200 * 512 + 16 * len(prompts)) / prompts.sum()  # each replica computes each prefix once
    return hit_ratio(result), float(share), float(cold)


def test_sixty_thousand_of_the_million(checked: Run) -> None:
    result = checked("million", "workload.requests=60000")
    hit, share, cold = shares_of_million(result)
    assert result.summary["finished"] == 60_000
    assert share - cold < hit < share


PEAK = """
import sys
from fleetsim.cli.main import cli
from fleetsim.experiment.bench import peak_rss_bytes
try:
    cli.main(sys.argv[1:], "fleetsim")
finally:
    print(peak_rss_bytes(), file=sys.stderr)
"""


@pytest.mark.slow
def test_million(tmp_path: Path) -> None:
    line = [
        sys.executable,
        "-c",
        PEAK,
        "run",
        str(HOME / "million.yaml"),
        "--out",
        str(tmp_path / "o"),
        "--json",
        "--check",
    ]
    process = subprocess.run(line, capture_output=True, text=True, timeout=900)
    assert process.returncode == 0, process.stderr
    told = json.loads(process.stdout)
    assert (told["summary"]["requests"], told["summary"]["finished"]) == (1_000_000, 1_000_000)
    rows = pq.read_table(tmp_path / "o" / "requests.parquet", columns=["request_id", "prompt_tokens", "cached_tokens"])
    prompts, cached = rows["prompt_tokens"].to_numpy(), rows["cached_tokens"].to_numpy()
    assert len(np.unique(rows["request_id"].to_numpy())) == 1_000_000
    hit, share = cached.sum() / prompts.sum(), np.minimum(prompts, 512).sum() / prompts.sum()
    assert share - 0.05 < hit <= share
    assert told["summary"]["prefix_hit_ratio"] == pytest.approx(hit)
    peak_bytes = int(process.stderr.splitlines()[-1])
    assert 50e6 < peak_bytes < 1e9


# --- real engines -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VLLM)
def test_vllm_runs_finish(name: str, checked: Run) -> None:
    result = checked(name)
    trace = pq.read_table(HOME / "data" / f"{name}.parquet")
    rows = result.requests().sort_by("request_id")
    assert result.summary["finished"] == trace.num_rows == 300
    assert rows["prompt_tokens"].to_pylist() == trace["prompt_tokens"].to_pylist()
    assert rows["output_tokens"].to_pylist() == trace["output_tokens"].to_pylist()


@pytest.mark.skipif(not (OPEN / "vllm_requests.parquet").is_file(), reason=MISSING)
@pytest.mark.parametrize("name", [name for name, run in VLLM.items() if run])
def test_vllm_runs_are_like_the_real_ones(name: str, checked: Run) -> None:
    measured = pq.read_table(OPEN / "vllm_requests.parquet", filters=[("run", "=", VLLM[name])]).sort_by("request")
    rows = checked(name).requests().sort_by("request_id")
    assert rows["prompt_tokens"].to_pylist() == measured["prompt_tokens"].to_pylist()

    def mean_s(column: str) -> float:
        return float(np.mean(measured[column].to_numpy())) / 1e3

    makespan_s = pc.max(measured["last_token_s"]).as_py() - pc.min(measured["queued_s"]).as_py()
    assert pc.mean(rows["ttft_s"]).as_py() == pytest.approx(mean_s("ttft_ms"), rel=0.15)
    assert pc.mean(rows["tpot_s"]).as_py() == pytest.approx(mean_s("tpot_ms"), rel=0.05)
    assert pc.mean(rows["e2el_s"]).as_py() == pytest.approx(mean_s("e2e_ms"), rel=0.05)
    assert checked(name).summary["makespan_s"] == pytest.approx(makespan_s, rel=0.05)


# --- bad input --------------------------------------------------------------------------------------------------------

BAD: dict[str, list[str]] = {
    "unknown-policy": [r"unknown-policy\.yaml:6:\d+  gateway\.router\.policy: ", 'did you mean "least-outstanding"\\?'],
    "does-not-fit": [
        r"does-not-fit\.yaml:8:\d+  pools\[0\]",
        r"weights need 131\.4 GiB",
        r"a10g has 22\.1 GiB",
        r"would fit: parallelism \{tp: 8\}",
    ],
    "duplicate-key": [r"duplicate-key\.yaml:4:\d+  seed: ", '"seed"'],
    "code-in-yaml": [
        r"code-in-yaml\.yaml:2:\d+  name: the tag !!python/object/apply:os\.system is refused",
        r"code-in-yaml\.yaml:6:\d+  gateway\.router\.policy: .*--allow-import",
    ],
    "wrong-units": [
        r":5:\d+  slo\.ttft: .* expected a time",
        r":5:\d+  slo\.tpot: must be above 0",
        r":5:\d+  slo\.attainment: must be at most 1",
        r":9:\d+  pools\[0\]\.replicas: must be at least 1",
    ],
    "broken-trace": [
        r"broken-trace\.csv:3  .*not a number",
        r"broken-trace\.csv:4  .*missing",
        r"broken-trace\.csv:5  .*time goes back",
    ],
}
"""What must be said about each bad file."""


@pytest.mark.parametrize("name", BAD)
def test_bad_file(name: str, tmp_path: Path) -> None:
    path = HOME / "bad" / f"{name}.yaml"
    for arguments in (("run", path, "--out", tmp_path / "o", "--json"), ("validate", path)):
        process = command(*arguments)
        assert (process.returncode, process.stdout) == (2, "")
        for pattern in BAD[name]:
            assert re.search(pattern, process.stderr), (pattern, process.stderr)
        assert "Traceback" not in process.stderr
        assert "\nhacked" not in process.stderr
        assert list(tmp_path.iterdir()) == []


def test_permission_to_import_is_none_for_tags(tmp_path: Path) -> None:
    process = command("run", HOME / "bad" / "code-in-yaml.yaml", "--out", tmp_path / "o", "--json", "--allow-import")
    assert (process.returncode, process.stdout) == (2, "")
    assert "code-in-yaml.yaml:2:" in process.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_good_rows_of_a_broken_trace(tmp_path: Path) -> None:
    path = HOME / "bad" / "broken-trace.yaml"
    process = command("run", path, "--out", tmp_path / "o", "--json", "--set", "workload.on_bad_rows=skip")
    assert process.returncode == 0, process.stderr
    summary = json.loads(process.stdout)["summary"]
    assert (summary["skipped_rows"], summary["requests"], summary["finished"]) == (3, 1, 1)


def test_every_bad_file_is_covered() -> None:
    assert {path.stem for path in (HOME / "bad").glob("*.yaml")} == BAD.keys()
    assert {path.stem for path in HOME.glob("*.yaml")} == {
        "azure-conv",
        "azure-code-two-pools",
        "million",
        "mooncake-fleet",
        "mooncake-reuse",
        *VLLM,
    }
