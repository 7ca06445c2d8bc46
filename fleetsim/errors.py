"""What can go wrong, and how it is told.

Bad input is collected as `Finding` values so that one message shows all of them at once; the command line prints each
as ``file:line:column  path: message`` with a hint below it and ends with exit code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with an input."""

    message: str
    """What was found and what is allowed."""
    path: str = ""
    """Path to the field, e.g. ``pools[1].accelerator``."""
    file: str = ""
    line: int | None = None
    """One-based."""
    column: int | None = None
    """One-based."""
    hint: str = ""
    """What to try instead."""
    severity: str = "error"
    """``error`` or ``warning``."""

    def __str__(self) -> str:
        where = self.file
        if self.line is not None:
            where += f":{self.line}" + (f":{self.column}" if self.column is not None else "")
        head = "  ".join(
            part for part in (where, f"{self.path}: {self.message}" if self.path else self.message) if part
        )
        return f"{head}\n    {self.hint}" if self.hint else head


class FleetsimError(Exception):
    """Base of every error that fleetsim raises on purpose."""

    exit_code = 1


class InputError(FleetsimError):
    """The user's input cannot be used; carries all findings."""

    exit_code = 2

    def __init__(self, findings: Iterable[Finding] | Finding | str) -> None:
        if isinstance(findings, str):
            findings = Finding(findings)
        self.findings: Sequence[Finding] = (findings,) if isinstance(findings, Finding) else tuple(findings)
        super().__init__("\n".join(str(finding) for finding in self.findings))


class ScenarioError(InputError):
    """A scenario file is not valid."""


class DataError(InputError):
    """A trace or catalogue file is not valid."""


class PolicyError(FleetsimError):
    """A policy returned something that cannot be done."""


class LawError(FleetsimError):
    """A law of the simulation was broken: a bug in fleetsim or in a policy, never the user's fault."""


def nearest(name: str, known: Iterable[str], what: str = "") -> str:
    """Hint that suggests the nearest valid name and lists the known ones."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    listed = ", ".join(names[:12]) + (f" … ({len(names)} in all)" if len(names) > 12 else "")
    suggestion = f'did you mean "{close[0]}"?  ' if close else ""
    return f"{suggestion}Known{' ' + what if what else ''}: {listed or 'none'}"
