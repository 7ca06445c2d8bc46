"""The group of commands: start-up, help, errors and exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

import fleetsim
from fleetsim.cli import init, version
from fleetsim.cli.main import COMMANDS, cli
from fleetsim.errors import LawError

from .conftest import TINY

Call = Callable[..., Result]

HEAVY = ("numpy", "pyarrow", "pydantic", "rich", "scipy", "simpy", "ruamel")


def process(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fleetsim", *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=600, check=False)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom fleetsim.cli.main import cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        f"print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stderr.strip() == "[]"
    assert "Simulate a scenario" in done.stdout


def test_import_of_the_package_is_light() -> None:
    code = f"import sys, fleetsim; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names() -> None:
    assert set(fleetsim.__all__) <= set(dir(fleetsim))
    for name in fleetsim.__all__:
        assert getattr(fleetsim, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fleetsim.nothing  # noqa: B018


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, call: Call) -> None:
    result = call(name, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage: ")


def test_no_command_shows_help(call: Call) -> None:
    result = call()
    assert result.exit_code == 2
    assert "Commands:" in result.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["rum"], 'no command "rum". did you mean "run"?'),
        (["run", "--oot", "x"], "No such option"),
        (["list", "nothing"], "policies"),
        (["validate"], "Missing argument"),
        (["--nothing"], "No such option"),
    ],
)
def test_wrong_usage(args: list[str], message: str, call: Call) -> None:
    result = call(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr


def test_version(call: Call) -> None:
    assert call("--version").stdout == f"fleetsim {fleetsim.__version__}\n"
    versions = json.loads(call("version", "--json").stdout)
    assert versions["fleetsim"] == fleetsim.__version__
    assert versions["simpy"]
    assert call("version").stdout.startswith(f"fleetsim {fleetsim.__version__}\n")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (LawError("law 3 broken"), 1, "error: law 3 broken\n"),
        (OSError(28, "No space left on device", "x.parquet"), 1, "error: x.parquet: No space left on device\n"),
        (
            ZeroDivisionError("division by zero"),
            1,
            "internal error: ZeroDivisionError: division by zero\n    FLEETSIM_DEBUG=1",
        ),
        (BrokenPipeError(), 1, ""),
    ],
)
def test_unexpected_errors_are_told_in_a_line(
    error: BaseException, code: int, message: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.delenv("FLEETSIM_DEBUG", raising=False)
    monkeypatch.setattr(version.command, "callback", fail)
    if isinstance(error, BrokenPipeError):
        monkeypatch.setattr(os, "dup2", lambda *_: None)
    result = call("version")
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.lstrip().startswith(message)
    assert "Traceback" not in result.stderr


def test_debug_shows_the_traceback(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setenv("FLEETSIM_DEBUG", "1")
    monkeypatch.setattr(version.command, "callback", fail)
    result = call("version")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr


def test_commands_are_modules_with_a_command() -> None:
    assert cli.get_command(None, "init") is init.command  # type: ignore[arg-type]
    assert cli.get_command(None, "nothing") is None  # type: ignore[arg-type]


def test_real_process_good_and_bad(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    good = process("run", "tiny.yaml", "--out", "o", "--json", cwd=tmp_path)
    assert good.returncode == 0
    assert json.loads(good.stdout)["verdict"] == "STABLE"
    bad = process("run", "missing.yaml", "--out", "p", cwd=tmp_path)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == "missing.yaml  no such file\n    `fleetsim init` writes a scenario to start from\n"
    assert not (tmp_path / "p").exists()


def test_closed_pipe_is_silent(tmp_path: Path) -> None:
    command = f"{sys.executable} -m fleetsim list metrics | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=300, cwd=tmp_path, check=True)
    assert done.stderr == ""


@pytest.mark.parametrize(("sent", "codes"), [(signal.SIGINT, {130}), (signal.SIGTERM, {143})])
def test_a_stopped_run_leaves_nothing_half_done(tmp_path: Path, sent: signal.Signals, codes: set[int]) -> None:
    long = TINY.replace("requests: 20", "requests: 3000000").replace("rate: 5 ", "rate: 200 ")
    (tmp_path / "long.yaml").write_text(long.replace("replicas: 2", "replicas: 8"))
    command = [sys.executable, "-m", "fleetsim", "run", "long.yaml", "--out", "o"]
    running = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not any(p.name != "long.yaml" for p in tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    running.send_signal(sent)
    _, stderr = running.communicate(timeout=300)
    assert running.returncode in codes
    assert "Traceback" not in stderr
    left = {p.name for p in tmp_path.iterdir()} - {"long.yaml"}
    assert left <= {"o"}
    if left:
        assert sent is signal.SIGINT
        assert json.loads((tmp_path / "o" / "manifest.json").read_text())["status"] == "interrupted"
