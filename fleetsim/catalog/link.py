"""Links between the accelerators of a replica, and the collectives that run over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import sqrt

from fleetsim.catalog.data import locate, read_yaml
from fleetsim.catalog.sourced import Record, Sourced


@dataclass(frozen=True, slots=True)
class Link:
    """What one accelerator has towards the others.

    A collective takes `start_s` and the time w of its bytes on the wire, and sqrt(chunk_s x w) for cutting them into
    chunks so that steps overlap: with m chunks, filling the pipeline costs w / m and handling them a time that grows
    with m; the best m leaves the square root.
    """

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
    chunk_s: float
    """Time that stands for the handling of chunks [s]; 0 where one step moves everything."""
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
        return self._collective_s(2 * size_bytes, ranks)

    def all_gather_s(self, size_bytes: float, ranks: int) -> float:
        """Time until each of `ranks` holds all of `size_bytes`; a reduce-scatter takes as long [s]."""
        return self._collective_s(size_bytes, ranks)

    def all_to_all_s(self, size_bytes: float, ranks: int) -> float:
        """Time until each of `ranks` has sent its share of `size_bytes` to every other [s]."""
        return self._collective_s(size_bytes, ranks)

    def send_s(self, size_bytes: float) -> float:
        """Time to send `size_bytes` to one other accelerator [s]."""
        return self._collective_s(2 * size_bytes, 2)

    def _collective_s(self, size_bytes: float, ranks: int) -> float:
        """Time in which each rank passes on all of `size_bytes` but its own share [s]."""
        if ranks <= 1:
            return 0.0
        wire = (ranks - 1) / ranks * size_bytes / self.effective_bytes_per_s(ranks)
        return self.start_s(ranks) + sqrt(self.chunk_s * wire) + wire


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
        chunk_s=record.quantity("chunk", "time") if "chunk" in record.content else 0.0,
        sourced=record.sourced,
    )
    record.finish()
    return link
