"""Whether a run fits into memory, estimated before it starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fleetsim.errors import InputError
from fleetsim.scenario.load import LoadedScenario
from fleetsim.scenario.schema import MixWorkload, SyntheticWorkload, TraceWorkload
from fleetsim.workload.formats import locate

PROCESS_BYTES = 210e6
"""Of a process that simulates a small fleet [bytes]: interpreter, libraries, buffers of the tables. Measured: docs/sweeps.md."""
REQUEST_BYTES = 80.0
"""More for each request [bytes]: columns of the requests table while the summary is taken, and what is in flight. Measured:
docs/sweeps.md."""
REPLICA_BYTES = 150e3
"""More for each replica [bytes]. Measured: docs/sweeps.md."""
ROW_BYTES = 37.0
"""Row of a trace file in text [bytes], as in Azure's: how many there are where nobody counted."""
GZIP_RATIO = 5.0
"""How much longer such a file is than its compressed form: an assumption."""
MARGIN = 0.9
"""Share of the free memory that is used."""


@dataclass(frozen=True, slots=True)
class Guard:
    """What fits."""

    free_bytes: float

    def jobs(self, needs: Sequence[float], wanted: int) -> int:
        """How many of these runs may go on at a time: at least one."""
        most = max(needs, default=0.0)
        return wanted if most <= 0 else max(1, min(wanted, int(self.free_bytes / most)))

    def refusal(self, need_bytes: float) -> str:
        """Why a run is not started; empty if it fits."""
        if need_bytes <= self.free_bytes:
            return ""
        return (
            f"would need about {need_bytes / 1e9:.1f} GB of memory, {self.free_bytes / 1e9:.1f} GB may be used "
            "(--memory says how much)"
        )


def expected_requests(loaded: LoadedScenario) -> float:
    """How many requests a run will have, at most and about; 0 where nobody can tell."""
    workload = loaded.scenario.workload
    parts = list(workload.parts.values()) if isinstance(workload, MixWorkload) else [workload]
    return sum(_requests(part, loaded.base_dir) for part in parts)


def _requests(part: object, base_dir: Path) -> float:
    if isinstance(part, TraceWorkload):
        rows = part.loop * _rows(part.path, base_dir)
        return rows if part.limit is None else min(float(part.limit), rows)
    if isinstance(part, SyntheticWorkload):
        rate = float(getattr(part.arrivals, "rate", 0.0) or 0.0)
        known = [float(part.requests)] if part.requests is not None else []
        if part.duration is not None and rate:
            known.append(part.duration * rate)
        return min(known, default=0.0)
    return 0.0


def _rows(path: str, base_dir: Path) -> float:
    try:
        file = locate(path, base_dir)
        size = file.stat().st_size
    except (InputError, OSError):
        return 0.0
    if file.suffix == ".parquet":
        import pyarrow.parquet as pq

        return float(pq.read_metadata(file).num_rows)
    return size / ROW_BYTES * (GZIP_RATIO if file.suffix == ".gz" else 1.0)


def need_bytes(loaded: LoadedScenario) -> float:
    """Memory of the process that simulates it, estimated [bytes]."""
    replicas = sum(pool.most_replicas for pool in loaded.scenario.pools)
    return PROCESS_BYTES + REQUEST_BYTES * expected_requests(loaded) + REPLICA_BYTES * replicas


def free_bytes() -> float | None:
    """Memory that processes may still take [bytes]: of the machine, or of this control group; None where nobody tells."""
    found = [value for value in (_of_machine(), _of_group()) if value is not None]
    return MARGIN * min(found) if found else None


def _of_machine() -> float | None:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return None


def _of_group() -> float | None:
    root = Path("/sys/fs/cgroup")
    for most, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            limit = (root / most).read_text(encoding="ascii").strip()
            if limit != "max":
                return max(0.0, float(limit) - float((root / used).read_text(encoding="ascii")))
        except (OSError, ValueError):
            continue
    return None
