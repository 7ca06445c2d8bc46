"""Measured points as functions: never falling with more work, linear between the points and beyond them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fleetsim.engine.api import Line

INFINITY = float("inf")
FAR = 1e14
"""Beyond any step, also in squares of tokens; grids are continued to here, so that what lies between is interpolated."""

Array = NDArray[np.float64]


def rising(values: Array) -> Array:
    """The nearest values (least squares) that fall along no axis: more work never takes less time.

    Measured times scatter by a few percent, and some kernels are faster with a little more work; a simulation in which
    waiting for more work pays off would act on that scatter.
    """
    from scipy.optimize import isotonic_regression

    result = np.array(values, dtype=np.float64)
    for axis in range(result.ndim):
        result = np.apply_along_axis(lambda line: isotonic_regression(line).x, axis, result)
    return result


def weigh(points: Sequence[float], x: float) -> tuple[int, float]:
    """Where `x` lies: index i of a point and the weight of the point after it; before the first point, the first alone."""
    last = len(points) - 2
    if last < 0 or x <= points[0]:
        return 0, 0.0
    i = min(bisect_right(points, x) - 1, last)
    return i, (x - points[i]) / (points[i + 1] - points[i])


class Curve:
    """A function of one number, linear between points; flat before the first and straight on after the last."""

    def __init__(self, points: Sequence[float], values: Sequence[float]) -> None:
        self.points, self.values = [float(x) for x in points], [float(y) for y in values]

    def at(self, x: float) -> float:
        """Value at `x`."""
        i, weight = weigh(self.points, x)
        values = self.values
        return values[i] if not weight else values[i] + weight * (values[i + 1] - values[i])


class Grid:
    """A function of two numbers that never falls, bilinear between points.

    Parameters
    ----------
    rows, columns : sequence of float
        Rising points on both axes.
    values : array of shape (rows, columns)
        Measured values, none below zero.

    Notes
    -----
    Before the first points the function is flat; after the last it goes on straight, as steeply as its neighbours
    demand so that no two lines cross.
    """

    def __init__(self, rows: Sequence[float], columns: Sequence[float], values: Array) -> None:
        grid = _continued(_continued(rising(values), columns).T, rows).T
        self.rows = [*map(float, rows), *([FAR] if len(rows) > 1 else [])]
        self.columns = [*map(float, columns), *([FAR] if len(columns) > 1 else [])]
        self._values: list[list[float]] = grid.tolist()

    def at(self, row: float, column: float) -> float:
        """Value at a point."""
        j, weight = weigh(self.columns, column)
        i, share = weigh(self.rows, row)
        value = self._along(i, j, weight)
        return value + share * (self._along(i + 1, j, weight) - value) if share else value

    def _along(self, i: int, j: int, weight: float) -> float:
        values = self._values[i]
        return values[j] + weight * (values[j + 1] - values[j]) if weight else values[j]

    def row(self, row: float) -> list[float]:
        """Values at `row` over all `columns`."""
        i, share = weigh(self.rows, row)
        below = self._values[i]
        if not share:
            return below
        return [low + share * (high - low) for low, high in zip(below, self._values[i + 1], strict=True)]


def _continued(values: Array, columns: Sequence[float]) -> Array:
    """One more column, at `FAR`: the last slope of each row, or a steeper one of a row before it."""
    if len(columns) < 2:
        return values
    slope = (values[:, -1] - values[:, -2]) / (columns[-1] - columns[-2])
    far = values[:, -1] + np.maximum.accumulate(slope) * (FAR - columns[-1])
    return np.column_stack([values, far])


class Pieces:
    """Decode steps of one batch: lines over the context sum, each up to where the next holds."""

    def __init__(
        self, batch: int, contexts: Sequence[float], times: Sequence[float], energies: Sequence[float]
    ) -> None:
        starts = [0.0, *(batch * context for context in contexts[1:-1])]
        if contexts[0] > 0 and len(contexts) > 1:
            starts.insert(1, batch * contexts[0])
        self.ends = [*starts[1:], INFINITY]
        points = [batch * context for context in contexts]
        self.lines = []
        for start, end in zip(starts, self.ends, strict=True):
            i, _ = weigh(points, start)
            flat = len(points) < 2 or (start < points[0])
            span = 1.0 if flat else points[i + 1] - points[i]
            slope_s = 0.0 if flat else (times[i + 1] - times[i]) / span
            slope_j = 0.0 if flat else (energies[i + 1] - energies[i]) / span
            time_s, energy_j = times[i] - slope_s * points[i], energies[i] - slope_j * points[i]
            self.lines.append(Line(time_s, slope_s, energy_j, slope_j, end))

    def at(self, ctx_tokens: int) -> Line:
        """The line that holds at a context sum."""
        return self.lines[bisect_right(self.ends, ctx_tokens)]
