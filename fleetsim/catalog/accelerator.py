"""Accelerators: peak arithmetic, memory, links, power and price of one chip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import exp, log2

from fleetsim.catalog.data import catalogue, locate, read_yaml
from fleetsim.catalog.sourced import Record, Sourced
from fleetsim.errors import nearest

KINDS = ("gpu", "npu", "tpu", "edge")
"""Kinds of chip."""


@dataclass(frozen=True, slots=True)
class Logistic:
    """Power by batch size alone: low + rise / (1 + exp(-slope x (log2(batch) - middle)))."""

    low_w: float
    """Of tiny batches [W]."""
    rise_w: float
    """From tiny to huge batches [W]."""
    slope: float
    """Per doubling of the batch."""
    middle: float
    """Logarithm to base 2 of the batch in the middle of the rise."""

    def watts(self, batch: float) -> float:
        """Power while steps of `batch` sequences run [W]."""
        return self.low_w + self.rise_w / (1 + exp(-self.slope * (log2(max(batch, 1.0)) - self.middle)))


@dataclass(frozen=True, slots=True)
class Power:
    """Power of one accelerator.

    While a step of n tokens runs: static_w + occupancy_w x n / (n + half_occupied_tokens) + active_w x (share of the step
    in which kernels run) + compute_w x (FLOP/s / peak) + memory_w x (bytes/s / bandwidth), at most limit_w. In a decode
    step all terms are linear in the context sum. Other forms and errors: docs/energy.md.
    """

    limit_w: float
    """Board limit [W]."""
    idle_w: float
    """With a model loaded and nothing running [W]."""
    static_w: float
    """While a step runs, its kernels or not, before what the computing adds [W]."""
    occupancy_w: float
    """Added by steps of so many tokens that all cores have work [W]."""
    active_w: float
    """Added while kernels run: products, attention and collectives, but not the waits for the host [W]."""
    compute_w: float
    """Added at full peak arithmetic of whatever data type [W]."""
    memory_w: float
    """Added at full memory bandwidth [W]."""
    logistic: Logistic | None
    """The same by batch size alone; None where it was not fitted."""
    half_occupied_tokens: float = 32.0
    """Tokens in a step that add half of occupancy_w: where fits to H100 and to B200 are best, flat between 16 and 64."""


@dataclass(frozen=True, slots=True)
class HeatSink:
    """How one accelerator gets rid of its heat, and what it does when it cannot."""

    resistance_k_per_w: float
    """Kelvins above the air per watt drawn."""
    capacity_j_per_k: float
    """Heat that warms it by one kelvin."""
    throttle_c: float
    """Temperature from which on its clock is lowered [°C]."""
    resume_c: float
    """Temperature below which it is as before [°C]."""
    throttled_ratio: float
    """Clock over the usual one meanwhile."""


@dataclass(frozen=True, slots=True)
class Tier:
    """One level of a chip's memory."""

    name: str
    """``sram``, ``hbm``, ``ddr``, …"""
    capacity_bytes: float
    """What it holds [B]."""
    bandwidth_bytes_per_s: float
    """How fast the chip reads it [B/s]."""


