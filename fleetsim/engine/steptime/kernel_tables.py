"""Kernel times that NVIDIA measured, read where the package aiconfigurator-core is installed; nothing of them is copied.

The files lie in its folder ``systems/data/<system>/<family>/<framework>/<version>``. Times in them are in milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from math import log
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetsim.catalog.accelerator import Accelerator
from fleetsim.engine.steptime.curves import Curve, Grid, rising
from fleetsim.errors import DataError, Finding, nearest

PACKAGE = "aiconfigurator_core"
FRAMEWORKS = ("vllm", "sglang", "trtllm")
SYSTEMS = {
    "a100-80": "a100_sxm",
    "arc-pro-b60": "b60",
    "b200-sxm": "b200_sxm",
    "b300-sxm": "b300_sxm",
    "gb200": "gb200",
    "gb300": "gb300",
    "h100-sxm": "h100_sxm",
    "h200-sxm": "h200_sxm",
    "l40s": "l40s",
    "rtx-pro-6000": "rtx_pro_6000_server",
}
"""Accelerators of the catalogue by their names in the package."""
DTYPES = {
    "bf16": ("bfloat16",),
    "fp16": ("bfloat16",),
    "fp8": ("fp8", "fp8_block"),
    "fp4": ("nvfp4", "w4a16_mxfp4"),
    "int8": ("int8_wo",),
    "int4": ("int4_wo",),
}
"""Our data types by their names in the package, the likeliest first."""
ROUTING = "power_law_1.2"
"""Skew of the routing to experts: what the package's own estimates assume for models other than DeepSeek's."""
FUSED = "fp8"
"""Products that were timed together with the quantising of their input, which engines do on the way out of the kernel before."""
LEAST_PRODUCT = 0.3
"""Share of such a time that is left for the product at least."""
ELEMENT_BYTES = 2
"""Messages of collectives are counted in 16-bit numbers."""

Array = NDArray[np.float64]
Columns = Mapping[str, Any]


def data_folder() -> Path:
    """Folder of the measurements in the installed package.

    Raises
    ------
    DataError
        If it is not installed.
    """
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        hint = "pip install 'fleetsim[silicon]'"
        raise DataError(Finding("step-time model silicon needs the package aiconfigurator-core", hint=hint))
    return Path(spec.origin).parent / "systems" / "data"


def versions(folder: Path, file: str) -> list[str]:
    """Versions of a framework under `folder` that have `file`, the oldest first."""
    if not folder.is_dir():
        return []
    return sorted((found.parent.name for found in folder.glob(f"*/{file}.parquet")), key=_age)


def _age(version: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts versions: release candidates and development builds before what they lead to."""
    parts = re.findall(r"\d+|[a-z]+", version)
    ranks = [(1, int(part), "") if part.isdigit() else (2 if part == "post" else -1, 0, part) for part in parts]
    return (*ranks, (0, 0, ""))


