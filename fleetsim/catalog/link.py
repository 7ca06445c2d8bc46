"""Links between the accelerators of a replica, and the collectives that run over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from fleetsim.catalog.data import locate, read_yaml
from fleetsim.catalog.sourced import Record, Sourced


@dataclass(frozen=True, slots=True)
class Link:
    """What one accelerator has towards the others."""

    name: str
    title: str
    bandwidth_bytes_per_s: float
    """Published bandwidth of one accelerator in one direction [B/s]."""
    bandwidth_ratio: float
    """Share of it that a collective of two ranks reaches."""
    contention: float
    """Exponent by which ranks take bandwidth from each other: (2 / ranks)^contention; 0 behind a switch."""
    latency_s: float
    """Fixed time of a collective [s]."""
    latency_per_rank_s: float
    """Added time of a collective per rank [s]."""
    sourced: Mapping[str, Sourced]
    """Every number with its unit and source."""

    def start_s(self, ranks: int) -> float:
        """Time of a collective without any bytes [s]."""
        return self.latency_s + self.latency_per_rank_s * ranks

    def effective_bytes_per_s(self, ranks: int) -> float:
        """Bandwidth that each of the ranks of a collective reaches [B/s]."""
        return float(self.bandwidth_bytes_per_s * self.bandwidth_ratio * (2 / ranks) ** self.contention)

    def all_reduce_s(self, size_bytes: float, ranks: int) -> float:
        """Time of a ring all-reduce of `size_bytes` on each of `ranks` [s]."""
        if ranks <= 1:
            return 0.0
        return self.start_s(ranks) + 2 * (ranks - 1) / ranks * size_bytes / self.effective_bytes_per_s(ranks)

    def all_gather_s(self, size_bytes: float, ranks: int) -> float:
        """Time until each of `ranks` holds all of `size_bytes`; a reduce-scatter takes as long [s]."""
        if ranks <= 1:
            return 0.0
        return self.start_s(ranks) + (ranks - 1) / ranks * size_bytes / self.effective_bytes_per_s(ranks)

    def send_s(self, size_bytes: float) -> float:
        """Time to send `size_bytes` to one other accelerator [s]."""
        return self.start_s(2) + size_bytes / self.effective_bytes_per_s(2)


@cache
def load_link(name: str) -> Link:
    """Link of the catalogue.

    Raises
    ------
    DataError
        If the name is unknown or its file is not valid.
    """
    path = locate("link", name)
    record = Record(read_yaml(path), path)
    link = Link(
        name=name,
        title=record.text("title"),
        bandwidth_bytes_per_s=record.quantity("bandwidth", "bytes/s"),
        bandwidth_ratio=record.quantity("bandwidth_ratio", "ratio"),
        contention=record.quantity("contention", "ratio"),
        latency_s=record.quantity("latency", "time"),
        latency_per_rank_s=record.quantity("latency_per_rank", "time"),
        sourced=record.sourced,
    )
    record.finish()
    return link
