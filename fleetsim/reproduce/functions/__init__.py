"""What paper files may name besides metrics: makers of traces, figures of a run, and checks without one.

A paper file writes ``module.function``: a function of a module of this package that carries one of the marks below. A new paper
that needs one adds a module here; nothing else lists them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, TypeVar

from fleetsim.errors import nearest

F = TypeVar("F", bound=Callable[..., Any])

MARK = "__paper_function__"


def makes_trace(function: F) -> F:
    """Mark ``function(rng, **arguments) -> pyarrow.Table``: a trace in the columns of fleetsim's own format."""
    return _marked(function, "trace")


def figure_of_run(function: F) -> F:
    """Mark ``function(result, **arguments) -> float``: a figure of one finished run."""
    return _marked(function, "figure")


def check(function: F) -> F:
    """Mark ``function(seed, **arguments) -> float``: a figure that needs no scenario."""
    return _marked(function, "check")


def _marked(function: F, kind: str) -> F:
    setattr(function, MARK, kind)
    return function


def named(name: str, kind: str) -> Callable[..., Any]:
    """The function that a paper file calls `name`.

    Raises
    ------
    LookupError
        With a hint, if there is none of that kind.
    """
    module, _, attribute = name.partition(".")
    known: dict[str, Any] = {}
    if module.isidentifier():
        path = f"{__name__}.{module}"
        try:
            known = vars(importlib.import_module(path))
        except ModuleNotFoundError as error:
            if error.name != path:
                raise
            raise LookupError(f'no module "{module}" in fleetsim.reproduce.functions') from None
    found: Callable[..., Any] | None = known.get(attribute)
    if found is None or getattr(found, MARK, None) != kind:
        names = [f"{module}.{key}" for key, value in known.items() if getattr(value, MARK, None) == kind]
        raise LookupError(f'no {kind} function "{name}". {nearest(name, names)}')
    return found
