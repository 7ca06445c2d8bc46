"""A linear or integer program as data: variables, what they cost, and requirements in words. It knows no solver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Literal

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]
Integers = np.ndarray[Any, np.dtype[np.int64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]
Sense = Literal["<=", ">=", "=="]


@dataclass(frozen=True, slots=True)
class Requirement:
    """One row: coefficients times variables are at most, at least or exactly `amount`."""

    words: str
    """What is required, for people: ``at most 4 h100-sxm``."""
    columns: Integers
    coefficients: Floats
    sense: Sense
    amount: float
    unit: str = ""
    """Of `amount`."""
    more: str = ""
    """What one more unit of `amount` is, for people: ``one more h100-sxm``; a row without it gets no shadow price."""
    elastic: bool = True
    """Whether a user could change it: explanations of infeasibility bend only such rows."""


@dataclass(frozen=True, slots=True)
class LinearProgram:
    """Minimise cost times variables under all requirements."""

    names: tuple[str, ...]
    cost: Floats
    lower: Floats
    upper: Floats
    integer: Flags
    requirements: tuple[Requirement, ...]
    unit: str = "USD/h"
    """Of the objective."""

    @property
    def relaxed(self) -> LinearProgram:
        """The same program without integers: its optimum bounds this one's from below."""
        return replace(self, integer=np.zeros(len(self.names), dtype=bool))

    def with_amount(self, index: int, amount: float) -> LinearProgram:
        """The same program with another amount in one requirement."""
        rows = list(self.requirements)
        rows[index] = replace(rows[index], amount=amount)
        return replace(self, requirements=tuple(rows))


class Formulation:
    """Collects variables and requirements; whole arrays at a time, since large programs have tens of thousands of either."""

    def __init__(self, unit: str = "USD/h") -> None:
        self._unit = unit
        self._names: list[str] = []
        self._parts: list[tuple[Floats, Floats, Floats, Flags]] = []
        self._rows: list[Requirement] = []

    def variables(
        self,
        names: Sequence[str],
        cost: Floats | Sequence[float] | float = 0.0,
        lower: Floats | float = 0.0,
        upper: Floats | float = inf,
        integer: bool = False,
    ) -> Integers:
        """Add variables; their columns.

        Parameters
        ----------
        names : sequence of str
            Unique in the program.
        cost, lower, upper : float or float array, shape (len(names),)
            Share in the objective for one unit, and bounds.
        integer : bool
            Whether they are whole numbers.
        """
        count = len(names)
        full = [np.broadcast_to(np.asarray(value, dtype=np.float64), (count,)) for value in (cost, lower, upper)]
        self._parts.append((full[0], full[1], full[2], np.full(count, integer)))
        first = len(self._names)
        self._names += names
        return np.arange(first, first + count, dtype=np.int64)

    def require(
        self,
        words: str,
        columns: Sequence[int] | Integers,
        coefficients: Sequence[float] | Floats | float,
        sense: Sense,
        amount: float,
        *,
        unit: str = "",
        more: str = "",
        elastic: bool = True,
    ) -> None:
        """Add a requirement; see `Requirement`."""
        places = np.asarray(columns, dtype=np.int64)
        factors = np.broadcast_to(np.asarray(coefficients, dtype=np.float64), places.shape)
        self._rows.append(Requirement(words, places, factors, sense, float(amount), unit, more, elastic))

    def program(self) -> LinearProgram:
        """What was collected."""
        if len(set(self._names)) != len(self._names):
            raise ValueError("two variables of a program have the same name")
        cost, lower, upper, integer = (np.concatenate([part[k] for part in self._parts]) for k in range(4))
        return LinearProgram(tuple(self._names), cost, lower, upper, integer, tuple(self._rows), self._unit)
