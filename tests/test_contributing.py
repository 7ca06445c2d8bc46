"""The worked example of CONTRIBUTING.md does what it says: the file, the line and the test, as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The example's file and test, and the installed package's metadata that the line in pyproject.toml becomes."""
    policy, test = (text for kind, text in BLOCKS if kind == "python")
    (line,) = (text for kind, text in BLOCKS if kind == "toml")
    (tmp_path / "neighbours.py").write_text(policy)
    (tmp_path / "test_neighbours.py").write_text(test)
    info = tmp_path / "neighbours-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: neighbours\nVersion: 1.0\n")
    group, entry = re.fullmatch(r'\[project\.entry-points\."(.*)"\]\n(\w+ = ).*\n', line), line.splitlines()[1]
    assert group is not None
    (info / "entry_points.txt").write_text(f"[{group[1]}]\n{entry.replace(chr(34), '')}\n")
    return tmp_path


def call(folder: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_example_is_listed_passes_its_test_and_competes(package: Path) -> None:
    listed = call(package, "fleetsim", "list", "policies")
    assert re.search(r"routers\s+neighbours\s+The least loaded of a few replicas.*neighbours 1\.0", listed)
    assert "1 passed" in call(package, "pytest", "-q", "-p", "no:randomly", "test_neighbours.py")
    (command,) = (text for kind, text in BLOCKS if kind == "sh")
    arguments = command.removeprefix("PYTHONPATH=. fleetsim ").split()
    shown = call(package, "fleetsim", *arguments, "--scenarios", "code-burst", "--seeds", "1", "--no-timing")
    assert "neighbours:Neighbours" in shown


def test_commands_and_files_that_the_page_names_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for name in re.findall(r"`((?:fleetsim|scenarios|docs)/[\w/.-]+)`", text):
        assert (ROOT / name).exists(), name
