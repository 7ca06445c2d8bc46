"""Mooncake traces (JSONL): ``timestamp`` [ms], ``input_length``, ``output_length``, ``hash_ids`` of 512-token blocks.

https://github.com/kvcache-ai/Mooncake. Each id names a block of the prompt and all blocks before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fleetsim.workload.readers.rows import BadRows, Row, decimal, whole
from fleetsim.workload.readers.source import integers, json_object, lines

BLOCK_TOKENS = 512
KEYS = frozenset({"timestamp", "input_length", "output_length", "hash_ids"})
_MS = 1e3


def read(path: Path, bad: BadRows) -> Iterator[Row]:
    """Rows with the hashes of their prompts' blocks."""
    for number, line in enumerate(lines(path), 1):
        if line.isspace():
            continue
        try:
            entry = json_object(line)
            yield Row(
                number,
                decimal(entry.get("timestamp"), "timestamp") / _MS,
                whole(entry.get("input_length"), "input_length"),
                whole(entry.get("output_length"), "output_length"),
                integers(entry.get("hash_ids"), "hash_ids"),
                BLOCK_TOKENS,
            )
        except ValueError as error:
            bad.add(number, str(error))
