"""Many independent runs in a pool of processes; those that are finished are kept, so that a command that was stopped goes on."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import fleetsim
from fleetsim.catalog.data import models_folder
from fleetsim.experiment.pool import each

Figures = Mapping[str, Any]
"""What a run says, by name, as JSON has it; None where there is nothing to average."""
Notice = Callable[[str], None]
"""Told what is done now, in one line."""


@dataclass(frozen=True, slots=True)
class Task:
    """One piece of work that another process can do."""

    label: str
    """What progress calls it."""
    key: str
    """Text that tells the work: what is done with which inputs. Equal keys have equal figures."""
    work: Callable[..., Figures]
    """A function of a module."""
    arguments: tuple[Any, ...] = ()
    keep: bool = True
    """Whether its figures may be kept: not where they depend on code that is not fleetsim's."""

    def __call__(self) -> Figures:
        """Do it."""
        return self.work(*self.arguments)


class Kept:
    """Figures of finished tasks in a folder, by digest of their keys and of the code that made them."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = (
            folder or Path(tempfile.gettempdir()) / f"fleetsim-runs-{os.getuid() if hasattr(os, 'getuid') else 0}"
        )

    def read(self, task: Task) -> Figures | None:
        """What a task that is finished said."""
        try:
            figures = json.loads(self._path(task).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return figures if isinstance(figures, dict) else None

    def write(self, task: Task, figures: Figures) -> None:
        """Keep what a task said."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(task)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(figures), encoding="utf-8")
        part.replace(path)

    def _path(self, task: Task) -> Path:
        return self.folder / f"{hashlib.sha256(f'{code_digest()} {task.key}'.encode()).hexdigest()}.json"


def perform(tasks: Sequence[Task], jobs: int, kept: Kept | None, notice: Notice = lambda _: None) -> list[Figures]:
    """Figures of each task, in their order.

    Parameters
    ----------
    tasks : sequence of Task
        Tasks with equal keys are done once.
    jobs : int
        Processes; with one, the work is done in this process.
    kept : Kept, optional
        Where finished tasks are looked up and kept.
    notice : callable
        Told about each task that begins (or, in other processes, that ended).
    """
    found: dict[str, Figures] = {}
    if kept is not None:
        found = {task.key: figures for task in tasks if task.keep and (figures := kept.read(task)) is not None}
    left = list({task.key: task for task in tasks if task.key not in found}.values())
    done = _here(left, notice) if jobs <= 1 or len(left) <= 1 else _elsewhere(left, jobs, notice)
    for task, figures in done:
        found[task.key] = figures
        if kept is not None and task.keep:
            kept.write(task, figures)
    return [found[task.key] for task in tasks]


def _here(tasks: Iterable[Task], notice: Notice) -> Iterator[tuple[Task, Figures]]:
    for task in tasks:
        notice(task.label)
        yield task, task()


def _elsewhere(tasks: Sequence[Task], jobs: int, notice: Notice) -> Iterator[tuple[Task, Figures]]:
    for done in each(_call, tasks, jobs):
        figures = done.result()
        notice(tasks[done.index].label)
        yield tasks[done.index], figures


def _call(task: Task) -> Figures:
    return task()


_SHOWN = {"cli", "page.py", "plots", "report", "results"}
"""Folders and files that only show what others found."""


@cache
def code_digest() -> str:
    """Digest of fleetsim and its catalogue: what a figure depends on besides its task."""
    package = Path(fleetsim.__file__).parent
    digest = hashlib.sha256()
    for folder, pattern in ((package, "*.py"), (models_folder(), "*.yaml")):
        for path in sorted(folder.rglob(pattern)):
            if _SHOWN & set(path.relative_to(folder).parts):
                continue
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