@dataclass(frozen=True)
class Library:
    """Measurements of one accelerator under one framework."""

    folder: Path
    """Of the system."""
    framework: str
    version: str
    """Newest version of the framework to use, and how this is named; empty for the newest there is."""

    def read(
        self, family: str, file: str, columns: tuple[str, ...], framework: str = "", **equal: str
    ) -> Iterator[Columns]:
        """Columns of a file, version by version, the newest first: a new one may hold only what was measured anew.

        Parameters
        ----------
        family, file : str
            Folder and name of the file.
        columns : tuple of str
            Names of the columns.
        framework : str
            Another framework than its own, of whatever version.
        **equal : str
            Columns and the text that they must hold.
        """
        folder = self.folder / family / (framework or self.framework)
        known = versions(folder, file)
        if self.version and not framework:
            known = [version for version in known if _age(version) <= _age(self.version)]
        for version in reversed(known):
            yield _columns(folder / version / f"{file}.parquet", columns, tuple(equal.items()))

    @property
    def title(self) -> str:
        """What the measurements are, for people: framework, version of its matrix products, and package."""
        known = versions(self.folder / "gemm" / self.framework, "gemm_perf")
        if self.version:
            known = [version for version in known if _age(version) <= _age(self.version)]
        return f"{self.framework} {known[-1]} (aiconfigurator-core {metadata.version('aiconfigurator-core')})"

    # --- operators --------------------------------------------------------------------------------------------------

    def product(self, dtype: str) -> Products | None:
        """Matrix products of a data type."""
        for name in DTYPES.get(dtype, ()):
            found = _products(self, name)
            if found is not None:
                return found
        return None

    def experts(
        self, dtype: str, hidden: int, width: int, per_token: int, experts: int, tp: int, ep: int
    ) -> Curve | None:
        """Time of one layer's routed experts on one rank [s] over the tokens that all of them process."""
        keys = {
            "hidden_size": hidden,
            "inter_size": width,
            "topk": per_token,
            "num_experts": experts,
            "moe_tp_size": tp,
            "moe_ep_size": ep,
        }
        for name in DTYPES.get(dtype, ()):
            columns = ("num_tokens", "latency", *keys)
            for found in self.read("moe", "moe_perf", columns, moe_dtype=name, distribution=ROUTING):
                chosen = np.all([found[key] == value for key, value in keys.items()], axis=0)
                if chosen.sum() > 1:
                    return _curve(found["num_tokens"][chosen], found["latency"][chosen] * 1e-3)
        return None

    def attention(self, phase: str, heads: int, kv_heads: int, head_dim: int, kv_dtype: str) -> Grid | None:
        """Time of one layer's attention on one rank [s].

        Parameters
        ----------
        phase : str
            ``generation``: over sequences and their contexts. ``context``: over prompts and the square of their lengths.
        heads, kv_heads, head_dim : int
            Of one rank.
        kv_dtype : str
            Data type of the cache.
        """
        columns = (
            "batch_size",
            "isl",
            "step",
            "num_heads",
            "num_key_value_heads",
            "head_dim",
            "window_size",
            "latency",
        )
        file = f"{phase}_attention_perf"
        name = DTYPES[kv_dtype][0]
        for found in self.read("attention", file, columns, attn_dtype="bfloat16", kv_cache_dtype=name):
            alike = (found["head_dim"] == head_dim) & (found["num_key_value_heads"] == kv_heads)
            alike &= (found["window_size"] == 0) & (found["num_heads"] == heads)
            if alike.sum() > 3 and np.ptp(found["batch_size"][alike]):
                tokens = (found["isl"] ** 2 if phase == "context" else found["isl"] + found["step"])[alike]
                return _grid(found["batch_size"][alike], tokens, found["latency"][alike] * 1e-3)
        return None

    def shapes(self, phase: str) -> list[str]:
        """Attention that was measured: query heads, key-value heads and width of a head."""
        columns = ("num_heads", "num_key_value_heads", "head_dim")
        tables = self.read("attention", f"{phase}_attention_perf", columns)
        found = {shape for table in tables for shape in zip(*(table[key] for key in columns), strict=True)}
        return [f"{heads:g}/{kv_heads:g}/{width:g}" for heads, kv_heads, width in sorted(found)]

    def all_reduce(self, ranks: int) -> Curve | None:
        """Time of an all-reduce [s] over its bytes: the faster of the framework's own and NCCL's, as the engines choose."""
        own = self.read("comm", "custom_allreduce_perf", ("num_gpus", "message_size", "kernel_source", "latency"))
        nccl = self.read(
            "comm",
            "nccl_perf",
            ("num_gpus", "message_size", "latency"),
            "nccl",
            op_name="all_reduce",
            nccl_dtype="half",
        )
        curves = []
        for tables in (own, nccl):
            for found in tables:
                chosen = found["num_gpus"] == ranks
                if "kernel_source" in found:
                    chosen &= ~np.char.endswith(found["kernel_source"], "_eager")
                if chosen.sum() < 2:
                    continue
                curves.append(_curve(found["message_size"][chosen] * ELEMENT_BYTES, found["latency"][chosen] * 1e-3))
                break
        if not curves:
            return None
        points = sorted({x for curve in curves for x in curve.points})
        return Curve(points, [min(curve.at(x) for curve in curves) for x in points])


def library(accelerator: Accelerator, framework: str, version: str) -> Library:
    """Measurements of an accelerator of the catalogue.

    Raises
    ------
    DataError
        If the package is not installed, or has no measurements of the accelerator, framework or version.
    """
    root = data_folder()
    system = SYSTEMS.get(accelerator.name)
    known = [name for name, folder in SYSTEMS.items() if versions(root / folder / "gemm" / framework, "gemm_perf")]
    if system is None or accelerator.name not in known:
        message = f"aiconfigurator-core has no measurements of {accelerator.name} under {framework}"
        raise DataError(Finding(message, hint=nearest(accelerator.name, known, "to it")))
    there = versions(root / system / "gemm" / framework, "gemm_perf")
    if version and not [v for v in there if _age(v) <= _age(version)]:
        message = f"aiconfigurator-core has no measurements of {framework} {version} or older on {accelerator.name}"
        raise DataError(Finding(message, hint=nearest(version, there, "versions")))
    return Library(root / system, framework, version)


# --- reading ----------------------------------------------------------------------------------------------------------


@cache
def _columns(path: Path, columns: tuple[str, ...], equal: tuple[tuple[str, str], ...]) -> Columns:
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=list(columns), filters=[(name, "=", text) for name, text in equal] or None)
    return {name: _array(table[name].to_numpy()) for name in columns}


