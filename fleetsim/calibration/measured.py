"""Kernel tables of one's own, as `fleetsim profile` writes them, and the fits of an accelerator's and a link's constants.

One row per kernel: ``op`` (gemm, prefill_attention, decode_attention, moe, copy, all_reduce, idle), ``format`` (bf16, fp8,
…), the shape in ``m, n, k`` (of experts: tokens, their width, hidden size, with ``experts`` and ``topk``), in ``batch, tokens,
context, heads, kv_heads, head_dim`` or in ``num_gpus, message_bytes``, then ``latency_us``, and ``power_w`` where metered.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.optimize import least_squares

from fleetsim.calibration.kernels import ARITHMETIC, KEYS, WIDTHS, Fit, Kernels, fit, predicted_s
from fleetsim.catalog.accelerator import Accelerator
from fleetsim.catalog.link import Link
from fleetsim.errors import DataError, Finding, nearest

Floats = NDArray[np.float64]

COLUMNS = {
    "gemm": ("m", "n", "k"),
    "moe": ("m", "n", "k", "experts", "topk"),
    "prefill_attention": ("batch", "tokens", "heads", "kv_heads", "head_dim"),
    "decode_attention": ("batch", "context", "heads", "kv_heads", "head_dim"),
    "copy": ("message_bytes",),
    "all_reduce": ("num_gpus", "message_bytes"),
    "idle": (),
}
"""Columns that each kind of row needs beside latency_us."""
FORMATS = {"fp16": ("fp16", 2.0), **{form: (ARITHMETIC[form], WIDTHS[form]) for form in ARITHMETIC}}
"""Data type that each format is multiplied in, and bytes per weight with scales."""
FREE = {
    "gemm": ("compute_ratio", "memory_ratio", "overhead_s", "sharpness", "width_s"),
    "moe": ("compute_ratio", "memory_ratio", "overhead_s", "sharpness", "passes"),
    "prefill_attention": ("compute_ratio", "memory_ratio", "overhead_s", "sharpness", "serial_s"),
    "decode_attention": ("memory_ratio", "overhead_s", "head_s"),
    "copy": ("memory_ratio", "overhead_s", "sharpness"),
}
"""Constants that each kind of row determines."""
GROUP = {"copy": "elementwise"}
"""Operator group of a kind of row that is called otherwise."""
FEWEST = 16
"""Rows that a fit needs: half of them are fitted, the other half gives the error."""
FEWEST_LINK = 6
"""The same of all-reduce."""
QUANTISED_NOTE = "measured without the quantising before it: one launch and one pass over the activations are added"
FLASH_2, FLASH_3 = 60.0, 16.0
"""Rows of a tile that a decoding sequence's one query takes in the prompt kernel, before Hopper and since."""

Rows = dict[str, Floats]


@dataclass(frozen=True)
class Fitted:
    """Constants of one operator group in one number format."""

    group: str
    form: str
    found: Fit
    before: float
    """Median error of the catalogue's constants on the same rows; NaN where it has none."""
    note: str = ""


@dataclass(frozen=True)
class FittedLink:
    """Constants of an all-reduce."""

    bandwidth_ratio: float
    latency_s: float
    latency_per_rank_s: float
    chunk_s: float
    median_error: float
    before: float
    rows: int
    ranks_max: int


@dataclass(frozen=True)
class Table:
    """A kernel table, checked."""

    file: Path
    rows: Sequence[Mapping[str, Any]]

    def chosen(self, op: str, form: str | None = None) -> Rows:
        """Columns of the rows of one kind (and number format) as arrays, latency_us among them."""
        kept = [(i, r) for i, r in enumerate(self.rows, 1) if r["op"] == op and (form is None or _form(r) == form)]
        columns = (*COLUMNS[op], "latency_us")
        return {key: np.array([_number(self.file, i, r, key) for i, r in kept], dtype=np.float64) for key in columns}

    def formats(self, op: str) -> list[str]:
        """Number formats of one kind of row."""
        return sorted({_form(row) for row in self.rows if row["op"] == op})

    def powers(self, op: str) -> list[tuple[Mapping[str, Any], float]]:
        """Rows of one kind whose power was metered, with it [W]."""
        metered = [
            (i, row) for i, row in enumerate(self.rows, 1) if row["op"] == op and row.get("power_w") not in (None, "")
        ]
        return [(row, _number(self.file, i, row, "power_w")) for i, row in metered]


def is_table(file: Path) -> bool:
    """Whether a file is a kernel table by its columns."""
    try:
        if file.suffix == ".parquet":
            return {"op", "latency_us"} <= set(pq.read_schema(file).names)
        if file.suffix == ".csv":
            with file.open(encoding="utf-8-sig", newline="") as stream:
                return {"op", "latency_us"} <= set(next(csv.reader(stream), []))
    except (OSError, pa.ArrowException, csv.Error, UnicodeDecodeError):
        return False
    return False


