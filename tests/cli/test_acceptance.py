"""The bad files of the acceptance set, and what must be said about each."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

Call = Callable[..., Result]

HOME = Path(os.environ.get("FLEETSIM_ACCEPTANCE", Path(__file__).parents[3] / "shared" / "acceptance"))

pytestmark = pytest.mark.skipif(not HOME.is_dir(), reason=f"no acceptance files in {HOME} (FLEETSIM_ACCEPTANCE)")

BAD = {
    "unknown-policy": ["unknown-policy.yaml:6:", "gateway.router.policy", 'did you mean "least-outstanding"?'],
    "does-not-fit": [
        "does-not-fit.yaml:8:",
        "weights need 131.4 GiB",
        "a10g has 22.1 GiB",
        "would fit: parallelism {tp: 8}",
    ],
    "duplicate-key": ["duplicate-key.yaml:4:", '"seed"'],
    "code-in-yaml": ["code-in-yaml.yaml:2:", "code-in-yaml.yaml:6:", "--allow-import"],
    "wrong-units": ["slo.ttft", "slo.tpot", "slo.attainment", "pools[0].replicas"],
    "broken-trace": ["broken-trace.csv:3", "broken-trace.csv:4", "broken-trace.csv:5"],
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("command", ["run", "validate"])
def test_bad_files(name: str, command: str, folder: Path, call: Call, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--out", "o", "--json"] if command == "run" else []
    result = call(command, str(HOME / "bad" / f"{name}.yaml"), *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    for text in BAD[name]:
        assert text in result.stderr
    assert list(folder.iterdir()) == []
    assert "hacked" not in capfd.readouterr().out


def test_broken_trace_skipped(folder: Path, call: Call) -> None:
    path = str(HOME / "bad" / "broken-trace.yaml")
    result = call("run", path, "--out", "o", "--json", "--set", "workload.on_bad_rows=skip")
    assert result.exit_code == 0
    summary = json.loads(result.stdout)["summary"]
    assert (summary["skipped_rows"], summary["requests"]) == (3, 1)


@pytest.mark.parametrize("path", sorted(HOME.glob("*.yaml")), ids=lambda path: path.stem)
def test_good_files_are_valid(path: Path, call: Call) -> None:
    result = call("validate", str(path))
    assert (result.exit_code, result.stderr) == (0, "")
