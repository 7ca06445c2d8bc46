"""Quantities that change by steps over time: carbon intensities, prices of energy and of accelerators."""

from __future__ import annotations

import csv
import gzip
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from math import floor, inf, isfinite
from pathlib import Path

from fleetsim.catalog.grid import load_grid
from fleetsim.errors import DataError, Finding
from fleetsim.scenario.timed import Series
from fleetsim.units import UNITS

HOUR_S = 3600.0
_NEAR_S = 1e-6
"""A value that begins within this counts as begun: times of changes are sums, and round."""
_BASE = {"carbon intensity": "g/kWh", "price of energy": "USD/kWh", "price": "USD/h"}


class StepSeries:
    """A value that holds from each point in time until the next one.

    Parameters
    ----------
    times_s : sequence of float
        When values begin; the first is 0, and they rise [s].
    values : sequence of float
        One for each.
    end_s : float
        Until when the last one holds; infinite if for ever [s].
    repeat : bool
        Whether it begins again at `end_s`.
    name : str
        What it is called in messages.
    """

    __slots__ = ("_integrals", "_times_s", "_total", "_values", "end_s", "name", "repeat")

    def __init__(
        self,
        times_s: Sequence[float],
        values: Sequence[float],
        end_s: float = inf,
        repeat: bool = False,
        name: str = "",
    ) -> None:
        self.end_s = end_s
        self.repeat = repeat and end_s < inf
        self.name = name
        self._times_s: list[float] = []
        self._values: list[float] = []
        for time_s, value in zip(times_s, values, strict=True):
            if not self._values or value != self._values[-1]:
                self._times_s.append(float(time_s))
                self._values.append(float(value))
        self._integrals = [0.0]
        for (a_s, b_s), value in zip(pairwise(self._times_s), self._values, strict=False):
            self._integrals.append(self._integrals[-1] + (b_s - a_s) * value)
        last_s = 0.0 if end_s == inf else end_s - self._times_s[-1]
        self._total = self._integrals[-1] + last_s * self._values[-1]

    @property
    def known_s(self) -> float:
        """Until when it says anything [s]."""
        return inf if self.repeat else self.end_s

    @property
    def constant(self) -> bool:
        """Whether it never changes, nor ends."""
        return len(self._values) == 1 and self.known_s == inf

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest value."""
        return min(self._values), max(self._values)

    @property
    def average(self) -> float:
        """Mean value over all that it says."""
        return self._values[0] if self.end_s == inf else self._total / self.end_s

    def at(self, time_s: float) -> float:
        """The value from a time on.

        Raises
        ------
        DataError
            If it ends before.
        """
        self._require(time_s)
        return self._values[self._place(self._local(time_s)[1])]

    def next_change_s(self, time_s: float) -> float:
        """When it changes, begins again or ends next, after a time; infinite if never [s]."""
        rounds, local_s = self._local(time_s)
        place = bisect_right(self._times_s, local_s + _NEAR_S)
        if place < len(self._times_s):
            return rounds * self.end_s + self._times_s[place] if rounds else self._times_s[place]
        if not self.repeat:
            return self.end_s if self.end_s > time_s + _NEAR_S else inf
        return inf if self.constant else (rounds + 1) * self.end_s

    def integral(self, begin_s: float, end_s: float) -> float:
        """Integral of the value between two times [value x s].

        Raises
        ------
        DataError
            If it ends before.
        """
        self._require(end_s)
        return self._upto(end_s) - self._upto(begin_s)

    def mean(self, begin_s: float, end_s: float) -> float:
        """Mean value between two times; the value then where they are the same."""
        if end_s <= begin_s:
            return self.at(begin_s)
        return self.integral(begin_s, end_s) / (end_s - begin_s)

    def times(self, factor: float) -> StepSeries:
        """The same with all values so many times as large."""
        return StepSeries(self._times_s, [value * factor for value in self._values], self.end_s, self.repeat, self.name)

    def ended(self, hint: str = "") -> DataError:
        """The error of a run that goes on when the series does not."""
        return DataError(
            Finding(
                f"{self.name} ends at {self.known_s:g} s, before the run does",
                hint=hint or "repeat it (`repeat: true`), give a longer one, or end the run before (`run.horizon`)",
            )
        )

    def _require(self, time_s: float) -> None:
        if time_s > self.known_s + _NEAR_S:
            raise self.ended()

    def _local(self, time_s: float) -> tuple[int, float]:
        """Whole rounds, and the time in the one under way."""
        if not self.repeat:
            return 0, time_s
        rounds = floor((time_s + _NEAR_S) / self.end_s)
        return rounds, time_s - rounds * self.end_s

    def _place(self, local_s: float) -> int:
        return max(bisect_right(self._times_s, local_s + _NEAR_S) - 1, 0)

    def _upto(self, time_s: float) -> float:
        rounds, local_s = self._local(time_s)
        place = self._place(local_s)
        value = self._integrals[place] + (local_s - self._times_s[place]) * self._values[place]
        return value + rounds * self._total if rounds else value


def constant(value: float) -> StepSeries:
    """A value that never changes."""
    return StepSeries([0.0], [value])


def series_of(value: float | Series, dimension: str, base_dir: Path, name: str) -> StepSeries:
    """The series that a field of a scenario means, in the base unit of its dimension.

    Parameters
    ----------
    value : float or Series
        A value that holds for ever, or a block.
    dimension : str
        ``carbon intensity``, ``price of energy`` or ``price``.
    base_dir : Path
        Folder that the name of a file starts from.
    name : str
        What it is called in messages.

    Raises
    ------
    DataError
        If the grid or the file cannot be used.
    """
    if not isinstance(value, Series):
        return constant(value)
    factor = UNITS[dimension][value.unit or _BASE[dimension]] * value.scale
    if value.grid is not None:
        day = load_grid(value.grid).day(dimension, value.season)
        return hourly([number * value.scale for number in day], value.begin_hour, True, name)
    if value.hourly is not None:
        return hourly([number * factor for number in value.hourly], value.begin_hour, value.repeat, name)
    assert value.file is not None
    return read_series(base_dir / value.file, value, factor, name, dimension != "price of energy")


def hourly(values: Sequence[float], begin_hour: float, repeat: bool, name: str) -> StepSeries:
    """One value an hour, from an hour of the list on."""
    first = int(begin_hour)
    own_s = (1.0 - (begin_hour - first)) * HOUR_S
    if not repeat:
        kept = list(values[first:])
        times = [0.0, *(own_s + hour * HOUR_S for hour in range(len(kept) - 1))]
        return StepSeries(times, kept, own_s + (len(kept) - 1) * HOUR_S, False, name)
    turned = [*values[first:], *values[:first]]
    times = [0.0, *(own_s + hour * HOUR_S for hour in range(len(turned)))]
    return StepSeries(times, [*turned, turned[0]], len(turned) * HOUR_S, True, name)


def read_series(path: Path, block: Series, factor: float, name: str, positive: bool) -> StepSeries:
    """A series from a CSV file, which may be compressed with gzip.

    Each value holds until the next row's time, also where hours are missing; the last one for as long as the one before it.

    Raises
    ------
    DataError
        If the file cannot be read, lacks a column, has fewer than two rows, values that are no numbers (or below 0, where
        `positive`), or times that do not rise; or if the run begins outside it.
    """
    rows = _rows(path, block)
    if len(rows) < 2:
        raise _bad(path, f"{len(rows)} rows are no series: two at least are needed")
    first_s = rows[0][0]
    if block.begin is not None:
        try:
            first_s = _seconds(block.begin)
        except ValueError:
            raise _bad(path, f'the run begins at "{block.begin}", which is no time', hint=_TIMES) from None
    previous_s = -inf
    for number, (time_s, value) in enumerate(rows, 2):
        if time_s <= previous_s:
            raise _bad(path, f"column {block.time}: the time is not after the one before", number)
        if not isfinite(value) or (positive and value < 0):
            raise _bad(path, f"column {block.value}: {value:g} is no value of it", number)
        previous_s = time_s
    end_s = 2 * rows[-1][0] - rows[-2][0] - first_s
    begins = [time_s - first_s for time_s, _ in rows]
    if not begins[0] <= 0.0 < end_s:
        raise _bad(path, f'the run begins at "{block.begin}", which is not between its first and last row')
    at = bisect_right(begins, _NEAR_S) - 1
    times = [0.0, *begins[at + 1 :]]
    return StepSeries(times, [value * factor for _, value in rows[at:]], end_s, block.repeat, name)


_TIMES = "seconds, a date as 2022-07-01 00:00:00, or as 01jul2022 00:00:00"


def _bad(path: Path, message: str, line: int | None = None, hint: str = "") -> DataError:
    return DataError(Finding(message, file=str(path), line=line, hint=hint))


def _rows(path: Path, block: Series) -> list[tuple[float, float]]:
    rows = []
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            reader = csv.DictReader(lines)
            for column in (block.time, block.value):
                if column not in (reader.fieldnames or ()):
                    raise _bad(
                        path, f'no column "{column}"', 1, f"columns: {', '.join(reader.fieldnames or ()) or 'none'}"
                    )
            for number, row in enumerate(reader, 2):
                try:
                    rows.append((_seconds(row[block.time] or ""), float(row[block.value] or "")))
                except ValueError:
                    found = f'"{row[block.time]}" and "{row[block.value]}"'
                    raise _bad(path, f"no time and number: {found}", number, f"times are {_TIMES}") from None
    except OSError as error:
        raise _bad(path, f"cannot be read: {error.strerror or error}") from None
    except (UnicodeDecodeError, EOFError, csv.Error, zlib.error) as error:
        raise _bad(path, f"is no CSV file: {error}") from None
    return rows


def _seconds(text: str) -> float:
    """A time as a number of seconds."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        date = datetime.fromisoformat(text)
    except ValueError:
        date = datetime.strptime(text, "%d%b%Y %H:%M:%S")
    return (date.replace(tzinfo=None) - datetime(1970, 1, 1)).total_seconds()