def read_table(file: Path) -> Table:
    """A kernel table.

    Raises
    ------
    DataError
        If it cannot be read, is empty, or has a kind of row or a format that is not known.
    """
    try:
        if file.suffix == ".parquet":
            rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
        else:
            with file.open(encoding="utf-8-sig", newline="") as stream:
                rows = list(csv.DictReader(stream))
    except OSError as error:
        raise DataError(Finding(f"cannot be read: {error.strerror or error}", file=str(file))) from None
    except (pa.ArrowException, csv.Error, UnicodeDecodeError) as error:
        raise DataError(Finding(f"cannot be read: {str(error).splitlines()[0]}", file=str(file))) from None
    if not rows:
        raise DataError(Finding("has no rows", file=str(file)))
    for number, row in enumerate(rows, 1):
        if row.get("op") not in COLUMNS:
            hint = nearest(str(row.get("op")), COLUMNS, "kinds")
            raise DataError(
                Finding(f"unknown kind {row.get('op')!r}", path=f"row {number}, op", file=str(file), hint=hint)
            )
        if _form(row) not in FORMATS:
            hint = nearest(_form(row), FORMATS, "formats")
            message = f"unknown format {_form(row)!r}"
            raise DataError(Finding(message, path=f"row {number}, format", file=str(file), hint=hint))
    return Table(file, rows)


def _form(row: Mapping[str, Any]) -> str:
    return str(row.get("format") or row.get("dtype") or "bf16")


def _number(file: Path, number: int, row: Mapping[str, Any], key: str) -> float:
    value = row.get(key)
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        found = float("nan")
    if not np.isfinite(found) or found <= 0:
        message = "is missing" if value in (None, "") else f"expected a number above 0, found {value!r}"
        raise DataError(Finding(message, path=f"row {number}, {key}", file=str(file)))
    return found


# --- operator groups ---------------------------------------------------------------------------------------------------


def kernels(table: Table, op: str, form: str, chip: Accelerator) -> Kernels:
    """Work and time of the rows of one kind and format; see `fleetsim.calibration.kernels`.

    Raises
    ------
    DataError
        If a column is missing, or the accelerator has no peak for the format.
    """
    r = table.chosen(op, form)
    arithmetic, width = FORMATS[form]
    if arithmetic not in chip.peak_flop_per_s:
        message = f"{chip.name} has no {arithmetic} arithmetic in the catalogue"
        raise DataError(Finding(message, path=f"format {form}", file=str(table.file)))
    time = r["latency_us"] * 1e-6
    if op == "gemm":
        m, n, k = r["m"], r["n"], r["k"]
        size = n * k * width + m * k * min(width, 2.0) + m * n * 2
        return Kernels(chip, arithmetic, time, flops=2 * m * n * k, size_bytes=size, width=k, tokens=m)
    if op == "moe":
        m, n, k = r["m"], r["n"], r["k"]
        hit = r["experts"] * (1 - (1 - r["topk"] / r["experts"]) ** m)
        assigned, size = m * r["topk"], 3 * n * k
        moved = assigned * (2 * k + 3 * n) * 2
        flops = 2 * assigned * size
        return Kernels(chip, arithmetic, time, flops=flops, size_bytes=hit * size * width, pass_bytes=moved, tokens=m)
    if op == "copy":
        return Kernels(
            chip, "bf16", time, size_bytes=2 * r["message_bytes"], flops=np.zeros(len(time)), tokens=np.ones(len(time))
        )
    batch, heads, cached = r["batch"], r["heads"], 2 * r["kv_heads"] * r["head_dim"] * width
    if op == "decode_attention":
        size = batch * r["context"] * cached
        return Kernels(chip, "bf16", time, size_bytes=size, sequence_heads=batch * heads, tokens=batch)
    n = r["tokens"]
    return Kernels(
        chip,
        "bf16",
        time,
        flops=batch * n * (n + 1) / 2 * 4 * heads * r["head_dim"],
        size_bytes=batch * n * (2 * heads * r["head_dim"] * 2 + cached),
        serial_tokens=n,
        tokens=batch * n,
    )


def fit_groups(
    table: Table, chip: Accelerator, known: Mapping[str, Mapping[str, float]]
) -> tuple[list[Fitted], list[str]]:
    """Constants of every operator group that the table has rows enough of, and what it has too few of.

    Parameters
    ----------
    known
        Constants of the catalogue by ``group.format``, for the error before the fit.
    """
    fits: list[Fitted] = []
    skipped: list[str] = []
    for op, free in FREE.items():
        for form in table.formats(op):
            rows = kernels(table, op, form, chip)
            group = GROUP.get(op, op)
            if len(rows) < FEWEST:
                skipped.append(f"{group} {form}: {len(rows)} rows, {FEWEST} are needed")
                continue
            found = fit(rows, free)
            before = _median_error(rows, known[f"{group}.{form}"]) if f"{group}.{form}" in known else float("nan")
            fits.append(Fitted(group, form, found, before))
    return [_completed(one, fits, chip) for one in fits], skipped


def _median_error(rows: Kernels, constants: Mapping[str, float]) -> float:
    return float(np.median(np.abs(predicted_s(rows, constants) / rows.time_s - 1)))


