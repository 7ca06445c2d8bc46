"""A trace for ui.perfetto.dev and chrome://tracing, in the JSON of Chrome's trace events.

Each replica is a process of its own (named by its pool), so that its requests, its counters and its states stand together.
Requests overlap on a replica, so they are async spans: one for the whole request, and in it ``encode``, ``queue``, ``prefill`` and
``decode``; of a prompt that was computed elsewhere, ``prefill`` stands with the replica that did. Counters (requests running and
waiting, KV in use, tokens per step, power) change at the ends of intervals.

A browser opens some tens of megabytes: what goes beyond the size asked for is left out from the end, and that is said.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from fleetsim.results.exports.files import complete
from fleetsim.results.exports.options import Options, Written
from fleetsim.results.folder import Results, Run

_US = 1e6
GATEWAY = 0
"""Process of what never reached a replica; replica i is process i + 1."""
_COUNTERS = {
    "requests": {"running": "running", "waiting": "waiting"},
    "KV in use": {"%": "kv_used_ratio"},
    "tokens per step": {"tokens": "batch_mean"},
    "power": {"W": "power_w"},
}
"""Counter -> its series and their columns."""
_COUNTER_SHARE = 0.4
"""Of the size, what counters and states may take; where they would take more, every n-th interval is told."""
_COUNTER_BYTES = 480
"""About what the counters of a replica take in an interval."""
_COLUMNS = [
    "request_id",
    "session_id",
    "class",
    "tenant",
    "status",
    "reason",
    "pool",
    "replica",
    "prefill_replica",
    "arrival_s",
]
_COLUMNS += [
    "encode_start_s",
    "encode_end_s",
    "queued_s",
    "first_scheduled_s",
    "first_token_s",
    "end_s",
    "prompt_tokens",
]
_COLUMNS += ["output_tokens", "cached_tokens", "preemptions"]
Event = dict[str, Any]


def write(results: Results, run: Run, out: Path, options: Options) -> Written:
    """Write the trace of one run, or of a window of it."""
    notes: list[str] = []
    with complete(out) as file:
        trace = _Trace(file, options.max_bytes)
        low, high = options.window or (-math.inf, math.inf)
        for event in _names(results, run):
            trace.add(event)
        every = _counter_step(results, run, options, (low, high))
        if every > 1:
            notes.append(f"counters tell every {every}th interval, to stay below {options.max_bytes / 1e6:,.0f} MB")
        for event in _counters(results, run, (low, high), every):
            trace.add(event)
        told = total = 0
        for row in _requests(results, run):
            if row["arrival_s"] is None or row["arrival_s"] >= high or (row["end_s"] or math.inf) < low:
                continue
            total += 1
            if not trace.is_full:
                told += trace.add_all(list(_spans(row)))
        if told < total:
            share = f"{told:,} of {total:,} requests (in the order in which they ended)"
            notes.append(
                f"{share} are told, to stay below {options.max_bytes / 1e6:,.0f} MB: ask for a shorter --window"
            )
        metadata = {"run": run.id, "label": run.label, "scenario": run.name, "requests_told": told, "requests": total}
        trace.close({**metadata, "fleetsim_version": run.manifest.get("fleetsim_version"), "notes": notes})
    return Written([out], notes)


class _Trace:
    """Events as they come, up to a size."""

    def __init__(self, file: IO[str], max_bytes: int) -> None:
        self._file, self._left = file, max_bytes - 1000  # for the end
        self._file.write('{"displayTimeUnit": "ms", "traceEvents": [')
        self._first = True
        self.is_full = False
        """Whether something had no room."""

    def add(self, event: Event) -> None:
        """One event, if there is room."""
        self.add_all([event])

    def add_all(self, events: list[Event]) -> bool:
        """Events that belong together; False if there is no room for them, or was none for earlier ones."""
        if self.is_full:
            return False
        texts = [json.dumps(event, ensure_ascii=False, separators=(",", ":")) for event in events]
        size = sum(len(text.encode()) + 2 for text in texts)
        if size > self._left:
            self.is_full = True
            return False
        self._left -= size
        for text in texts:
            self._file.write(("\n" if self._first else ",\n") + text)
            self._first = False
        return True

    def close(self, metadata: dict[str, Any]) -> None:
        """End the object."""
        self._file.write(f'\n], "otherData": {json.dumps(metadata, ensure_ascii=False)}}}\n')


def _names(results: Results, run: Run) -> Iterator[Event]:
    yield _meta(GATEWAY, "process_name", name="gateway")
    seen: set[int] = set()
    for batch in results.scan("replicas", ["replica", "pool"], run):
        for replica, pool in zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True):
            if replica not in seen:
                seen.add(replica)
                yield _meta(replica + 1, "process_name", name=f"{pool} · replica {replica}")
                yield _meta(replica + 1, "process_sort_index", sort_index=replica + 1)


def _meta(pid: int, what: str, **args: Any) -> Event:
    return {"ph": "M", "pid": pid, "tid": 0, "name": what, "args": args}


def _counter_step(results: Results, run: Run, options: Options, window: tuple[float, float]) -> int:
    """Every how many intervals counters are told."""
    count = 0
    for batch in results.scan("replicas", ["end_s"], run):
        count += sum(window[0] <= end_s <= window[1] for end_s in batch.column(0).to_pylist())
    return max(1, math.ceil(count * _COUNTER_BYTES / (_COUNTER_SHARE * options.max_bytes)))


def _counters(results: Results, run: Run, window: tuple[float, float], every: int) -> Iterator[Event]:
    """Counters of each replica, and a slice for as long as it is in a state other than ready."""
    columns = [
        "replica",
        "start_s",
        "end_s",
        "state",
        *(column for series in _COUNTERS.values() for column in series.values()),
    ]
    seen: dict[int, int] = {}
    for batch in results.scan("replicas", columns, run):
        for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            row = dict(zip(columns, values, strict=True))
            if not window[0] <= row["end_s"] <= window[1]:
                continue
            replica = row["replica"]
            place = seen[replica] = seen.get(replica, -1) + 1
            if place % every:
                continue
            begin, end = row["start_s"] * _US, row["end_s"] * _US
            if row["state"] != "ready":
                yield {
                    "ph": "X",
                    "pid": replica + 1,
                    "tid": 0,
                    "ts": begin,
                    "dur": end - begin,
                    "name": row["state"],
                    "cat": "state",
                }
            for name, series in _COUNTERS.items():
                args = {title: (row[column] or 0) * (100 if title == "%" else 1) for title, column in series.items()}
                yield {"ph": "C", "pid": replica + 1, "tid": 0, "ts": end, "name": name, "args": args}


def _requests(results: Results, run: Run) -> Iterator[dict[str, Any]]:
    for batch in results.scan("requests", _COLUMNS, run):
        for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            yield dict(zip(_COLUMNS, values, strict=True))


def _spans(row: dict[str, Any]) -> Iterator[Event]:
    """A request and its stages."""
    number, begin_s, end_s = row["request_id"], row["arrival_s"], row["end_s"]
    pid = GATEWAY if row["replica"] is None else row["replica"] + 1
    told = (
        "class",
        "tenant",
        "session_id",
        "reason",
        "prompt_tokens",
        "output_tokens",
        "cached_tokens",
        "preemptions",
        "status",
    )
    args = {name: row[name] for name in told if row[name] not in (None, 0)}
    if end_s is None:
        return
    yield from _span(pid, number, f"request {number}", (begin_s, end_s), args)
    prefill_pid = pid if row["prefill_replica"] is None else row["prefill_replica"] + 1
    first_s = row["first_token_s"]
    stages = (
        ("encode", pid, row["encode_start_s"], row["encode_end_s"]),
        ("queue", prefill_pid, row["queued_s"], row["first_scheduled_s"]),
        ("prefill", prefill_pid, row["first_scheduled_s"], first_s),
        ("decode", pid, first_s, end_s),
    )
    for name, place, start_s, stop_s in stages:
        if start_s is not None and stop_s is not None and stop_s >= start_s:
            yield from _span(place, number, name, (start_s, stop_s), {})


def _span(pid: int, number: int, name: str, times: tuple[float, float], args: dict[str, Any]) -> Iterator[Event]:
    common = {"pid": pid, "tid": 0, "cat": "request", "id": hex(number), "name": name}
    yield {"ph": "b", **common, "ts": times[0] * _US, **({"args": args} if args else {})}
    yield {"ph": "e", **common, "ts": times[1] * _US}
