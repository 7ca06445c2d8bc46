"""Accelerators: peak arithmetic, memory, links, power and price of one chip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from fleetsim.catalog.data import catalogue, locate, read_yaml
from fleetsim.catalog.sourced import Record, Sourced
from fleetsim.errors import nearest


@dataclass(frozen=True, slots=True)
class Power:
    """Power of one accelerator.

    While a step runs: static_w + compute_w x (FLOP/s / peak) + memory_w x (bytes/s / bandwidth), at most limit_w.
    """

    limit_w: float
    """Board limit [W]."""
    idle_w: float
    """With a model loaded and nothing running [W]."""
    static_w: float
    """While a step runs, before what the computing adds [W]."""
    compute_w: float
    """Added at full peak arithmetic [W]."""
    memory_w: float
    """Added at full memory bandwidth [W]."""


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One chip, as its data sheet and driver describe it."""

    name: str
    title: str
    vendor: str
    kind: str
    """``gpu`` or ``npu``."""
    status: str
    """``measured`` where calibrated step times exist, else ``projected`` from the data sheet."""
    calibration: str
    """Name of the accelerator whose measured efficiencies it shares: itself, or one of its generation."""
    memory_bytes: float
    """Memory that the driver reports to programs [B]."""
    bandwidth_bytes_per_s: float
    """Memory bandwidth [B/s]."""
    peak_flop_per_s: Mapping[str, float]
    """Dense peak arithmetic by data type [FLOP/s]."""
    link: str
    """Link to its peers in the same node: a name in the catalogue."""
    host_link: str
    """Link to the host: a name in the catalogue."""
    per_node: int
    """Accelerators in a usual node."""
    power: Power
    price_usd_per_h: float
    """On demand, one accelerator [USD/h]."""
    sourced: Mapping[str, Sourced]
    """Every number with its unit and source, by its path in the file."""

    def arithmetic(self, weights: str) -> str:
        """Data type in which products with weights of data type `weights` are computed.

        Weights of a type that the chip has no unit for are widened to 16 bits on their way in.
        """
        return weights if weights in self.peak_flop_per_s and weights not in ("fp16", "int4") else "bf16"


@cache
def load_accelerator(name: str) -> Accelerator:
    """Accelerator of the catalogue.

    Raises
    ------
    DataError
        If the name is unknown or its file is not valid.
    """
    path = locate("accelerator", name)
    record = Record(read_yaml(path), path)
    peak, power = record.part("peak"), record.part("power")
    accelerator = Accelerator(
        name=name,
        title=record.text("title"),
        vendor=record.text("vendor"),
        kind=record.text("kind", "gpu", "npu"),
        status=record.text("status", "measured", "projected"),
        calibration=record.text("calibration", default=name),
        memory_bytes=record.quantity("memory", "bytes"),
        bandwidth_bytes_per_s=record.quantity("bandwidth", "bytes/s"),
        peak_flop_per_s={dtype: peak.quantity(dtype, "flop/s") for dtype in peak.content},
        link=_link(record, "link"),
        host_link=_link(record, "host_link"),
        per_node=int(record.quantity("per_node", "count")),
        power=Power(*(power.quantity(key, "power") for key in ("limit", "idle", "static", "compute", "memory"))),
        price_usd_per_h=record.quantity("price", "price"),
        sourced=record.sourced,
    )
    if "bf16" not in peak.content:
        record.find("peak", "bf16 is missing: it is what other types fall back to")
    record.finish()
    return accelerator


def _link(record: Record, key: str) -> str:
    name = record.text(key)
    if name and name not in catalogue("link"):
        record.find(key, f'unknown link "{name}". {nearest(name, catalogue("link"), "links")}')
    return name
