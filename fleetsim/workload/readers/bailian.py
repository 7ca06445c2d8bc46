"""Qwen traces of Alibaba Bailian (JSONL): Mooncake's fields with seconds, 16-token blocks and chat turns.

https://github.com/alibaba-edu/qwen-bailian-usagetraces-anon: ``chat_id, parent_chat_id`` (-1 for a first turn),
``timestamp`` [s], ``input_length, output_length, type, turn, hash_ids``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fleetsim.workload.readers.rows import BadRows, Row, decimal, key, label, whole
from fleetsim.workload.readers.source import integers, json_object, lines

BLOCK_TOKENS = 16
KEYS = frozenset({"chat_id", "timestamp", "input_length", "output_length", "hash_ids"})
_ROOT = -1


def read(path: Path, bad: BadRows) -> Iterator[Row]:
    """Rows whose session is the first chat of their chain of parents, as far as the file holds it."""
    roots: dict[int | str, int | str] = {}
    for number, line in enumerate(lines(path), 1):
        if line.isspace():
            continue
        try:
            entry = json_object(line)
            chat, parent = key(entry.get("chat_id")), key(entry.get("parent_chat_id"))
            if chat is None:
                raise ValueError("chat_id is missing")
            root = chat if parent is None or parent == _ROOT else roots.get(parent, parent)
            row = Row(
                number,
                decimal(entry.get("timestamp"), "timestamp"),
                whole(entry.get("input_length"), "input_length"),
                whole(entry.get("output_length"), "output_length"),
                integers(entry.get("hash_ids"), "hash_ids"),
                BLOCK_TOKENS,
                root,
                klass=label(entry.get("type")),
            )
        except ValueError as error:
            bad.add(number, str(error))
            continue
        roots[chat] = root
        yield row
