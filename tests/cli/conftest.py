"""Calling the command line inside the process, and a scenario that runs in a moment."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fleetsim.cli.main import cli

TINY = """\
schema: 1
name: tiny
seed: 7
workload:
  kind: synthetic
  requests: 20
  arrivals: {process: poisson, rate: 5 req/s}
  prompt_tokens: {distribution: fixed, value: 100}
  output_tokens: {distribution: fixed, value: 10}
slo: {ttft: 2 s, tpot: 100 ms, attainment: 0.9}
gateway:
  router: {policy: round-robin}
pools:
  - {name: main, llm: llama-3.1-8b, accelerator: h100-sxm, replicas: 2}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tiny(folder: Path) -> str:
    """Name of a small scenario file in the current folder."""
    (folder / "tiny.yaml").write_text(TINY)
    return "tiny.yaml"


@pytest.fixture
def call() -> Callable[..., Result]:
    """Run ``fleetsim ARGS`` and return exit code, stdout and stderr."""

    def called(*args: str) -> Result:
        return CliRunner().invoke(cli, [os.fspath(a) for a in args])

    return called
