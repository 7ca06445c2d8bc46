"""``fleetsim run``: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import Result

import fleetsim
from fleetsim.cli.progress import _line, clock_text, watching
from fleetsim.cli.run import _latencies
from fleetsim.experiment.run import folder_name

from .conftest import TINY

Call = Callable[..., Result]

SUMMARY = """
    requests finished rejected failed unfinished skipped_rows prompt_tokens output_tokens prefix_hit_ratio preemptions
    ttft_mean_s ttft_p50_s ttft_p90_s ttft_p99_s tpot_mean_s tpot_p50_s tpot_p99_s itl_p99_s
    e2el_mean_s e2el_p50_s e2el_p99_s queue_wait_mean_s makespan_s slo_attainment_ratio goodput_requests_per_s
    output_tokens_per_s energy_j energy_per_output_token_j power_mean_w cost_usd cost_per_million_output_tokens_usd
"""
STATS = ("mean", "mean_ci_low", "mean_ci_high", "p50", "p90", "p95", "p99")
COLUMNS = """
    request_id arrival_s queued_s first_scheduled_s first_token_s end_s status pool replica prompt_tokens output_tokens
    cached_tokens preemptions ttft_s tpot_s e2el_s energy_j cost_usd
"""


def test_json_is_one_object_with_the_contract(tiny: str, call: Call) -> None:
    result = call("run", tiny, "--out", "o", "--json", "--check")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert told["verdict"] == "STABLE"
    assert told["out"] == "o"
    assert told["slo_met"] is True
    assert {"wall_s", "events", "requests_per_wall_s", "verdict_reason", "files"} <= told.keys()
    assert set(SUMMARY.split()) <= told["summary"].keys()
    assert told["summary"]["finished"] == 20
    assert set(COLUMNS.split()) <= set(pq.read_table("o/requests.parquet").column_names)


def test_python_gives_the_same(tiny: str, call: Call) -> None:
    told = json.loads(call("run", tiny, "--out", "o", "--json").stdout)
    result = fleetsim.run(tiny, out="p")
    assert result.verdict == told["verdict"]
    assert result.summary["ttft_mean_s"] == told["summary"]["ttft_mean_s"]
    assert result.requests().num_rows == 20
    assert result.out == Path("p")


def test_answer_first_then_tables_then_files(tiny: str, call: Call) -> None:
    result = call("run", tiny, "--out", "o")
    lines = result.stdout.splitlines()
    assert lines[0].startswith("STABLE: ")
    assert lines[1] == "SLO met: 100.00% of requests within all limits"
    assert lines[3].split() == ["latency", "mean", "±", "95", "%", "p50", "p90", "p95", "p99"]
    assert lines[-1].startswith("o: ")
    assert "requests.parquet" in lines[-1]
    assert "events in" in result.stderr


def test_quiet(tiny: str, call: Call) -> None:
    result = call("run", tiny, "--out", "o", "--quiet")
    assert result.stderr == ""
    assert "requests.parquet" not in result.stdout


def test_without_a_scenario_the_example_runs_and_says_what_next(folder: Path, call: Call) -> None:
    result = call("run", "--set", "workload.requests=50")
    assert result.exit_code == 0
    assert (folder / "fleetsim-out" / "quickstart" / "manifest.json").exists()
    assert "fleetsim init" in result.stderr


def test_embedded_and_overridden(folder: Path, call: Call) -> None:
    args = ["run", "embedded:two-pools", "--set", "workload.requests=30", "--set", "pools.cheap.replicas=1", "--json"]
    told = json.loads(call(*args).stdout)
    assert told["summary"]["requests"] == 30
    assert Path(told["out"]).name == "two-pools"


@pytest.mark.parametrize(
    ("attainment", "flags", "code"), [(0.9, ["--fail-on-slo"], 0), (1.0, ["--fail-on-slo"], 3), (1.0, [], 0)]
)
def test_fail_on_slo(tiny: str, call: Call, attainment: float, flags: list[str], code: int) -> None:
    tight = ["--set", "slo.ttft=12 ms"] if attainment == 1.0 else []
    result = call("run", tiny, "--out", "o", "--set", f"slo.attainment={attainment}", *tight, *flags)
    assert result.exit_code == code, result.stdout + result.stderr
    assert Path("o/manifest.json").exists()


def test_fail_on_slo_needs_one(tiny: str, call: Call) -> None:
    result = call("run", tiny, "--out", "o", "--set", "slo=null", "--fail-on-slo")
    assert (result.exit_code, result.stdout) == (2, "")
    assert not Path("o").exists()


def test_warnings_go_to_stderr(tiny: str, call: Call) -> None:
    result = call("run", tiny, "--out", "o", "--json", "--set", "pools[0].engine.kv.capacity_tokens=160")
    json.loads(result.stdout)
    slow = call("run", tiny, "--out", "p", "--json", "--set", "slo.tpot=1 ms", "--force")
    assert slow.exit_code == 0
    assert slow.stderr.startswith("warning: ")
    assert any("physics" in text for text in json.loads(slow.stdout)["warnings"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pools[0].accelerator=h20O", 'unknown accelerator "h20O"'),
        ("pools[0].llm=llama-3.1-405b", "would fit"),
        ("slo.tpot=1 ms", "--force runs anyway"),
        ("workload={kind: trace, format: azure, path: no.csv}", "no such file"),
        ("gateway.router.policy=os:system", "--allow-import"),
    ],
)
def test_bad_input_prints_nothing_on_stdout_and_leaves_nothing(
    tiny: str, folder: Path, call: Call, override: str, message: str
) -> None:
    before = set(folder.rglob("*"))
    result = call("run", tiny, "--out", "o", "--json", "--set", override)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert set(folder.rglob("*")) == before


def test_an_earlier_result_is_replaced_anything_else_is_refused(tiny: str, folder: Path, call: Call) -> None:
    assert call("run", tiny, "--out", "o").exit_code == 0
    assert call("run", tiny, "--out", "o", "--set", "workload.requests=5").exit_code == 0
    assert pq.read_table("o/requests.parquet").num_rows == 5
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.txt").write_text("precious")
    for target in ("mine", "tiny.yaml"):
        result = call("run", tiny, "--out", target)
        assert (result.exit_code, result.stdout) == (2, "")
    assert (folder / "mine" / "thesis.txt").read_text() == "precious"
    assert (folder / "tiny.yaml").read_text() == TINY


def test_import_needs_permission_and_works_with_it(tiny: str, call: Call) -> None:
    override = ["--set", "gateway.router.policy=fleetsim.routing.basic:Random"]
    assert call("run", tiny, "--out", "o", *override).exit_code == 2
    assert call("run", tiny, "--out", "o", *override, "--allow-import").exit_code == 0


@pytest.mark.parametrize(
    ("name", "folder_of_it"),
    [
        ("two pools", "two-pools"),
        ("../../etc/passwd", "etc-passwd"),
        ("..", "scenario"),
        ("π/2", "π-2"),
        ("a" * 200, "a" * 80),
    ],
)
def test_scenario_names_become_safe_folders(name: str, folder_of_it: str) -> None:
    assert folder_name(name) == folder_of_it


def test_progress_is_off_without_a_terminal() -> None:
    with watching(True) as progress:
        assert progress is None


def test_progress_line() -> None:
    cells = [str(c) for column in _line(50, 200, 3725.0, 10.0).columns[1:] for c in column.cells]
    assert cells == ["simulated 1:02:05", "50 of 200 requests", "10/s", "0:15 left"]
    assert clock_text(59.9) == "0:59"


def test_what_python_accepts_as_a_scenario(tiny: str, folder: Path) -> None:
    loaded = fleetsim.load_scenario(tiny)
    for scenario in (tiny, loaded, loaded.scenario, loaded.resolved):
        for overrides in ("workload.requests=5", ["workload.requests=5"], {"workload.requests": 5}):
            assert fleetsim.run(scenario, "o", overrides=overrides).summary["requests"] == 5
        assert fleetsim.run(scenario, "o").summary["requests"] == 20
    assert fleetsim.run("embedded:quickstart", overrides="workload.requests=5").name == "quickstart"


def test_a_result_is_one_line_in_a_session(tiny: str) -> None:
    assert repr(fleetsim.run(tiny, "o")) == "Result('tiny', STABLE, 20 requests, out='o')"


def test_figures_fit_a_terminal_of_80_columns(folder: Path) -> None:
    rows = _latencies({f"{name}_{stat}_s": 0.99999 for name in ("ttft", "tpot") for stat in STATS})
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    assert sum(widths) + 2 * (len(widths) - 1) <= 80


def test_every_assumed_value_in_use_is_listed(tiny: str, call: Call) -> None:
    """A measured chip alone, the same over an assumed link, and a chip that nobody measured."""
    alone, sglang, linked, projected = (
        json.loads(call("run", tiny, "--out", name, "--json", *settings).stdout)
        for name, settings in (
            ("a", ()),
            ("d", ("--set", "pools[0].engine.kind=sglang")),
            ("b", ("--set", "pools[0].parallelism.tp=2", "--set", "pools[0].link=roce-200")),
            ("c", ("--set", "pools[0].accelerator=ascend-910b")),
        )
    )
    assert any(text.startswith("engine sglang.") for text in sglang["assumptions"])
    assert not any("link" in text for text in alone["assumptions"])
    assert not any("projected" in text for text in alone["extrapolated"])
    assert "link roce-200.latency = 15 us" in linked["assumptions"]  # with the unit it was published in
    assert any(text.startswith("ascend-910b: step times are projected") for text in projected["extrapolated"])
    assert any(text.startswith("ascend-910b.power.idle") for text in projected["assumptions"])


def test_a_run_beyond_all_measurements_says_so(tiny: str, call: Call) -> None:
    """A chip and a model that nobody measured run, and the answer lists what stands in for measurements."""
    settings = ("pools[0].llm=deepseek-v3", "pools[0].accelerator=mi325x", "pools[0].parallelism.tp=8")
    result = call("run", tiny, "--out", "o", *(part for value in settings for part in ("--set", value)))
    assert result.exit_code == 0
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("beyond what was measured: "))
    assert "mi325x: step times are projected" in line
    assert "constants of other chips: " in line
    assert "moe fp8_block (of bf16)" in line
    assert "latent attention" in line
