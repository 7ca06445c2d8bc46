"""`fleetsim run --explain`: why a request went where it went, and what the others would have cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

import fleetsim

Call = Callable[..., Result]

SCENARIO = """
schema: 1
name: explained
workload: {kind: synthetic, requests: 60, arrivals: {process: poisson, rate: 20 req/s},
  prompt_tokens: {distribution: fixed, value: 800}, output_tokens: {distribution: fixed, value: 60}}
gateway: {router: least-outstanding}
pools:
  - {name: fast, llm: llama-3.1-8b, accelerator: h100-sxm, replicas: 2}
  - {name: slow, llm: llama-3.1-8b, accelerator: l4, replicas: 1}
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    file = tmp_path / "scenario.yaml"
    file.write_text(SCENARIO)
    return file


def test_tells_what_the_gateway_saw(call: Call, scenario: Path, tmp_path: Path) -> None:
    done = call("run", scenario, "--out", tmp_path / "out", "--explain", "40", "--quiet")
    assert done.exit_code == 0
    assert "request 40: LeastOutstanding chose replica" in done.stdout
    assert done.stdout.count("slow") >= 1
    assert "outstanding" in done.stdout


def test_what_if_runs_the_others(call: Call, scenario: Path, tmp_path: Path) -> None:
    done = call("run", scenario, "--out", tmp_path / "out", "--explain", "40", "--what-if", "--json")
    decision = json.loads(done.stdout)["decisions"][0]
    results = {row["candidate"]: row["result"] for row in decision["candidates"]}
    assert set(results) == {0, 1, 2}
    assert results[2]["e2el_s"] > 2 * results[0]["e2el_s"]  # an L4 is slower than an H100
    chosen = next(row["candidate"] for row in decision["candidates"] if row["chosen"])
    steered = fleetsim.run(scenario, out=tmp_path / "again", steer={40: chosen})
    plain = fleetsim.run(scenario, out=tmp_path / "plain")
    assert steered.requests().equals(plain.requests())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--explain", "99"], "no request 99 in this run"), (["--what-if"], "name a request with --explain")],
)
def test_refuses(call: Call, scenario: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    done = call("run", scenario, "--out", tmp_path / "out", *arguments)
    assert done.exit_code == 2
    assert words in done.stderr


def test_steering_moves_one_request_only(scenario: Path, tmp_path: Path) -> None:
    result: Any = fleetsim.run(scenario, out=tmp_path / "out", steer={7: 2})
    table = result.requests().sort_by("request_id")
    assert table["replica"].to_pylist()[7] == 2
