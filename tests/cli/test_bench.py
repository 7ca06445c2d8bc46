"""``fleetsim bench``: one JSON object, or a table; progress apart from both."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from fleetsim.cli import bench as cli_bench
from fleetsim.experiment.bench import GROUPS, Case, Measured

Call = Callable[..., Result]

KEYS = {
    "case",
    "requests",
    "replicas",
    "output_tokens",
    "events",
    "events_times_plain",
    "verdict",
    "wall_s",
    "cpu_s",
    "cpu_us_per_request",
    "peak_rss_bytes",
    "compiled",
    "requests_per_wall_s",
    "output_tokens_per_wall_s",
    "events_per_wall_s",
    "events_per_request",
    "times_plain",
}


def test_floor_as_json(folder: Path, call: Call) -> None:
    result = call("bench", "--quick", "--only", "floor", "--json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert [(row["case"], row["events"]) for row in report["cases"]] == [
        ("floor-simpy", 300_000),
        ("floor-clock", 300_000),
    ]
    for row in report["cases"]:
        assert set(row) == KEYS
        assert row["wall_s"] > 0
        assert row["requests"] is None
    assert isinstance(report["compiled"], bool)
    assert result.stderr.splitlines() == [
        "1/2 floor-simpy: timers that do nothing",
        "2/2 floor-clock: timers that do nothing",
    ]
    assert list(folder.iterdir()) == []


def test_table(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values stand under their titles; what a case does not have is left blank."""

    def bench(chosen: Sequence[Case], repeat: int, tell: Callable[[str], None]) -> dict[str, Any]:
        tell("going")
        rows = [
            Measured("million", 1_000_000, 64, 220_000_000, 2_500_000, "STABLE", 20.0, 19.5, 300_000_000, True),
            Measured("floor-simpy", None, None, None, 2_500_000, None, 2.0, 2.0, None, True),
        ]
        facts = {
            "compiled": True,
            "python": "CPython 3.11.7",
            "machine": "x86_64",
            "processors": 2,
            "load_average": 0.5,
        }
        return {**facts, "repeat": repeat, "cases": [row.row() for row in rows]}

    monkeypatch.setattr(cli_bench, "bench", bench)
    result = call("bench", "--repeat", "3")
    assert result.exit_code == 0
    assert result.stderr == "going\n"
    title, first, second, _, conditions = result.stdout.splitlines()
    assert title.split("  ")[0] == "case"
    assert (
        " ".join(first.split()) == "million 1,000,000 64 20.00 19.50 50,000 11,000,000 2,500,000 125,000 2.50 19.5 300"
    )
    assert " ".join(second.split()) == "floor-simpy 2.00 2.00 2,500,000 1,250,000"
    assert first.index("2,500,000") == second.index("2,500,000")
    assert conditions == (
        "hot modules compiled; CPython 3.11.7 on one core; x86_64, 2 processors, load average 0.5 at the start; "
        "median of 3 runs"
    )


@pytest.mark.parametrize("arguments", [("--only", "nothing"), ("--repeat", "0"), ("extra",)])
def test_wrong_usage(arguments: tuple[str, ...], call: Call) -> None:
    result = call("bench", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")


def test_help_names_every_group(call: Call) -> None:
    told = call("bench", "--help").stdout
    assert all(f"\n  {group} " in told for group in GROUPS)
