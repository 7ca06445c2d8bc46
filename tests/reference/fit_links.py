"""Fits the constants in ``models/link`` to published measurements of collectives.

``python -m tests.reference.fit_links`` prints the constants and errors of every measured link, as the files state them.
Half of the rows are fitted (log residuals, soft L1), the other half gives the error.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from fleetsim.catalog.link import Link, load_link

DATA = Path(os.environ.get("FLEETSIM_DATA", Path(__file__).parents[3] / "shared" / "data"))
OPEN = DATA / "reference" / "open"

MEASURED = {
    "nvlink3": ("a100_sxm",),
    "nvlink4": ("h100_sxm", "h200_sxm"),
    "nvlink5": ("b200_sxm", "b300_sxm"),
    "nvlink5-gb200": ("gb200",),
    "nvlink5-gb300": ("gb300",),
    "pcie4-x16": ("l40s",),
    "pcie5-x16": ("rtx_pro_6000_server",),
    "pcie5-x8": ("b60",),
}
"""Systems that aiconfigurator measured, by the link that joins their accelerators."""
GATHERS = ("all_gather", "reduce_scatter", "alltoall")
"""Collectives that share constants. Intel's library states all-gathers by another size, so only its reduce-scatters count."""
SENDS = {"nvlink3": ("a100_dgx", 2), "nvlink4": ("h100_dgx", 2), "infiniband-400": ("h100_dgx", 1)}
"""Kind of node and accelerators per node of Vidur's measurements of send and receive between two."""
BEST = ("vllm_graph", "NCCL")
"""Libraries of which an engine takes the faster inside a captured graph."""
ONECCL = ("vllm_eager", "oneCCL")
LARGEST = 2**28


@cache
def table(name: str) -> pd.DataFrame:
    """One Parquet file of the reference data."""
    return pd.read_parquet(OPEN / f"{name}.parquet")


@dataclass(frozen=True)
class Times:
    """Measured collectives; every field is an array of the same length."""

    system: np.ndarray
    ranks: np.ndarray
    size_bytes: np.ndarray
    time_s: np.ndarray

    def halves(self) -> tuple["Times", "Times"]:
        """Two random halves: one to fit, one to judge."""
        order = np.random.default_rng(0).permutation(len(self.time_s))
        return self.rows(order[::2]), self.rows(order[1::2])

    def rows(self, chosen: np.ndarray) -> "Times":
        """Some of the rows."""
        return Times(*(getattr(self, field)[chosen] for field in ("system", "ranks", "size_bytes", "time_s")))


def collectives(link: str, kinds: tuple[str, ...] = ("all_reduce",)) -> Times:
    """Best library per size and number of accelerators, 256 B to 256 MiB, of the systems with a link."""
    rows = table("aic_collectives")
    intel = MEASURED[link] == ("b60",)
    libraries, kinds = (ONECCL, tuple(set(kinds) - {"all_gather", "alltoall"})) if intel else (BEST, kinds)
    rows = rows[rows.system.isin(MEASURED[link]) & rows.collective.isin(kinds) & rows.variant.isin(libraries)]
    rows = rows[rows.dtype.isin(["bfloat16", "half"]) & (rows.message_bytes <= LARGEST)]
    if kinds != ("all_reduce",):
        rows = rows[rows.variant == libraries[1]]
    keys = ["system", "collective", "num_gpus", "message_bytes"]
    best = rows.groupby(keys).latency_ms.min().reset_index()
    return _times(best.system, best.num_gpus, best.message_bytes, best.latency_ms)


def sends(link: str) -> Times:
    """Send and receive between two accelerators."""
    node, per_node = SENDS[link]
    rows = table("vidur_network")
    rows = rows[(rows.node_type == node) & (rows.collective == "send_recv") & (rows.devices_per_node == per_node)]
    return _times(rows.node_type, rows.num_workers, rows.message_bytes, rows.latency_ms)


def _times(system: pd.Series, ranks: pd.Series, size: pd.Series, latency_ms: pd.Series) -> Times:
    return Times(system.to_numpy(), ranks.to_numpy(float), size.to_numpy(float), latency_ms.to_numpy(float) * 1e-3)