def _completed(one: Fitted, fits: Sequence[Fitted], chip: Accelerator) -> Fitted:
    """A fit with the constants that its rows cannot show, taken from where they do."""
    constants = dict(one.found.constants)
    note = ""
    if one.group == "gemm" and FORMATS[one.form][0] not in ("bf16", "fp16"):
        constants |= {"passes": 1.0, "overhead_s": 2 * constants["overhead_s"]}
        note = QUANTISED_NOTE
    if one.group == "prefill_attention":
        decode = next(
            (f.found.constants for f in fits if f.group == "decode_attention" and f.form == one.form), constants
        )
        rows = FLASH_3 if "fp8" in chip.peak_flop_per_s and chip.memory_bytes > 60e9 else FLASH_2
        constants |= {"decode_rows": rows, "mixed_memory_ratio": decode["memory_ratio"], "head_s": decode["head_s"]}
        note = "decode_rows is that of the attention kernel's generation, mixed_memory_ratio and per_head are decode attention's"
    found = Fit(constants, one.found.median_error, one.found.mean_error, one.found.rows, one.found.tokens_max)
    return Fitted(one.group, one.form, found, one.before, note)


def sections(fits: Sequence[Fitted], source: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Fits as the section ``accelerator`` of a calibration file."""
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for one in fits:
        always = ("compute_ratio", "memory_ratio", "overhead_s", "sharpness")
        wanted = [k for k in KEYS if k in always or (one.found.constants.get(k, 0.0) > 0 and k in _shown(one.group))]
        body: dict[str, Any] = {}
        for constant in wanted:
            key, factor, unit = KEYS[constant]
            text = f"{one.found.constants[constant] * factor:.4g}"
            body[key] = f"{text}{unit}" if unit else float(text)
        body |= {"source": source, "median_error": round(one.found.median_error, 4)}
        body |= {"rows": one.found.rows, "tokens_max": int(one.found.tokens_max)}
        out.setdefault(one.group, {})[one.form] = {**body, **({"note": one.note} if one.note else {})}
    return out


def _shown(group: str) -> tuple[str, ...]:
    """Constants of a group beside the four that all have."""
    return {
        "gemm": ("width_s", "passes"),
        "moe": ("passes",),
        "prefill_attention": ("serial_s", "head_s", "decode_rows", "mixed_memory_ratio"),
        "decode_attention": ("head_s",),
    }.get(group, ())


# --- link and power ----------------------------------------------------------------------------------------------------


def fit_link(table: Table, link: Link) -> FittedLink | None:
    """Constants of the table's all-reduces over a link whose bandwidth the catalogue knows; None with too few rows."""
    r = table.chosen("all_reduce")
    time, ranks, size = r["latency_us"] * 1e-6, r["num_gpus"], r["message_bytes"]
    if len(time) < FEWEST_LINK:
        return None
    wire_at_peak = 2 * (ranks - 1) / ranks * size / link.bandwidth_bytes_per_s
    several = len(set(ranks.tolist())) > 1

    def predicted(x: Floats) -> Floats:
        ratio, latency, per_rank, chunk = np.exp(x)
        wire = wire_at_peak / (ratio * (2 / ranks) ** link.contention)
        return np.asarray(latency + (per_rank * ranks if several else 0.0) + np.sqrt(chunk * wire) + wire)

    start = np.log([0.7, 5e-6, 1e-7, 1e-6])
    bounds = (np.log([0.02, 1e-7, 1e-10, 1e-9]), np.log([1.2, 1e-2, 1e-3, 1e-2]))
    found = least_squares(lambda x: np.log(predicted(x) / time), start, bounds=bounds, loss="soft_l1", f_scale=0.05)
    ratio, latency, per_rank, chunk = (float(v) for v in np.exp(found.x))
    error = float(np.median(np.abs(predicted(found.x) / time - 1)))
    known = [link.all_reduce_s(b, int(n)) for b, n in zip(size, ranks, strict=True)]
    before = float(np.median(np.abs(np.array(known) / time - 1)))
    return FittedLink(ratio, latency, per_rank if several else 0.0, chunk, error, before, len(time), int(ranks.max()))


def power(table: Table, chip: Accelerator) -> dict[str, float]:
    """Power constants [W] that the metered rows show: idle, and what full arithmetic and full bandwidth add."""
    found: dict[str, float] = {}
    if idle := table.powers("idle"):
        found["idle"] = float(np.median([watts for _, watts in idle]))
    static = max(chip.power.static_w, found.get("idle", 0.0))
    if products := [(r, w) for r, w in table.powers("gemm") if _form(r) == "bf16"]:
        row, watts = max(products, key=lambda pair: pair[1])
        rate = 2 * float(row["m"]) * float(row["n"]) * float(row["k"]) / (float(row["latency_us"]) * 1e-6)
        found["compute"] = max(watts - static, 1.0) / min(rate / chip.peak_flop_per_s["bf16"], 1.0)
    if copies := table.powers("copy"):
        row, watts = max(copies, key=lambda pair: pair[1])
        rate = 2 * float(row["message_bytes"]) / (float(row["latency_us"]) * 1e-6)
        found["memory"] = max(watts - static, 1.0) / min(rate / chip.bandwidth_bytes_per_s, 1.0)
    return found
