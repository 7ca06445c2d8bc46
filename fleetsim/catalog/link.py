"""Links between the accelerators of a replica, and the collectives that run over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import sqrt

from fleetsim.catalog.data import locate, read_yaml
from fleetsim.catalog.sourced import Record, Sourced


@dataclass(frozen=True, slots=True)
class Start:
    """What a collective costs besides its bytes."""

    latency_s: float
    """Fixed time [s]."""
    latency_per_rank_s: float
    """Added time per rank [s]."""
    chunk_s: float
    """Time that stands for the handling of chunks [s]; 0 where one step moves everything."""

    def time_s(self, ranks: int, wire_s: float) -> float:
        """Time of a collective whose bytes take `wire_s` on the wire [s]."""
        return self.latency_s + self.latency_per_rank_s * ranks + sqrt(self.chunk_s * wire_s) + wire_s


@dataclass(frozen=True, slots=True)
class Link:
    """What one accelerator has towards the others.

    A collective takes its latencies, the time w of its bytes on the wire, and sqrt(chunk x w) for cutting them into
    chunks so that steps overlap: with m chunks, filling the pipeline costs a time that falls with m and handling them
    one that grows with m; the best m leaves the square root. Valid for 2 to 8 ranks and messages up to 256 MiB where
    the file states a fit.
    """

    name: str
    title: str
    bandwidth_bytes_per_s: float
    """Published bandwidth of one accelerator in one direction [B/s]."""
    bandwidth_ratio: float
    """Share of it that a collective of two ranks reaches."""
    contention: float
    """Exponent by which ranks take bandwidth from each other: (2 / ranks)^contention; 0 behind a switch."""
    all_reduce: Start
    """What an all-reduce costs besides its bytes; engines have kernels of their own for it."""
    gather: Start
    """What an all-gather, reduce-scatter or all-to-all costs besides its bytes."""
    send: Start
    """What a send costs besides its bytes."""
    send_ratio: float
    """Share of the bandwidth that a send reaches."""
    copy_ratio: float
    """Share of the bandwidth that a bulk copy reaches: host to accelerator, or remote memory; a send's where not stated."""
    copy_latency_s: float
    """Fixed time of a bulk copy [s]."""
    sourced: Mapping[str, Sourced]
    """Every number with its unit and source."""

    @property
    def latency_s(self) -> float:
        """Fixed time of an all-reduce [s]."""
        return self.all_reduce.latency_s

    @property
    def latency_per_rank_s(self) -> float:
        """Added time of an all-reduce per rank [s]."""
        return self.all_reduce.latency_per_rank_s

    def start_s(self, ranks: int) -> float:
        """Time of an all-reduce without any bytes [s]."""
        return self.all_reduce.time_s(ranks, 0.0)

    def effective_bytes_per_s(self, ranks: int) -> float:
        """Bandwidth that each of the ranks of a collective reaches [B/s]."""
        return float(self.bandwidth_bytes_per_s * self.bandwidth_ratio * (2 / ranks) ** self.contention)

    def all_reduce_s(self, size_bytes: float, ranks: int) -> float:
        """Time of a ring all-reduce of `size_bytes` on each of `ranks` [s]."""
        return self.all_reduce.time_s(ranks, self._wire_s(2 * size_bytes, ranks)) if ranks > 1 else 0.0

    def all_gather_s(self, size_bytes: float, ranks: int) -> float:
        """Time until each of `ranks` holds all of `size_bytes`; a reduce-scatter takes as long [s]."""
        return self.gather.time_s(ranks, self._wire_s(size_bytes, ranks)) if ranks > 1 else 0.0

    def all_to_all_s(self, size_bytes: float, ranks: int) -> float:
        """Time until each of `ranks` has sent its `size_bytes` in equal shares to all, itself included [s]."""
        return self.all_gather_s(size_bytes, ranks)

    def send_s(self, size_bytes: float) -> float:
        """Time to send `size_bytes` to one other accelerator [s]."""
        return self.send.time_s(2, size_bytes / self.send_bytes_per_s)

    @property
    def send_bytes_per_s(self) -> float:
        """Bandwidth that large sends reach [B/s]."""
        return self.bandwidth_bytes_per_s * self.send_ratio

    @property
    def copy_bytes_per_s(self) -> float:
        """Bandwidth that large copies reach [B/s]."""
        return self.bandwidth_bytes_per_s * self.copy_ratio

    def _wire_s(self, size_bytes: float, ranks: int) -> float:
        """Time in which each rank passes on all of `size_bytes` but its own share [s]."""
        return (ranks - 1) / ranks * size_bytes / self.effective_bytes_per_s(ranks)


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
    ratio = record.quantity("bandwidth_ratio", "ratio")
    all_reduce = _start(record)
    send = record.part("send") if "send" in record.content else None
    copy = record.part("copy") if "copy" in record.content else None
    start = _start(send) if send else all_reduce
    send_ratio = send.quantity("bandwidth_ratio", "ratio") if send else ratio
    link = Link(
        name=name,
        title=record.text("title"),
        bandwidth_bytes_per_s=record.quantity("bandwidth", "bytes/s"),
        bandwidth_ratio=ratio,
        contention=record.quantity("contention", "ratio"),
        all_reduce=all_reduce,
        gather=_start(record.part("gather")) if "gather" in record.content else all_reduce,
        send=start,
        send_ratio=send_ratio,
        copy_ratio=copy.quantity("bandwidth_ratio", "ratio") if copy else send_ratio,
        copy_latency_s=copy.quantity("latency", "time") if copy else start.latency_s,
        sourced=record.sourced,
    )
    record.finish()
    return link


def _start(record: Record) -> Start:
    chunk = record.quantity("chunk", "time") if "chunk" in record.content else 0.0
    return Start(record.quantity("latency", "time"), record.quantity("latency_per_rank", "time"), chunk)
