"""Power blocks that cannot be: each refused with its place in the file and what would be possible."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from fleetsim.cli.main import cli

SCENARIO = """\
schema: 1
name: power
workload:
  kind: synthetic
  requests: 5
  arrivals: {process: poisson, rate: 1 req/s}
  prompt_tokens: {distribution: fixed, value: 10}
  output_tokens: {distribution: fixed, value: 10}
pools:
  - name: chat
    llm: llama-3.1-8b
    accelerator: h100-sxm
  - name: batch
    llm: llama-3.1-8b
    accelerator: h100-sxm
    power: POWER
power:
  - manager: MANAGER
    pools: [POOLS]
    ROW
"""


@pytest.mark.parametrize(
    ("power", "manager", "pools", "row", "told"),
    [
        ("{}", "slo-clock", "chatt", "", 'power[0].pools[0]: no pool "chatt" here'),
        ("{}", "slo-clock", "chat", "low_priority: [batch]", 'power[0].low_priority[0]: no pool "batch" here'),
        ("{}", "slo-clok", "chat", "", 'did you mean "slo-clock"?'),
        ("{}", "{policy: polca, first_ratio: 0.95}", "chat", "budget: 1 kW", "must rise in this order"),
        ("{}", "{policy: schedule, stages: [{at_s: 1, pools: [x]}]}", "chat", "", "manager.stages[0].pools[0]"),
        ("{}", "{policy: schedule, stages: [{at_s: 2}, {at_s: 1}]}", "chat", "", "in order of time"),
        ("{}", "{policy: slo-clock, clocks: [0.5]}", "chat", "", "clocks must rise to 1"),
        ("{}", "slo-clock", "chat", "actuation: 5", "has no unit"),
        ("{}", "slo-clock", "chat", "budget: 0 W", "power[0].budget"),
        ("{thermal: {}}", "slo-clock", "chat", "", "nobody says how h100-sxm is cooled: resistance, capacity"),
        (
            "{thermal: {resistance: 0.1, capacity: 100, throttle: 80 C, resume: 85 C, throttled_clock: 0.5}}",
            "slo-clock", "chat", "", "must rise in this order",
        ),
        ("{sleep: {power: 5 W}}", "slo-clock", "chat", "", "pools[1].power.sleep.wake"),
    ],
)  # fmt: skip
def test_refused_with_a_place(power: str, manager: str, pools: str, row: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "power.yaml"
    text = SCENARIO.replace("POWER", power).replace("MANAGER", manager).replace("POOLS", pools).replace("ROW", row)
    path.write_text(text.rstrip() + "\n", encoding="utf-8")
    result = CliRunner().invoke(cli, ["validate", str(path)])
    assert result.exit_code == 2, result.output
    assert told in " ".join(result.output.split())
    assert "power.yaml:" in result.output


def test_a_pool_has_one_manager(tmp_path: Path) -> None:
    text = SCENARIO.replace("POWER", "{}").replace("MANAGER", "slo-clock").replace("POOLS", "chat").replace("ROW", "")
    path = tmp_path / "power.yaml"
    path.write_text(f"{text.rstrip()}\n  - manager: slo-clock\n", encoding="utf-8")
    result = CliRunner().invoke(cli, ["validate", str(path)])
    assert result.exit_code == 2
    assert 'pool "chat" has a power manager already, that of power[0]' in " ".join(result.output.split())


def test_replicas_that_change_their_llm_have_no_manager(tmp_path: Path) -> None:
    text = SCENARIO.replace("POWER", "{}").replace("MANAGER", "slo-clock").replace("POOLS", "swaps").replace("ROW", "")
    path = tmp_path / "power.yaml"
    path.write_text(
        text.replace(
            "  - name: batch\n    llm: llama-3.1-8b", "  - name: swaps\n    llm: qwen2.5-7b\n    models: [phi-4]"
        ),
        encoding="utf-8",
    )
    result = CliRunner().invoke(cli, ["validate", str(path)])
    assert result.exit_code == 2
    assert "clocks, caps and sleep are not modelled with `models`" in " ".join(result.output.split())


def test_the_answer_shows_what_was_done(tmp_path: Path) -> None:
    text = SCENARIO.replace("POWER", "{}").replace("POOLS", "chat, batch").replace("ROW", "budget: 1 kW")
    path = tmp_path / "power.yaml"
    stages = "{policy: schedule, stages: [{at_s: 1, clock_ratio: 0.5}]}"
    path.write_text(text.replace("MANAGER", stages), encoding="utf-8")
    result = CliRunner().invoke(cli, ["run", str(path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "of its budget" in result.output
    assert "below the usual clock or cap" in result.output
    assert "brakes pulled" not in result.output


@pytest.mark.parametrize(("manager", "told"), [("polca", "without a budget"), ("sleep", "has no sleep state")])
def test_managers_that_can_do_nothing_are_warned_of(manager: str, told: str, tmp_path: Path) -> None:
    text = SCENARIO.replace("POWER", "{}").replace("MANAGER", manager).replace("POOLS", "chat").replace("ROW", "")
    path = tmp_path / "power.yaml"
    path.write_text(text, encoding="utf-8")
    result = CliRunner().invoke(cli, ["validate", str(path)])
    assert result.exit_code == 0
    assert told in " ".join(result.output.split())
