"""A small valid scenario to break."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fleetsim.errors import Finding, ScenarioError
from fleetsim.scenario.load import load_scenario

SMALL = """\
schema: 1
name: small
seed: 7
workload:
  kind: synthetic
  requests: 10
  arrivals: {process: poisson, rate: 1 req/s}
  prompt_tokens: {distribution: fixed, value: 100}
  output_tokens: {distribution: fixed, value: 10}
slo: {ttft: 2 s, tpot: 100 ms, attainment: 0.9}
gateway:
  router: {policy: round-robin}
pools:
  - {name: main, llm: llama-3.1-8b, accelerator: h100-sxm, replicas: 1}
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a scenario file and return its path."""

    def written(text: str | bytes = SMALL, name: str = "scenario.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return written


@pytest.fixture
def findings(write: Callable[..., Path]) -> Callable[..., list[Finding]]:
    """What loading a text finds."""

    def found(text: str | bytes, *overrides: str) -> list[Finding]:
        with pytest.raises(ScenarioError) as caught:
            load_scenario(write(text), overrides)
        return list(caught.value.findings)

    return found
