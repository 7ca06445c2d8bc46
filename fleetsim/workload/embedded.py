"""Trace data that fleetsim carries with it: the folder ``traces/``."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from fleetsim.errors import DataError, Finding, nearest

_SUFFIXES = (".parquet", ".csv.gz", ".jsonl.gz")


@cache
def folder() -> Path:
    """Folder of the trace data: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "_data" / "traces"
    return installed if installed.is_dir() else package.parent / "traces"


def embedded_names() -> list[str]:
    """Traces for ``embedded:NAME``, sorted."""
    return sorted(p.name.removesuffix(s) for p in folder().glob("*") for s in _SUFFIXES if p.name.endswith(s))


def embedded_trace(name: str) -> Path:
    """Path of a trace that fleetsim carries.

    Raises
    ------
    DataError
        If there is none of that name; the hint lists them.
    """
    if name in embedded_names():
        return next(path for suffix in _SUFFIXES if (path := folder() / f"{name}{suffix}").exists())
    raise DataError(Finding(f'no embedded trace "{name}"', hint=nearest(name, embedded_names(), "embedded traces")))


@cache
def read_yaml(file: str) -> dict[str, Any]:
    """A YAML file of the trace folder."""
    from ruamel.yaml import YAML

    content = YAML(typ="safe").load(folder() / file)
    return dict(content)
