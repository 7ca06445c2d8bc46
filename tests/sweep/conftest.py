"""A scenario that runs in a moment."""

from __future__ import annotations

from pathlib import Path

import pytest

SCENARIO = """\
schema: 1
name: tiny
seed: 7
workload:
  kind: synthetic
  requests: 40
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
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small scenario file in an empty current folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(SCENARIO)
    return path
