"""Splitwise and Vidur traces (CSV), in either's column names; times in seconds.

SplitwiseSim (https://github.com/Mutinifni/splitwise-sim) writes ``arrival_timestamp, prompt_size, token_size``, Vidur
(https://github.com/microsoft/vidur) ``arrived_at, num_prefill_tokens, num_decode_tokens``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fleetsim.workload.readers.rows import BadRows, Row, decimal, whole
from fleetsim.workload.readers.table import Table

FAMILIES = (
    ("arrival_timestamp", "prompt_size", "token_size"),
    ("arrived_at", "num_prefill_tokens", "num_decode_tokens"),
)


def read(path: Path, bad: BadRows) -> Iterator[Row]:
    """Rows."""
    table = Table(path, bad)
    names = next(names for names in FAMILIES if set(names) <= set(table.columns))
    when, prompt, output = (table.columns[name] for name in names)
    for number, cells in table.rows():
        try:
            yield Row(
                number,
                decimal(cells[when], names[0]),
                whole(cells[prompt], names[1]),
                whole(cells[output], names[2]),
            )
        except ValueError as error:
            bad.add(number, str(error))
