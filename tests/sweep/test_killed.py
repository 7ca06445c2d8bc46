"""A killed or interrupted sweep loses the runs that were under way, and nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from fleetsim.sweeping.study import sweep

SECONDS = 120.0
"""Longest wait for something that must happen."""
SEEDS = list(range(1, 9))

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and /proc")


_MAIN = """\
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it runs in the background
from fleetsim.cli.main import main
main()
"""


def _command(out: str) -> list[str]:
    axis = f"seed={','.join(map(str, SEEDS))}"
    return [sys.executable, "-c", _MAIN, "sweep", "tiny.yaml", "--axis", axis, "--out", out, "--jobs", "2"]


@contextmanager
def _started(out: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        _command(out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _wait_for(what: str, condition: object) -> None:
    end = time.monotonic() + SECONDS
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, f"waited {SECONDS:g} s for {what}"
        time.sleep(0.02)


def _children(pid: int) -> list[int]:
    """Processes of the pool: those below `pid` that are alive."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, rest = stat.read_text().rpartition(")")
            state, parent = rest.split()[:2]
        except (OSError, ValueError):
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(head.split()[0]))
    return found


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _finished(out: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("run=*/manifest.json")}


@pytest.fixture
def slow(tiny: Path) -> Path:
    """Runs that take long enough to be killed in the middle."""
    tiny.write_text(tiny.read_text().replace("requests: 40", "requests: 4000").replace("5 req/s", "20 req/s"))
    return tiny


def test_kill_9_loses_only_the_runs_under_way(slow: Path) -> None:
    out = slow.parent / "study"
    with _started("study") as process:
        _wait_for("two finished runs", lambda: len(_finished(out)) >= 2)
        workers = _children(process.pid)
        process.kill()
        process.wait()
    before = _finished(out)
    assert 2 <= len(before) < len(SEEDS)
    assert len(workers) >= 2
    _wait_for("the pool to end with its owner", lambda: not any(map(_alive, workers)))
    assert json.loads((out / "manifest.json").read_text())["status"] == "running"
    before = _finished(out)

    done = subprocess.run(_command("study"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{len(SEEDS)} runs, {len(before)} of them finished before" in done.stderr
    after = _finished(out)
    assert len(after) == len(SEEDS)
    assert {name: after[name] for name in before} == before  # not touched again
    assert not list(out.glob(".*")), "leftovers of the killed processes"

    whole = sweep(slow, {"seed": SEEDS}, out="whole", jobs=1)
    assert len(whole.finished) == len(SEEDS)
    for row in whole.runs:
        tables = [out / f"run={row['run']}", slow.parent / "whole" / f"run={row['run']}"]
        ours, theirs = ((folder / "requests.parquet").read_bytes() for folder in tables)
        assert ours == theirs
    columns = [name for name in whole.summary.column_names if name != "wall_s"]
    assert pq.ParquetFile(out / "summary.parquet").read().select(columns).equals(whole.summary.select(columns))


def test_control_c_ends_at_once_and_says_what_is_left(slow: Path) -> None:
    out = slow.parent / "study"
    with _started("study") as process:
        _wait_for("a finished run", lambda: len(_finished(out)) >= 1)
        workers = _children(process.pid)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
        said, told = process.communicate(timeout=SECONDS)
    assert process.returncode == 130, told
    assert b"the same command goes on where it stopped" in told
    assert b"not done" in said
    _wait_for("the pool to end with its owner", lambda: not any(map(_alive, workers)))
    assert not list(out.glob(".*"))
    status = pq.ParquetFile(out / "summary.parquet").read()["status"].to_pylist()
    assert status.count("finished") == len(_finished(out)) >= 1
    assert status.count("finished") + status.count("interrupted") == len(SEEDS)
