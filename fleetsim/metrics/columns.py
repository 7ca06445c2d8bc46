"""Columns of tables from and to NumPy, by their buffers.

pyarrow's own conversions import pandas wherever that is installed, which takes longer than a short run.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import pyarrow as pa

Values = np.ndarray[Any, Any]
Floats = np.ndarray[Any, np.dtype[np.float64]]


class Columns(Protocol):
    """Finished tables, of which one column is read at a time."""

    def floats(self, table: str, column: str) -> Floats:
        """Numbers or truth values as floats, NaN where there is none."""
        ...

    def codes(self, table: str, column: str) -> tuple[Values, list[str]]:
        """Names as places in a list of those that occur, -1 where there is none."""
        ...


def array_of(values: Any, kind: pa.DataType | None = None) -> pa.Array:
    """Arrow array of numbers, truth values or texts, None where there is none."""
    if isinstance(values, np.ndarray) and values.dtype != object:
        return column(values, kind=kind)
    missing = np.array([value is None for value in values], dtype=bool)
    if kind is None:
        present = [value for value in values if value is not None]
        kind = pa.string() if isinstance(present[0], str) else pa.from_numpy_dtype(np.array(present).dtype)
    if not pa.types.is_string(kind):
        return column(np.array([0 if value is None else value for value in values]), missing, kind)
    texts = [b"" if value is None else value.encode() for value in values]
    ends = np.zeros(len(texts) + 1, dtype=np.int32)
    np.cumsum([len(text) for text in texts], out=ends[1:])
    buffers = [_validity(missing), pa.py_buffer(ends), pa.py_buffer(b"".join(texts))]
    return pa.Array.from_buffers(kind, len(texts), buffers)


def column(values: Values, missing: Values | None = None, kind: pa.DataType | None = None) -> pa.Array:
    """Arrow array of numbers or truth values, null where they are `missing`."""
    if kind is None:
        kind = pa.from_numpy_dtype(values.dtype)
    if pa.types.is_boolean(kind):
        packed = np.packbits(values.astype(bool), bitorder="little")
    else:
        packed = np.ascontiguousarray(values, dtype=kind.to_pandas_dtype())
    return pa.Array.from_buffers(kind, len(values), [_validity(missing), pa.py_buffer(packed)])


def values_of(column: pa.ChunkedArray | pa.Array) -> Values:
    """Numbers or truth values of a column; floats with NaN where any is null."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = [_chunk_values(chunk) for chunk in chunks]
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=column.type.to_pandas_dtype())


def _chunk_values(chunk: pa.Array) -> Values:
    if not len(chunk):
        return np.zeros(0, dtype=chunk.type.to_pandas_dtype())
    validity, data = chunk.buffers()
    start, end = chunk.offset, chunk.offset + len(chunk)
    if pa.types.is_boolean(chunk.type):
        values = _bits(data, end)[start:]
    else:
        values = np.frombuffer(data, dtype=chunk.type.to_pandas_dtype(), count=end)[start:]
    if not chunk.null_count:
        return values
    values = values.astype(np.float64)
    values[~_bits(validity, end)[start:]] = np.nan
    return values


def _bits(buffer: pa.Buffer, count: int) -> Values:
    return np.unpackbits(np.frombuffer(buffer, dtype=np.uint8), count=count, bitorder="little").astype(bool)


def _validity(missing: Values | None) -> pa.Buffer | None:
    """Bits that say which values there are; None if there are all."""
    if missing is None or not missing.any():
        return None
    return pa.py_buffer(np.packbits(~missing, bitorder="little"))
