"""ShareGPT and agent workloads as LLMServingSim writes them (JSONL).

https://github.com/casys-kaist/LLMServingSim: a request is ``input_toks, output_toks, arrival_time_ns`` with optional
``input_tok_ids``; a session is ``session_id, arrival_time_ns, sub_requests``, each with ``tool_duration_ns``, the pause
after it. A session's file gives no time for its later calls: replayed as recorded, they arrive with the first plus the
tools' time alone; ``sessions: released`` waits for each answer.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

from fleetsim.workload.readers.rows import BadRows, Row, decimal, label, whole
from fleetsim.workload.readers.source import integers, json_object, lines

BLOCK_TOKENS = 16
SHAPES = (frozenset({"input_toks", "output_toks", "arrival_time_ns"}), frozenset({"sub_requests", "arrival_time_ns"}))
_NS = 1e9


def read(path: Path, bad: BadRows) -> Iterator[Row]:
    """Rows in order of arrival: later calls of a session wait until the file has reached their time."""
    later: list[tuple[float, int, int, Row]] = []
    for number, line in enumerate(lines(path), 1):
        if line.isspace():
            continue
        try:
            calls = _calls(number, json_object(line))
        except ValueError as error:
            bad.add(number, str(error))
            continue
        first = calls[0]
        while later and later[0][0] <= first.time_s:
            yield heappop(later)[-1]
        yield first
        for turn, call in enumerate(calls[1:], 1):
            heappush(later, (call.time_s, number, turn, call))
    while later:
        yield heappop(later)[-1]


def _calls(number: int, entry: dict[str, Any]) -> list[Row]:
    """Requests of one line."""
    start_s = decimal(entry.get("arrival_time_ns"), "arrival_time_ns") / _NS
    calls = entry.get("sub_requests")
    if calls is None:
        return [_row(number, entry, start_s, None, None, label(entry.get("model")))]
    if not isinstance(calls, list) or not calls or not all(isinstance(call, dict) for call in calls):
        raise ValueError("sub_requests is not a list of requests")
    session = entry.get("session_id")
    key = number if session is None else str(session)
    rows: list[Row] = []
    pause_s: float | None = None
    for call in calls:
        start_s += pause_s or 0.0
        row = _row(number, call, start_s, key, pause_s, label(entry.get("model")))
        if not (row.prompt_tokens > 0 and row.output_tokens > 0):
            raise ValueError(f"call {len(rows) + 1}: {row.prompt_tokens} prompt and {row.output_tokens} output tokens")
        rows.append(row)
        pause_s = decimal(call.get("tool_duration_ns", 0), "tool_duration_ns") / _NS
        if pause_s < 0:
            raise ValueError(f"tool_duration_ns: {pause_s * _NS:g} is negative")
    return rows


def _row(
    number: int,
    call: dict[str, Any],
    time_s: float,
    session: int | str | None,
    pause_s: float | None,
    model: str | None,
) -> Row:
    ids = call.get("input_tok_ids")
    hashes = () if ids is None else block_hashes(integers(ids, "input_tok_ids"))
    return Row(
        number,
        time_s,
        whole(call.get("input_toks"), "input_toks"),
        whole(call.get("output_toks"), "output_toks"),
        hashes,
        BLOCK_TOKENS if hashes else 0,
        session,
        pause_s,
        model=model,
    )


def block_hashes(tokens: tuple[int, ...]) -> tuple[int, ...]:
    """Chained 64-bit hash of each whole block of 16 tokens: equal where all tokens up to the block's end are."""
    data = array("Q", [token & 0xFFFFFFFFFFFFFFFF for token in tokens]).tobytes()
    size = BLOCK_TOKENS * 8
    hashes = []
    chain = b""
    for end in range(size, len(data) + 1, size):
        chain = hashlib.blake2b(chain + data[end - size : end], digest_size=8).digest()
        hashes.append(int.from_bytes(chain, "little", signed=True))
    return tuple(hashes)
