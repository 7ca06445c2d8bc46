"""Damaged input ends in exit code 0 or 2, with a message, without a traceback, a hang or a half-written result."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleetsim.cli.main import cli

from .mutations import damaged_scenario, damaged_trace, replay_of

SECONDS = 20
"""Longest time for one damaged file."""


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def expired(signum: int, frame: FrameType | None) -> None:
        raise AssertionError(f"still not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, expired)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def call(folder: Path, *args: str) -> int:
    """Run the command; anything but a clean end or a told refusal fails."""
    before = {path for path in folder.rglob("*")}
    with time_limit(SECONDS):
        result = CliRunner().invoke(cli, list(args))
    told = result.stdout + result.stderr
    assert result.exit_code in (0, 2), told
    assert "Traceback" not in told
    assert "internal error" not in told
    if result.exit_code == 2:
        assert result.stdout == "", told
        assert result.stderr.strip()
        assert {path for path in folder.rglob("*")} == before
    return result.exit_code


def damage_scenario(folder: Path, seed: int) -> int:
    rng = random.Random(seed)
    (folder / "s.yaml").write_bytes(damaged_scenario(rng))
    return _validate_or_run(folder, rng)


def damage_trace(folder: Path, seed: int) -> int:
    rng = random.Random(seed)
    form, name, data = damaged_trace(rng)
    (folder / name).write_bytes(data)
    (folder / "s.yaml").write_text(replay_of(form, name, rng))
    return _validate_or_run(folder, rng)


def _validate_or_run(folder: Path, rng: random.Random) -> int:
    code = call(folder, "validate", "s.yaml")
    if rng.random() < 0.25:
        limits = ["--set", "run.horizon=10 min"] if rng.random() < 0.5 else []
        ran = call(folder, "run", "s.yaml", "--out", "out", "--json", "--check", *limits)
        assert limits or ran == code, "what is valid must run, what runs must be valid"
        assert (folder / "out" / "manifest.json").exists() == (ran == 0)
        shutil.rmtree(folder / "out", ignore_errors=True)
    return code


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("fuzz")
    before = Path.cwd()
    os.chdir(path)
    yield path
    os.chdir(before)


quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@quick
@given(seed=st.integers(0, 2**32))
def test_damaged_scenarios(folder: Path, seed: int) -> None:
    damage_scenario(folder, seed)


@quick
@given(seed=st.integers(0, 2**32))
def test_damaged_traces(folder: Path, seed: int) -> None:
    damage_trace(folder, seed)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(20))
def test_thousands_of_damaged_files(folder: Path, block: int) -> None:
    codes = []
    for seed in range(block * 100, block * 100 + 100):
        codes.append(damage_scenario(folder, seed))
        codes.append(damage_trace(folder, seed))
    assert {0, 2} == set(codes), "the damage should sometimes matter and sometimes not"


@given(path=st.text(max_size=40), value=st.text(max_size=40))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_override(folder: Path, path: str, value: str) -> None:
    call(folder, "validate", "embedded:quickstart", "--set", f"{path}={value}")


@given(text=st.text(max_size=200))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_text(folder: Path, text: str) -> None:
    (folder / "s.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    call(folder, "validate", "s.yaml")
