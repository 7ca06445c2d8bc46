"""How often what broke where somebody counted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

from fleetsim.catalog.data import locate, read_yaml
from fleetsim.errors import DataError, Finding

Scope = Literal["replica", "server", "link"]
SCOPES: tuple[Scope, ...] = ("replica", "server", "link")
"""What a cause takes down: one replica, a server, or the way of a server to the others."""


@dataclass(frozen=True, slots=True)
class Failures:
    """Counts of failures over a fleet and a time."""

    name: str
    title: str
    source: str
    accelerators: int
    days: float
    causes: dict[str, tuple[int, Scope]]
    """Failures of each cause, and what they took down."""

    @property
    def accelerator_hours(self) -> float:
        """Over which they were counted."""
        return self.accelerators * self.days * 24.0

    def per_accelerator_hour(self, scope: Scope) -> float:
        """Failures that take down such a thing, by accelerator and hour."""
        return sum(count for count, struck in self.causes.values() if struck == scope) / self.accelerator_hours


@cache
def load_failures(name: str) -> Failures:
    """Counted failures from the catalogue.

    Raises
    ------
    DataError
        If there are none of this name, or the file is not as it should be.
    """
    path = locate("failures", name)
    content = read_yaml(path)
    try:
        causes = {str(cause): (int(entry["count"]), entry["scope"]) for cause, entry in content["causes"].items()}
        wrong = [cause for cause, (count, scope) in causes.items() if count < 0 or scope not in SCOPES]
        if wrong:
            raise ValueError(f"causes {', '.join(wrong)}")
        return Failures(
            name,
            str(content["title"]),
            str(content["source"]),
            int(content["accelerators"]),
            float(content["days"]),
            causes,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(Finding(f"no counts of failures: {type(error).__name__}: {error}", file=str(path))) from None
