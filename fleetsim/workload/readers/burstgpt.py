"""BurstGPT (CSV): ``Timestamp`` [s], ``Model, Request tokens, Response tokens, Total tokens, Log Type``.

https://github.com/HPMLL/BurstGPT. The third release adds ``Session ID`` and ``Elapsed time`` [s], the time the service
took.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fleetsim.workload.readers.rows import BadRows, Row, decimal, label, whole
from fleetsim.workload.readers.table import Table

_UNKNOWN = ("", "nan", "none", "null")
COLUMNS = frozenset({"timestamp", "request tokens", "response tokens"})


def read(path: Path, bad: BadRows) -> Iterator[Row]:
    """Rows; a turn's pause is the time from the end of its session's turn before, by the recorded elapsed times."""
    table = Table(path, bad)
    when, prompt, output = (table.columns[name] for name in ("timestamp", "request tokens", "response tokens"))
    session_at, elapsed_at = table.place("session id"), table.place("elapsed time")
    model_at, class_at = table.place("model"), table.place("log type")
    ends: dict[str, float] = {}
    for number, cells in table.rows():
        try:
            time_s = decimal(cells[when], "Timestamp")
            session = None if session_at is None else cells[session_at].strip() or None
            elapsed_s = None if elapsed_at is None else _elapsed(cells[elapsed_at].strip())
            row = Row(
                number,
                time_s,
                whole(cells[prompt], "Request tokens"),
                whole(cells[output], "Response tokens"),
                session=session,
                pause_s=max(0.0, time_s - ends[session]) if session in ends else None,
                klass=None if class_at is None else label(cells[class_at].strip()),
                model=None if model_at is None else label(cells[model_at].strip()),
            )
        except ValueError as error:
            bad.add(number, str(error))
            continue
        if session is not None and elapsed_s is not None:
            ends[session] = time_s + elapsed_s
        yield row


def _elapsed(text: str) -> float | None:
    """Time that the service took, if it was recorded."""
    return None if text.lower() in _UNKNOWN else decimal(text, "Elapsed time")
