"""``fleetsim sweep``: what it says, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result

from fleetsim.cli.main import cli

AXIS = ("--axis", "gateway.router=round-robin,least-outstanding")


def _call(*args: str) -> Result:
    return CliRunner().invoke(cli, ["sweep", *args])


def test_the_answer_comes_first_then_a_row_for_each_combination(tiny: Path) -> None:
    result = _call("tiny.yaml", *AXIS, "-r", "2", "-j", "1", "-o", "study")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("4 of 4 runs finished")
    assert lines[2].split()[:3] == ["gateway.router", "runs", "verdict"]
    assert lines[3].split()[:3] == ["round-robin", "2", "STABLE"]
    assert "study.json, summary.parquet" in lines[-1]
    again = _call("tiny.yaml", *AXIS, "-r", "2", "-j", "1", "-o", "study")
    assert "4 runs, 4 of them finished before" in again.stderr


def test_a_dry_run_lists_the_runs_and_touches_nothing(tiny: Path) -> None:
    result = _call("tiny.yaml", *AXIS, "-r", "2", "--dry-run", "--out", "study")
    assert result.exit_code == 0
    assert result.stdout.startswith("4 runs, 4 to do")
    assert not Path("study").exists()
    listed = json.loads(_call("tiny.yaml", *AXIS, "--dry-run", "--json").stdout)
    assert [run["axes"] for run in listed["runs"]] == [
        {"gateway.router": "round-robin"},
        {"gateway.router": "least-outstanding"},
    ]


def test_json_is_one_object(tiny: Path) -> None:
    result = _call("tiny.yaml", *AXIS, "-j", "1", "-o", "study", "--json", "-q")
    told = json.loads(result.stdout)
    assert (told["finished"], told["failed"], told["interrupted"]) == (2, 0, 0)
    assert told["runs"][0]["axis.gateway.router"] == "round-robin"
    assert result.stderr == ""


def test_failed_runs_are_told_and_exit_with_1(tiny: Path) -> None:
    axis = ("--axis", "gateway.router=round-robin,tests.sweep.routers:Stumbles")
    result = _call("tiny.yaml", *axis, "--allow-import", "-j", "1", "-o", "study")
    assert result.exit_code == 1
    assert "1 of 2 runs finished, 1 failed" in result.stdout
    assert "lost my way" in result.stderr


def test_the_summary_is_collected_from_what_is_there(tiny: Path) -> None:
    for shard in ("1/2", "2/2"):
        assert _call("tiny.yaml", *AXIS, "-j", "1", "-o", "study", "--shard", shard).exit_code == 0
    Path("study/summary.parquet").unlink()
    result = _call("--collect", "--out", "study")
    assert result.stdout.startswith("2 of 2 runs finished")
    assert Path("study/summary.parquet").is_file()


def test_bad_input_exits_with_2(tiny: Path) -> None:
    for args, said in (
        (("tiny.yaml",), "a sweep needs axes"),
        (("tiny.yaml", "--axis", "gateway.router"), "--axis gateway.router"),
        (("tiny.yaml", "--axis", "gateway.routr=a,b"), "did you mean"),
        (("tiny.yaml", *AXIS, "--shard", "3/2"), "I from 1 to N"),
        (("tiny.yaml", *AXIS, "--shard", "half"), "expected I/N"),
        (("tiny.yaml", *AXIS, "--memory", "much"), "expected a bytes"),
        (("none.yaml", *AXIS), "no such file"),
        (("--collect",), "--out"),
        (("--collect", "--out", "nowhere"), "holds no study"),
    ):
        result = _call(*args)
        assert result.exit_code == 2, (args, result.output)
        assert said in result.stderr, (args, result.stderr)
        assert "Traceback" not in result.stderr


def test_an_axis_of_the_command_line_takes_the_place_of_the_file_s(tiny: Path) -> None:
    Path("sweep.yaml").write_text("scenario: tiny.yaml\naxes: {gateway.router: [random, round-robin], seed: [1, 2]}\n")
    listed = json.loads(
        _call("sweep.yaml", "--axis", "seed=5", "--set", "workload.requests=30", "--dry-run", "--json").stdout
    )
    assert [run["seed"] for run in listed["runs"]] == [5, 5]