def predicted_s(
    times: Times,
    bandwidth: float,
    share: float,
    latency: float,
    per_rank: float,
    chunk: float,
    ratio: float,
    fight: float,
) -> np.ndarray:
    """The formula of `fleetsim.catalog.link.Link` for many collectives that move `share` x size x (n - 1) / n."""
    n = times.ranks
    wire = share * (n - 1) / n * times.size_bytes / (bandwidth * ratio * (2 / n) ** fight)
    return latency + per_rank * n + np.sqrt(chunk * wire) + wire


def solve(times: Times, start: list[float], predict: Callable[[Times, np.ndarray], np.ndarray]) -> np.ndarray:
    """Positive constants that fit best."""

    def residual(x: np.ndarray) -> np.ndarray:
        return np.log(predict(times, np.exp(x)) / times.time_s)

    low, high = np.log(1e-9), np.log(4.0)
    return np.exp(least_squares(residual, np.log(start), bounds=(low, high), loss="soft_l1", f_scale=0.1).x)


def all_reduce(link: str) -> np.ndarray:
    """Latency, latency per rank, chunk time, ratio and contention of a link.

    Switched links pipeline chunks and do not contend; on PCI Express it is the other way round.
    """
    bandwidth, train = load_link(link).bandwidth_bytes_per_s, collectives(link).halves()[0]
    if link.startswith("nvlink"):
        found = solve(train, [4e-6, 4e-7, 4e-6, 0.6], lambda t, x: predicted_s(t, bandwidth, 2, *x, 0.0))
        return np.append(found, 0.0)
    start = [4e-6, 4e-7, 0.6, 0.5]
    found = solve(train, start, lambda t, x: predicted_s(t, bandwidth, 2, x[0], x[1], 0.0, x[2], x[3]))
    return np.insert(found, 2, 0.0)


def gather(link: str) -> np.ndarray:
    """Latency, latency per rank and chunk time of the other collectives, at the bandwidth of the all-reduce."""
    known, bandwidth, train = (
        load_link(link),
        load_link(link).bandwidth_bytes_per_s,
        collectives(link, GATHERS).halves()[0],
    )
    fixed = (known.bandwidth_ratio, known.contention)
    return solve(train, [4e-6, 4e-7, 4e-6], lambda t, x: predicted_s(t, bandwidth, 1, *x, *fixed))


def send(link: str) -> np.ndarray:
    """Latency, chunk time and ratio of a send."""
    bandwidth = load_link(link).bandwidth_bytes_per_s
    start = [1e-5, 4e-6, 0.6]
    return solve(sends(link).halves()[0], start, lambda t, x: predicted_s(t, bandwidth, 2, x[0], 0, x[1], x[2], 0.0))


def errors(times: Times, predict: Callable[[float, int], float]) -> dict[str, float]:
    """Median absolute relative error per system on the half that was not fitted."""
    judged = times.halves()[1]
    guesses = [predict(size, int(ranks)) for size, ranks in zip(judged.size_bytes, judged.ranks, strict=True)]
    off = np.abs(np.array(guesses) / judged.time_s - 1)
    return {str(name): float(np.median(off[judged.system == name])) for name in np.unique(judged.system)}


def send_errors(link: Link) -> dict[str, float]:
    """`errors` of sends."""
    return errors(sends(link.name), lambda size, _: link.send_s(size))


def main() -> None:
    """Print what the files of ``models/link`` state."""
    for name in MEASURED:
        link = load_link(name)
        print(name, "all-reduce", np.round(all_reduce(name) * (1e6, 1e6, 1e6, 1, 1), 3))
        print("  rows", len(collectives(name).time_s), errors(collectives(name), link.all_reduce_s))
        print(name, "gather", np.round(gather(name) * 1e6, 3))
        print("  rows", len(collectives(name, GATHERS).time_s), errors(collectives(name, GATHERS), link.all_gather_s))
    for name in SENDS:
        print(
            name, "send", np.round(send(name) * (1e6, 1e6, 1), 3), len(sends(name).time_s), send_errors(load_link(name))
        )


if __name__ == "__main__":
    main()
