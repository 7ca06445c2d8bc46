"""``fleetsim validate``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from click.testing import Result

from .conftest import TINY

Call = Callable[..., Result]


def test_valid(tiny: str, call: Call) -> None:
    result = call("validate", tiny, "embedded:replay")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "tiny.yaml: valid\nembedded:replay: valid\n"


def test_findings_of_several_files(tiny: str, folder: Path, call: Call) -> None:
    (folder / "bad.yaml").write_text(TINY.replace("seed: 7", "sed: 7"))
    result = call("validate", "bad.yaml", tiny, "missing.yaml")
    assert result.exit_code == 2
    assert result.stdout == "tiny.yaml: valid\n"
    assert 'bad.yaml:3:1  sed: unknown key "sed"\n    did you mean "seed"?' in result.stderr
    assert "missing.yaml  no such file" in result.stderr


def test_json(tiny: str, folder: Path, call: Call) -> None:
    (folder / "bad.yaml").write_text(TINY.replace("ttft: 2 s", "ttft: 2 GiB"))
    result = call("validate", "--json", "bad.yaml", tiny)
    assert result.exit_code == 2
    told = json.loads(result.stdout)
    assert told["valid"] is False
    assert [file["valid"] for file in told["files"]] == [False, True]
    finding = told["files"][0]["findings"][0]
    assert (finding["path"], finding["line"], finding["severity"]) == ("slo.ttft", 10, "error")


def test_warnings_do_not_fail(tiny: str, call: Call) -> None:
    result = call("validate", tiny, "--set", "pools[0].parallelism.tp=16")
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: ")


def test_rows_of_the_trace_are_read(folder: Path, call: Call) -> None:
    (folder / "t.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,a,44\n")
    text = (
        TINY.split("workload:")[0] + "workload: {kind: trace, format: azure, path: t.csv}\nslo:" + TINY.split("slo:")[1]
    )
    (folder / "s.yaml").write_text(text)
    result = call("validate", "s.yaml")
    assert result.exit_code == 2
    assert "t.csv:2" in result.stderr