def _array(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(str) if values.dtype == object else values.astype(np.float64)


def _curve(x: Array, y: Array) -> Curve:
    points, where = np.unique(x, return_inverse=True)
    best = np.full(len(points), np.inf)
    np.minimum.at(best, where, y)
    return Curve(points.tolist(), rising(best).tolist())


def _grid(rows: Array, columns: Array, values: Array) -> Grid:
    """Grid of what was measured; combinations that were too large to measure continue their row."""
    row_points, i = np.unique(rows, return_inverse=True)
    column_points, j = np.unique(columns, return_inverse=True)
    grid = np.full((len(row_points), len(column_points)), np.inf)
    np.minimum.at(grid, (i, j), values)
    for line in grid:
        known = np.isfinite(line)
        if known.sum() > 1 and not known.all():
            curve = Curve(column_points[known].tolist(), rising(line[known]).tolist())
            line[~known] = [curve.at(x) for x in column_points[~known]]
    whole = np.isfinite(grid).all(axis=1)
    return Grid(row_points[whole].tolist(), column_points.tolist(), grid[whole])


@cache
def _products(library: Library, dtype: str) -> Products | None:
    tables = library.read("gemm", "gemm_perf", ("m", "n", "k", "latency"), gemm_dtype=dtype)
    found = next((table for table in tables if len(table["m"]) > 1), None)
    if found is None:
        return None
    axes = [np.unique(found[name], return_inverse=True) for name in ("n", "k", "m")]
    times = np.full([len(points) for points, _ in axes], np.inf)
    np.minimum.at(times, tuple(where for _, where in axes), found["latency"] * 1e-3)
    n, k, m = (points for points, _ in axes)
    if dtype == FUSED:
        times = np.maximum(times - _quantising(library, dtype, k, m), LEAST_PRODUCT * times)
    return Products(n, k, m, times)


def _quantising(library: Library, dtype: str, k: Array, m: Array) -> Array:
    """Time of the kernels that quantise a product's input of m x k, as they were timed by themselves [s]."""
    total = np.zeros((len(k), len(m)))
    for file in ("computescale_perf", "scale_matrix_perf"):
        for found in library.read("quantize", file, ("m", "k", "latency"), quant_dtype=dtype):
            known = {(x, y): t * 1e-3 for x, y, t in zip(found["k"], found["m"], found["latency"], strict=True)}
            total += [[known.get((x, y), 0.0) for y in m] for x in k]
            break
    return total


class Products:
    """Matrix products of one data type: m x k times k x n."""

    def __init__(self, n: Array, k: Array, m: Array, times: Array) -> None:
        self.n, self.k, self.m, self._times = n, k, m, times

    def curve(self, n: float, k: float) -> Curve:
        """Time [s] over m; log-log between the measured n and k, in proportion beyond the largest."""
        scale = max(n / self.n[-1], 1.0) * max(k / self.k[-1], 1.0)
        n_at, n_weight = _between(self.n, n)
        k_at, k_weight = _between(self.k, k)
        corners = [
            (n_at + i, k_at + j, (n_weight if i else 1 - n_weight) * (k_weight if j else 1 - k_weight))
            for i in (0, 1)
            for j in (0, 1)
        ]
        corners = [(i, j, weight) for i, j, weight in corners if weight > 0]
        times = [self._times[i, j] for i, j, _ in corners]
        known = np.isfinite(times).all(axis=0)
        if known.sum() < 2:  # a corner too large to be measured: in proportion to one that was
            i, j = self._nearest(n, k)
            known, scale = np.isfinite(self._times[i, j]), n * k / (self.n[i] * self.k[j])
            corners, times = [(i, j, 1.0)], [self._times[i, j]]
        logs = sum(weight * np.log(time[known]) for (_, _, weight), time in zip(corners, times, strict=True))
        return Curve(self.m[known].tolist(), (rising(np.exp(logs)) * scale).tolist())

    def _nearest(self, n: float, k: float) -> tuple[int, int]:
        measured = np.isfinite(self._times).sum(axis=2) > 1
        distance = np.abs(np.log(self.n / n))[:, None] + np.abs(np.log(self.k / k))[None, :]
        i, j = np.unravel_index(np.where(measured, distance, np.inf).argmin(), measured.shape)
        return int(i), int(j)


def _between(points: Array, x: float) -> tuple[int, float]:
    """Point below `x` and the weight of the next one, both logarithmic; 0 or 1 outside."""
    i = int(np.clip(np.searchsorted(points, x, side="right") - 1, 0, len(points) - 2))
    weight = log(max(x, 1e-9) / points[i]) / log(points[i + 1] / points[i])
    return i, min(max(weight, 0.0), 1.0)