@dataclass(frozen=True, slots=True)
class Clock:
    """Clock of the arithmetic units; 0 where it is not published."""

    base_hz: float
    boost_hz: float
    min_hz: float


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One chip, as its data sheet and driver describe it."""

    name: str
    title: str
    vendor: str
    kind: str
    """``gpu``, ``npu``, ``tpu`` or ``edge``."""
    status: str
    """``measured`` where calibrated step times exist, else ``projected`` from the data sheet."""
    calibration: str
    """Name of the accelerator whose measured efficiencies it shares: itself, or one of its generation."""
    memory_bytes: float
    """Memory that holds weights and KV, as the driver reports it to programs [B]."""
    bandwidth_bytes_per_s: float
    """Bandwidth of that memory [B/s]."""
    tiers: tuple[Tier, ...]
    """All levels of memory, fastest first, where more than that one matters; else empty."""
    l2_bytes: float
    """Last-level cache [B]; 0 where it is not published."""
    cores: int
    """Units that run kernels (SM, CU, tensor core, …); 0 where it is not published."""
    clock: Clock
    peak_flop_per_s: Mapping[str, float]
    """Dense peak arithmetic by data type [FLOP/s]; bf16 is always there, at the rate of fp16 on chips without it."""
    half: str
    """Data type of 16-bit arithmetic: ``bf16``, or ``fp16`` on chips without it."""
    link: str
    """Link to its peers in the same node: a name in the catalogue."""
    host_link: str
    """Link to the host: a name in the catalogue; ``unified`` where both share one memory."""
    network: str
    """Usual link to other nodes: a name in the catalogue."""
    per_node: int
    """Accelerators in a usual node."""
    power: Power
    heat_sink: HeatSink | None
    """None where nobody said."""
    price_usd_per_h: float
    """On demand, one accelerator [USD/h]."""
    embodied_g: float | None
    """Greenhouse gases of making one, with its share of the server; None where nobody says [g]."""
    sourced: Mapping[str, Sourced]
    """Every number with its unit and source, by its path in the file."""

    def arithmetic(self, weights: str) -> str:
        """Data type in which products with weights of data type `weights` are computed.

        Weights of a type that the chip has no unit for, or only a slower one, are widened to 16 bits on their way in.
        """
        narrow = weights not in ("bf16", "fp16", "int4") and weights in self.peak_flop_per_s
        return weights if narrow and self.peak_flop_per_s[weights] >= self.peak_flop_per_s["bf16"] else self.half


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
    rates = {dtype: peak.quantity(dtype, "flop/s") for dtype in peak.content}
    half = "bf16" if "bf16" in rates else "fp16"
    accelerator = Accelerator(
        name=name,
        title=record.text("title"),
        vendor=record.text("vendor"),
        kind=record.text("kind", *KINDS),
        status=record.text("status", "measured", "projected"),
        calibration=record.text("calibration", default=name),
        memory_bytes=record.quantity("memory", "bytes"),
        bandwidth_bytes_per_s=record.quantity("bandwidth", "bytes/s"),
        tiers=_tiers(record),
        l2_bytes=_optional(record, "l2", "bytes"),
        cores=int(_optional(record, "cores", "count")),
        clock=_clock(record),
        peak_flop_per_s=rates if half == "bf16" else {**rates, "bf16": rates.get("fp16", 0.0)},
        half=half,
        link=_link(record, "link"),
        host_link=_link(record, "host_link"),
        network=_link(record, "network"),
        per_node=int(record.quantity("per_node", "count")),
        power=_power(power),
        heat_sink=_heat_sink(record),
        price_usd_per_h=record.quantity("price", "price"),
        embodied_g=_optional(record, "embodied", "mass") or None,
        sourced=record.sourced,
    )
    if not {"bf16", "fp16"} & set(peak.content):
        record.find("peak", "bf16 (or fp16) is missing: it is what other types fall back to")
    record.finish()
    return accelerator


def _power(record: Record) -> Power:
    limit, idle, static, compute, memory = (
        record.quantity(key, "power") for key in ("limit", "idle", "static", "compute", "memory")
    )
    return Power(
        limit_w=limit,
        idle_w=idle,
        static_w=static,
        occupancy_w=_optional(record, "occupancy", "power"),
        active_w=_optional(record, "active", "power"),
        compute_w=compute,
        memory_w=memory,
        logistic=_logistic(record),
    )


def _heat_sink(record: Record) -> HeatSink | None:
    record.known.add("thermal")
    if "thermal" not in record.content:
        return None
    sink = record.part("thermal")
    return HeatSink(
        sink.quantity("resistance", "ratio"),
        sink.quantity("capacity", "ratio"),
        sink.quantity("throttle", "temperature"),
        sink.quantity("resume", "temperature"),
        sink.quantity("throttled_clock", "ratio"),
    )


def _logistic(record: Record) -> Logistic | None:
    record.known.add("logistic")
    if "logistic" not in record.content:
        return None
    curve = record.part("logistic")
    low, rise = curve.quantity("low", "power"), curve.quantity("rise", "power")
    return Logistic(low, rise, curve.quantity("slope", "ratio"), curve.quantity("middle", "ratio"))


def _tiers(record: Record) -> tuple[Tier, ...]:
    if "tiers" not in record.content:
        return ()
    tiers = record.part("tiers")
    levels = {name: tiers.part(name) for name in tiers.content}
    return tuple(
        Tier(name, level.quantity("capacity", "bytes"), level.quantity("bandwidth", "bytes/s"))
        for name, level in levels.items()
    )


def _clock(record: Record) -> Clock:
    if "clock" not in record.content:
        return Clock(0.0, 0.0, 0.0)
    clock = record.part("clock")
    return Clock(*(_optional(clock, key, "frequency") for key in ("base", "boost", "min")))


def _optional(record: Record, key: str, dimension: str) -> float:
    record.known.add(key)
    return record.quantity(key, dimension) if key in record.content else 0.0


def _link(record: Record, key: str) -> str:
    name = record.text(key)
    if name and name not in catalogue("link"):
        record.find(key, f'unknown link "{name}". {nearest(name, catalogue("link"), "links")}')
    return name
