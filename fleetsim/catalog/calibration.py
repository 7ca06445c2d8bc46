"""Fitted efficiencies of kernels: how close each kind of operator comes to the data sheet on each accelerator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fleetsim.catalog.accelerator import Accelerator
from fleetsim.catalog.data import catalogue, locate, read_yaml
from fleetsim.catalog.sourced import ASSUMED, Record

GROUPS = ("gemm", "moe", "prefill_attention", "decode_attention", "elementwise", "sampler")
"""Operator groups that a calibration may describe, each by the number format of its operands."""

FORMATS: Mapping[str, tuple[str, ...]] = {
    "fp8": ("fp8_block",),
    "fp8_block": ("fp8",),
    "fp4": (),
    "mxfp4_bf16": ("int4_bf16", "bf16"),
    "int4_bf16": ("mxfp4_bf16", "bf16"),
    "mxfp4_fp8": ("fp8",),
}
"""Whose constants a format takes where its own were not measured; after these, those of bf16."""


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Constants of one operator group: t = overhead + beside + (c^p + m^p + s^p)^(1/p).

    c is the time of the arithmetic at compute_ratio x peak, m that of the bytes at memory_ratio x bandwidth, s what no
    parallelism hides: width_s x (length of the sums), or serial_s x (longest context). beside is passes x (activations /
    bandwidth) + head_s x (sequences x query heads).
    """

    compute_ratio: float
    memory_ratio: float
    overhead_s: float
    sharpness: float
    """p: 1 adds both times, large values take the larger."""
    passes: float
    """Matrix products: times that the activations go through memory beside the product itself (quantise, permute)."""
    width_s: float
    """Matrix products: time to walk one element of the sums that make the results, which no parallelism hides [s]."""
    head_s: float
    """Attention: added time per decoding sequence and query head [s]."""
    serial_s: float
    """Attention over several new tokens: time to walk one cached token, which no parallelism hides [s]."""
    decode_rows: float
    """Attention over several new tokens: rows that a decoding sequence's one query takes in the kernel's tile."""
    mixed_memory_ratio: float
    """Attention over several new tokens: share of the bandwidth at which decoding sequences' cached tokens are read."""
    source: str
    median_error: float
    """Median absolute relative error of the fit on rows that it did not see; 0 if not fitted."""
    tokens_max: float
    """Most tokens (or sequences) in a step that the fit saw; 0 if not fitted."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Efficiencies of one accelerator; what its own file lacks comes from the generic ones."""

    name: str
    groups: Mapping[str, Mapping[str, Efficiency]]
    fallbacks: tuple[Calibration, ...] = ()

    def efficiency(self, group: str, form: str) -> Efficiency:
        """Constants of an operator group in a number format; those of the nearest format where nothing knows it."""
        return self.found(group, form)[2]

    def found(self, group: str, form: str) -> tuple[str, str, Efficiency]:
        """The same constants, behind the name of the calibration and the number format that they are of."""
        for wanted in ((form, *FORMATS.get(form, ())), ("bf16",)):
            for calibration in (self, *self.fallbacks):
                known = calibration.groups.get(group, {})
                for name in wanted:
                    if name in known:
                        return calibration.name, name, known[name]
        raise KeyError(group)


@cache
def load_calibration(accelerator: str, vendor: str, engine: str = "vllm") -> Calibration:
    """Calibration of an accelerator, with the generic ones of its vendor and of all chips behind it.

    An engine with kernels of its own has a file of its own before the accelerator's: ``h100-sxm-trtllm``.

    Raises
    ------
    DataError
        If one of the files is not valid.
    """
    known = catalogue("calibration")
    chain = [name for name in (f"{accelerator}-{engine}", accelerator, f"generic-{vendor}", "generic") if name in known]
    loaded = [_load(locate("calibration", name)) for name in chain]
    return Calibration(loaded[0].name, loaded[0].groups, tuple(loaded[1:]))


def calibration_of(accelerator: Accelerator, engine: str = "vllm") -> Calibration:
    """Calibration of a loaded accelerator under an engine."""
    return load_calibration(accelerator.calibration, accelerator.vendor, engine)


def _load(path: Path) -> Calibration:
    record = Record(read_yaml(path), path)
    groups = read_groups(record)
    record.finish()
    return Calibration(path.stem, groups)


def read_groups(record: Record) -> dict[str, dict[str, Efficiency]]:
    """Operator groups of a mapping, each by number format; mistakes are noted in the record."""
    groups: dict[str, dict[str, Efficiency]] = {}
    record.known.update(GROUPS)
    for group in GROUPS:
        if group not in record.content:
            continue
        part = record.part(group)
        groups[group] = {dtype: _efficiency(part.part(dtype)) for dtype in part.content}
    return groups


def _efficiency(entry: Record) -> Efficiency:
    source = entry.text("source")
    entry.known.update(("note", "rows"))
    if source == ASSUMED and "note" not in entry.content:
        entry.find("note", "is missing: an assumed fit must say why")
    return Efficiency(
        compute_ratio=entry.bare("compute_ratio"),
        memory_ratio=entry.bare("memory_ratio"),
        overhead_s=entry.bare("overhead", "time"),
        sharpness=entry.bare("sharpness"),
        passes=entry.bare("passes", default="0"),
        width_s=entry.bare("per_width", "time", "0"),
        head_s=entry.bare("per_head", "time", "0"),
        serial_s=entry.bare("serial_per_token", "time", "0"),
        decode_rows=entry.bare("decode_rows", default="1"),
        mixed_memory_ratio=entry.bare("mixed_memory_ratio", default="0") or entry.bare("memory_ratio"),
        source=source,
        median_error=entry.bare("median_error", default="0"),
        tokens_max=entry.bare("tokens_max", default="0"),
    )
