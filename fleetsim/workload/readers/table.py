"""CSV files read by column name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fleetsim.workload.readers.rows import BadRows
from fleetsim.workload.readers.source import fields, header, lines


class Table:
    """A CSV file: its columns, and its rows with their line numbers."""

    def __init__(self, path: Path, bad: BadRows) -> None:
        self._lines = lines(path)
        first = next(self._lines, "")
        self.columns = header(first)
        self._names = [name.strip() for name in fields(first)]
        self._bad = bad

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Rows with the right number of fields; blank lines are passed over."""
        names, width = self._names, len(self._names)
        for number, line in enumerate(self._lines, 2):
            cells = line.rstrip("\r\n").split(",") if '"' not in line else fields(line)
            if len(cells) == width:
                yield number, cells
            elif len(cells) > 1 or cells[0].strip():
                self._bad.add(number, _width_complaint(cells, names))

    def place(self, *names: str) -> int | None:
        """Position of the first of these columns that the file has."""
        return next((self.columns[name] for name in names if name in self.columns), None)


def _width_complaint(cells: list[str], names: list[str]) -> str:
    """What to say of a row with too few or too many fields."""
    missing = f": {', '.join(names[len(cells) :])} missing" if len(cells) < len(names) else ""
    return f"{len(cells)} fields instead of {len(names)}{missing}"
