"""Scenarios that fleetsim carries with it: the one that runs when none is named, and the examples."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from fleetsim.errors import Finding, ScenarioError, nearest

DEFAULT = "quickstart"
"""Scenario of ``fleetsim run`` without a file; also what ``fleetsim init`` writes."""

FOLDERS = ("", "chaos", "models")
"""Where the examples stand: beside each other, those in which something breaks, and those of several models."""

_SCHEME = "embedded:"


@cache
def scenarios_folder() -> Path:
    """Folder of the scenarios: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "_data" / "scenarios"
    return installed if installed.is_dir() else package.parent / "scenarios"


def embedded_scenarios() -> dict[str, str]:
    """One line about each scenario by name: the comment that its file starts with."""
    return {name: summary_of(path) for name, path in _embedded().items()}


def _embedded() -> dict[str, Path]:
    """Files of the examples by name."""
    root = scenarios_folder()
    found = [path for folder in FOLDERS for path in sorted((root / folder).glob("*.yaml"))]
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in found}


def summary_of(path: Path) -> str:
    """The comment that a file starts with: its first line, or its first sentence if that is longer."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
    lines = [line.removeprefix("# ") for line in lines if "yaml-language-server" not in line]
    if not lines or lines[0].endswith((".", "?")):
        return lines[0] if lines else ""
    sentence, end, _ = " ".join(lines).partition(". ")
    return sentence + end.rstrip()


def scenario_path(name: str | os.PathLike[str] | None) -> Path:
    """Path of a scenario as the command line names it: a file, ``embedded:NAME``, or nothing for the default.

    Raises
    ------
    ScenarioError
        If there is no embedded scenario of that name.
    """
    text = f"{_SCHEME}{DEFAULT}" if name is None else os.fspath(name)
    if not text.startswith(_SCHEME):
        return Path(text)
    known, embedded = _embedded(), text.removeprefix(_SCHEME)
    if embedded not in known:
        message = f'no embedded scenario "{embedded}"'
        raise ScenarioError(Finding(message, hint=nearest(embedded, known, "embedded scenarios")))
    return known[embedded]


def template() -> str:
    """Text of a commented scenario that runs as it is."""
    return scenario_path(None).read_text(encoding="utf-8")
