"""What a result depends on besides its scenario: the code, other people's policies, and the files that the scenario names."""

from __future__ import annotations

import hashlib
import inspect
import sys
import time
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fleetsim.errors import Finding, InputError
from fleetsim.experiment.replicate import code_digest
from fleetsim.plugins import Choice, load
from fleetsim.scenario.load import LoadedScenario
from fleetsim.workload.formats import locate

MadeWith = Mapping[str, Any]
NOTEBOOK = "__main__"
"""Module of what is written in a notebook or in the script that runs."""


def made_with(loaded: LoadedScenario) -> MadeWith:
    """Digests of the code, of policies that are not fleetsim's, and of files, by name.

    Parameters
    ----------
    loaded : LoadedScenario
        Of the run.
    """
    policies = {
        f"{choice.kind} {choice.name}": _source(choice.kind, choice.name) for choice in _choices(loaded.scenario)
    }
    files = {text: _file_digest(path) for text, path in _files(loaded.resolved, loaded.base_dir)}
    return {
        "code": code_digest(),
        "policies": {name: source for name, source in sorted(policies.items()) if source},
        "files": dict(sorted(files.items())),
    }


def differences(old: MadeWith | None, new: MadeWith) -> list[str]:
    """What has changed since, in words."""
    if old is None:
        return ["not known how it was made"]
    changed = [] if old.get("code") == new["code"] else ["fleetsim"]
    for kind in ("policies", "files"):
        before, now = old.get(kind, {}), new[kind]
        changed += [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    return changed


def _choices(node: Any) -> Iterator[Choice]:
    if isinstance(node, Choice):
        yield node
        yield from _choices(node.config)
    elif isinstance(node, BaseModel):
        for name in type(node).model_fields:
            yield from _choices(getattr(node, name))
    elif isinstance(node, Mapping):
        for child in node.values():
            yield from _choices(child)
    elif isinstance(node, tuple | list):
        for child in node:
            yield from _choices(child)


def _source(kind: str, name: str) -> str:
    """Digest of the module of a policy that fleetsim does not carry."""
    policy = load(kind, name)
    if policy.__module__.startswith("fleetsim."):
        return ""
    try:
        of = policy if policy.__module__ == NOTEBOOK else import_module(policy.__module__)
        return hashlib.sha256(inspect.getsource(of).encode()).hexdigest()[:16]
    except (OSError, TypeError, ImportError):
        return f"not known at {time.time_ns()}"  # never the same: done again


def require_portable(loaded: LoadedScenario, machine: str) -> None:
    """Refuse a policy that processes elsewhere cannot import.

    Parameters
    ----------
    loaded : LoadedScenario
        Of a run.
    machine : str
        ``local``: processes of this machine, which read the script anew; or another engine's.

    Raises
    ------
    InputError
        If a class of a notebook was handed over, or, to other machines, one of the script itself.
    """
    if machine == "local" and hasattr(sys.modules[NOTEBOOK], "__file__"):
        return
    for choice in _choices(loaded.scenario):
        if load(choice.kind, choice.name).__module__ == NOTEBOOK:
            message = f"{choice.name.partition(':')[2]} is a class of this notebook or script, which other processes cannot import"
            raise InputError(Finding(message, hint="put it into a module, or ask for jobs=1"))


def _files(node: Any, base_dir: Path) -> Iterator[tuple[str, Path]]:
    """Texts of a scenario that name files which exist, and those files."""
    if isinstance(node, Mapping):
        for child in node.values():
            yield from _files(child, base_dir)
    elif isinstance(node, list):
        for child in node:
            yield from _files(child, base_dir)
    elif isinstance(node, str) and 0 < len(node) < 1000 and "\0" not in node:
        try:
            path = locate(node, base_dir)
            if path.is_file():
                yield node, path
        except (InputError, OSError):
            return


def _file_digest(path: Path) -> str:
    status = path.stat()
    return _digest_of(path, status.st_size, status.st_mtime_ns)


@cache
def _digest_of(path: Path, size: int, mtime_ns: int) -> str:  # noqa: ARG001 - they tell when to read again
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
