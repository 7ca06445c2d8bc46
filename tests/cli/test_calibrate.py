"""``fleetsim calibrate`` and ``fleetsim profile``: the answer first, the file last, every mistake with exit code 2."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import Result
from ruamel.yaml import YAML

from fleetsim.calibration.engine_fit import Server
from fleetsim.calibration.runs import Load
from fleetsim.scenario.load import load_scenario
from tests.calibration.conftest import SERVER, measured, sent, vllm_json
from tests.calibration.test_measured import table

Call = Callable[..., Result]
HOST, FRONTEND = 4e-3, 0.05


@pytest.fixture
def bench(folder: Path) -> str:
    """Result of a benchmark of the server in server.yaml, whose host and front end are slower than the catalogue's."""
    YAML().dump(SERVER, folder / "server.yaml")
    with Server(load_scenario("server.yaml")) as server:
        constants = {**server.start, "host": HOST, "frontend": FRONTEND}
        run = measured(server, sent(Load(concurrency=8), 100, spread=0.02), constants, detailed=False)
    (folder / "bench.json").write_text(json.dumps(vllm_json(run, detailed=False)))
    return "bench.json"


def test_answer_tables_file(bench: str, folder: Path, call: Call) -> None:
    result = call("calibrate", bench, "--scenario", "server.yaml")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("host ")
    assert "median error TTFT" in lines[0]
    assert [line.split()[0] for line in lines if line[:4] in ("host", "fron", "scal")][-3:] == [
        "host",
        "frontend",
        "scale",
    ]
    assert any("not identifiable: 2 figures give at most 2 constants" in line for line in lines)
    assert lines[-1] == "calibration.yaml"
    assert "engine: {calibration: calibration.yaml}" in result.stderr
    content = YAML(typ="safe").load(folder / "calibration.yaml")
    assert content["engine"]["host"]["value"] == pytest.approx(HOST * 1e3, rel=0.1)
    assert content["engine"]["frontend"]["value"] == pytest.approx(FRONTEND * 1e3, rel=0.1)
    assert content["about"]["not_identifiable"] == ["scale"]
    assert content["about"]["valid_up_to"]["batch"] == 8
    assert content["about"]["median_error"]["tpot"] < content["about"]["median_error_before"]["tpot"]


def test_the_scenario_runs_with_the_file(bench: str, folder: Path, call: Call) -> None:
    assert call("calibrate", bench, "--scenario", "server.yaml", "--out", "own.yaml").exit_code == 0
    set_it = ("--set", "pools[0].engine.calibration=own.yaml")
    assert call("validate", "server.yaml").exit_code == 0
    result = call("run", "server.yaml", *set_it, "--json")
    assert result.exit_code == 0, result.stderr
    slow = json.loads(result.stdout)["summary"]["ttft_mean_s"]
    plain = call("run", "server.yaml", "--json", "--out", "plain")
    fast = json.loads(plain.stdout)["summary"]["ttft_mean_s"]
    assert slow - fast == pytest.approx(FRONTEND - 0.015, abs=0.02)


def test_json(bench: str, folder: Path, call: Call) -> None:
    result = call("calibrate", bench, "--scenario", "server.yaml", "--json")
    report = json.loads(result.stdout)
    assert report["path"] == "calibration.yaml"
    assert set(report["engine"]) == {"host", "frontend"}


def test_kernels_then_engine_in_one_file(bench: str, folder: Path, call: Call) -> None:
    table(folder / "kernels.parquet")
    result = call("calibrate", "kernels.parquet", bench, "--scenario", "server.yaml")
    assert result.exit_code == 0, result.stderr
    assert "gemm bf16" in result.stdout
    assert "all-reduce: 60" in result.stdout
    content = YAML(typ="safe").load(folder / "calibration.yaml")
    assert {"about", "accelerator", "link", "power", "engine"} == set(content)


def test_an_existing_file_is_left_alone(bench: str, folder: Path, call: Call) -> None:
    (folder / "calibration.yaml").write_text("mine")
    arguments = ("calibrate", bench, "--scenario", "server.yaml")
    result = call(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "calibration.yaml  exists already" in result.stderr
    assert (folder / "calibration.yaml").read_text() == "mine"
    assert call(*arguments, "--force").exit_code == 0
    assert (folder / "calibration.yaml").read_text() != "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing.json",), "nothing.json  no such file"),
        (("bench.json",), "which one? give --scenario FILE"),
        (("bench.json", "--scenario", "other.yaml"), "other.yaml"),
        (("bench.json", "--scenario", "server.yaml", "--rate", "1", "--concurrency", "2"), "give one"),
        (("bench.json", "--scenario", "server.yaml", "--set", "pools[0].accelerator=nothing"), "nothing"),
        (("kernels.csv", "--accelerator", "nothing"), 'unknown accelerator "nothing"'),
        (("server.yaml", "--scenario", "server.yaml"), "server.yaml"),
    ],
)
def test_mistakes(arguments: tuple[str, ...], message: str, bench: str, folder: Path, call: Call) -> None:
    table(folder / "kernels.csv")
    result = call("calibrate", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert not (folder / "calibration.yaml").exists()


# --- profile -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    find_spec("torch") is not None, reason="torch is installed here: what is said without it cannot be seen"
)
def test_profile_without_torch(folder: Path, call: Call) -> None:
    result = call("profile", "--quick")
    assert (result.exit_code, result.stdout) == (2, "")
    assert 'pip install "fleetsim[gpu]"' in result.stderr
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "table.txt"), "a table ends in .parquet or .csv"),
        (("--out", "there.csv"), "there.csv  exists already"),
        (("--only", "everything"), "'everything' is not one of"),
    ],
)
def test_profile_refuses(arguments: tuple[str, ...], message: str, folder: Path, call: Call) -> None:
    (folder / "there.csv").write_text("mine")
    result = call("profile", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert (folder / "there.csv").read_text() == "mine"
