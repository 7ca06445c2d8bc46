"""Measured kernels as arrays, the formula that predicts their times, and the fit of its constants."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import least_squares

from fleetsim.catalog.accelerator import Accelerator

START = {
    "compute_ratio": 0.7,
    "memory_ratio": 0.8,
    "overhead_s": 6e-6,
    "sharpness": 2.0,
    "width_s": 1e-10,
    "passes": 2.0,
    "head_s": 3e-9,
    "serial_s": 1e-8,
    "decode_rows": 40.0,
    "cache_speed": 3.0,
}
"""Where each constant's fit starts."""
LIMITS = {
    "compute_ratio": (0.05, 1.2),
    "memory_ratio": (0.05, 4.0),
    "overhead_s": (5e-7, 1e-4),
    "sharpness": (1.0, 8.0),
    "width_s": (1e-13, 1e-8),
    "passes": (0.01, 20.0),
    "head_s": (1e-13, 1e-6),
    "serial_s": (1e-11, 1e-6),
    "decode_rows": (1.0, 256.0),
    "cache_speed": (1.0, 20.0),
}
"""What each constant may be."""
OFF = {
    "compute_ratio": 1.0,
    "memory_ratio": 1.0,
    "overhead_s": 0.0,
    "sharpness": 2.0,
    "width_s": 0.0,
    "passes": 0.0,
    "head_s": 0.0,
    "serial_s": 0.0,
    "decode_rows": 1.0,
    "cache_speed": 1.0,
}
"""Constants without effect, for terms that a group of operators does not have."""


KEYS = {
    "compute_ratio": ("compute_ratio", 1.0, ""),
    "memory_ratio": ("memory_ratio", 1.0, ""),
    "overhead_s": ("overhead", 1e6, " us"),
    "sharpness": ("sharpness", 1.0, ""),
    "passes": ("passes", 1.0, ""),
    "width_s": ("per_width", 1e9, " ns"),
    "head_s": ("per_head", 1e9, " ns"),
    "serial_s": ("serial_per_token", 1e9, " ns"),
    "decode_rows": ("decode_rows", 1.0, ""),
    "mixed_memory_ratio": ("mixed_memory_ratio", 1.0, ""),
}
"""Key in the file, factor and unit of each constant."""
ARITHMETIC = {
    "bf16": "bf16",
    "fp8": "fp8",
    "fp8_block": "fp8",
    "fp4": "fp4",
    "mxfp4_bf16": "bf16",
    "int4_bf16": "bf16",
    "mxfp4_fp8": "fp8",
}
"""Data type that each format is multiplied in."""
WIDTHS = {
    "bf16": 2.0,
    "fp8": 1.0,
    "fp8_block": 1.0,
    "fp4": 0.5625,
    "mxfp4_bf16": 0.53125,
    "int4_bf16": 0.53125,
    "mxfp4_fp8": 0.53125,
}
"""Bytes per weight, scales included."""


