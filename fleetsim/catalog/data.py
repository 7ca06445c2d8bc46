"""Where the catalogue's files lie, and how one is read.

An installed package carries them inside (``fleetsim/_data/models``); in a checkout they are in ``models`` at the top.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from fleetsim.errors import DataError, Finding, nearest

KINDS = ("accelerator", "link", "llm", "encoder", "engine", "calibration", "grid", "price", "failures", "quality")
"""What the catalogue describes: one folder of YAML files each."""


@cache
def models_folder() -> Path:
    """Folder that holds the catalogue.

    Raises
    ------
    DataError
        If neither an installed nor a checked-out catalogue is there.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "_data" / "models", package.parent / "models"):
        if folder.is_dir():
            return folder
    raise DataError(Finding("the catalogue is missing from this installation", file=str(package), hint="Reinstall"))


@cache
def catalogue(kind: str) -> Mapping[str, Path]:
    """File of each name of one kind."""
    return {path.stem: path for path in sorted((models_folder() / kind).glob("*.yaml"))}


def names(kind: str) -> list[str]:
    """Names of one kind (``accelerator``, ``link``, ``llm``, …), sorted."""
    return sorted(catalogue(kind))


def locate(kind: str, name: str) -> Path:
    """File that describes `name`.

    Raises
    ------
    DataError
        With the nearest known name, if there is none.
    """
    path = catalogue(kind).get(name)
    if path is None:
        several = f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s"
        raise DataError(Finding(f'unknown {kind} "{name}"', hint=nearest(name, catalogue(kind), several)))
    return path


@cache
def read_yaml(path: Path) -> Mapping[str, Any]:
    """Content of a catalogue file: a mapping of plain values.

    Raises
    ------
    DataError
        If the file cannot be read, is not YAML, repeats a key or is not a mapping.
    """
    try:
        content = YAML(typ="safe").load(path)
    except OSError as error:
        raise DataError(Finding(f"cannot be read: {error.strerror}", file=str(path))) from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise DataError(_syntax(path, error)) from error
    if not isinstance(content, dict):
        raise DataError(Finding("expected a mapping of names to values", file=str(path)))
    return content


def _syntax(path: Path, error: Exception) -> Finding:
    mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
    problem = error.problem if isinstance(error, MarkedYAMLError) else None
    line, column = (mark.line + 1, mark.column + 1) if mark is not None else (None, None)
    return Finding(str(problem or "not valid YAML"), file=str(path), line=line, column=column)


def read(kind: str, name: str) -> Mapping[str, Any]:
    """Content of the file that describes `name`."""
    return read_yaml(locate(kind, name))
