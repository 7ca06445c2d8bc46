"""What the pages tell users to type exists; what the tutorial says a command prints is what it prints."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from fleetsim.cli.main import cli
from fleetsim.scenario.template import scenarios_folder

ROOT = Path(__file__).parents[2]
PAGES = [
    page
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
    if page.relative_to(ROOT).parts[:2] not in (("docs", "policies"), ("docs", "reference"))  # written by a command
]
FENCE = re.compile(r"^```(sh|text|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(fleetsim [a-z][^`]*)`")
RUN_ALONE = ("run", "compare", "init")
"""Commands of the tutorial that take seconds, so that their output is compared with the page."""


def commands_of(text: str) -> Iterator[str]:
    """Command lines, in blocks of shell and inline, without what follows a pipe or a comment."""
    for _, block in FENCE.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.removeprefix("$ ").strip()
            for part in line.split(" && "):
                if part.removeprefix(".venv/bin/").startswith("fleetsim "):
                    yield part.removeprefix(".venv/bin/")
    yield from INLINE.findall(FENCE.sub("", text).replace("\n", " "))


def words_of(command: str) -> list[str]:
    try:
        words = shlex.split(command.split(" | ")[0], comments=True)
    except ValueError:
        words = command.split()
    return [word for word in words if word not in ("…", "...")][1:]


TOLD = sorted({(page.relative_to(ROOT).as_posix(), line) for page in PAGES for line in commands_of(page.read_text())})


@pytest.mark.parametrize("page", sorted({page for page, _ in TOLD}))
def test_commands_options_and_embedded_scenarios_exist(page: str) -> None:
    for line in [line for other, line in TOLD if other == page]:
        words = words_of(line)
        command = found(words[0])
        if command is None:
            assert words[0].isupper() or words[0].startswith("-"), f"{page}: {line}"  # COMMAND stands for any
            continue
        if isinstance(command, click.Group):
            command = command.get_command(click.Context(command), words[1]) or command
        options = {option for param in command.params for option in (*param.opts, *param.secondary_opts)} | {"--help"}
        for word in words[1:]:
            if word.startswith("--") and word != "--":
                assert word.partition("=")[0] in options, f"{page}: {line}: no option {word}"
            if word.startswith("embedded:") and word[9:].strip("…").islower():
                assert (scenarios_folder() / f"{word[9:]}.yaml").is_file(), f"{page}: {line}: no {word}"


def found(name: str) -> click.Command | None:
    assert isinstance(cli, click.Group)
    return cli.get_command(click.Context(cli), name)


def lines_of(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


def test_the_pages_name_many_commands() -> None:
    assert len(TOLD) > 80
    assert {"run", "sweep", "plan", "report", "calibrate"} <= {words_of(line)[0] for _, line in TOLD}


def test_the_tutorial_prints_what_its_page_says(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "NO_COLOR": "1",
    }
    compared = 0
    for _, block in FENCE.findall(page):
        for told in block.split("$ ")[1:]:
            line, _, printed = told.partition("\n")
            if line.split()[1] not in RUN_ALONE:
                continue
            done = subprocess.run(line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert lines_of(done.stdout)[: len(lines_of(printed))] == lines_of(printed), f"{line}\n{done.stderr}"
            compared += 1
    assert compared >= 5