@dataclass(frozen=True)
class Kernels:
    """Work and measured time of many kernels; every field is an array of the same length, or one number for all."""

    accelerator: Accelerator
    arithmetic: str
    time_s: np.ndarray
    flops: np.ndarray | float = 0.0
    size_bytes: np.ndarray | float = 0.0
    """Bytes that the product itself reads and writes."""
    pass_bytes: np.ndarray | float = 0.0
    """Activations that passes before and after it go through: quantisation, permutation to experts and back."""
    width: np.ndarray | float = 0.0
    """Length of the sums that one element of the result takes."""
    sequence_heads: np.ndarray | float = 0.0
    """Query heads of decoding sequences: the pieces that attention starts and joins."""
    single_row_flops: np.ndarray | float = 0.0
    """Arithmetic of decodes in a kernel whose tiles have more rows."""
    serial_tokens: np.ndarray | float = 0.0
    """Longest context."""
    cached: np.ndarray | float = 0.0
    """1 where a loop over this kernel alone reads its operands from the last-level cache, which a model does not."""
    tokens: np.ndarray | float = 0.0
    """New tokens (or sequences), for the validity range."""

    def __len__(self) -> int:
        return len(self.time_s)

    def rows(self, chosen: np.ndarray) -> "Kernels":
        """Some of the kernels."""
        arrays = {k: v[chosen] for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        return replace(self, **arrays)

    def halves(self, most: int = 4000) -> tuple["Kernels", "Kernels"]:
        """Two random halves, at most `most` rows each: one to fit, one to judge."""
        order = np.random.default_rng(0).permutation(len(self))[: 2 * most]
        return self.rows(order[::2]), self.rows(order[1::2])


def joined(parts: list[Kernels]) -> Kernels:
    """Several tables of one accelerator and data type as one."""
    arrays = [k for k, v in vars(parts[0]).items() if isinstance(v, np.ndarray | float)]
    whole = {k: np.concatenate([np.broadcast_to(getattr(p, k), len(p)) for p in parts]) for k in arrays}
    return replace(parts[0], **whole)  # type: ignore[arg-type]


def predicted_s(kernels: Kernels, constants: Mapping[str, float]) -> np.ndarray:
    """The formula of `fleetsim.catalog.calibration.Efficiency` for many kernels at once."""
    chip, p = kernels.accelerator, constants["sharpness"]
    work = kernels.flops + constants["decode_rows"] * kernels.single_row_flops
    arithmetic = work / (chip.peak_flop_per_s[kernels.arithmetic] * constants["compute_ratio"])
    bandwidth = chip.bandwidth_bytes_per_s
    memory = kernels.size_bytes / (bandwidth * constants["memory_ratio"])
    memory = np.where(kernels.cached, memory / constants.get("cache_speed", 1.0), memory)
    serial = kernels.serial_tokens * constants["serial_s"] + kernels.width * constants["width_s"]
    largest = np.maximum(np.maximum(arithmetic, memory), np.maximum(serial, 1e-12))
    norm = largest * sum((part / largest) ** p for part in (arithmetic, memory, serial)) ** (1 / p)
    beside = constants["passes"] * kernels.pass_bytes / bandwidth
    time: np.ndarray = np.asarray(
        constants["overhead_s"] + constants["head_s"] * kernels.sequence_heads + beside + norm
    )
    return time


@dataclass(frozen=True)
class Fit:
    """Constants of one operator group on one accelerator, and how well they do."""

    constants: Mapping[str, float]
    median_error: float
    """Median absolute relative error on rows that the fit did not see."""
    mean_error: float
    rows: int
    tokens_max: float


def fit(kernels: Kernels, free: tuple[str, ...], **fixed: float) -> Fit:
    """Fits constants to one half of the rows (nearly least absolute errors of the logarithm) and judges them on the other half.

    Rows whose operands are read from the last-level cache, as in no model, are not judged.

    Parameters
    ----------
    kernels : Kernels
        At least eight rows.
    free : tuple of str
        Names of the constants to fit; others are `fixed` or without effect.
    """
    train, test = kernels.halves()
    if np.any(train.cached):
        free = (*free, "cache_speed")
    low, high = (np.log([LIMITS[k][side] for k in free]) for side in (0, 1))

    def constants(x: np.ndarray) -> dict[str, float]:
        return {**OFF, **fixed, **dict(zip(free, (float(v) for v in np.exp(x)), strict=True))}

    def residual(x: np.ndarray) -> np.ndarray:
        off: np.ndarray = np.log(predicted_s(train, constants(x)) / train.time_s)
        return off

    start = np.clip(np.log([START[k] for k in free]), low, high)
    solved = least_squares(residual, start, bounds=(low, high), loss="soft_l1", f_scale=0.01)
    found = constants(solved.x)
    judged = test.rows(np.broadcast_to(np.asarray(test.cached) == 0, len(test)))
    error = np.abs(predicted_s(judged, found) / judged.time_s - 1)
    return Fit(found, float(np.median(error)), float(np.mean(error)), len(kernels), float(np.max(kernels.tokens)))
