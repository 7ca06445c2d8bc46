"""Fits the constants in ``models/calibration`` and ``models/link`` to published kernel measurements.

``python -m tests.reference.fit_roofline`` rewrites one calibration file per accelerator and prints constants of links.
Half of the rows are fitted (log residuals, soft L1), the other half gives the error that the file states.
"""

import sys
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from fleetsim.catalog.link import load_link
from tests.reference import measurements as m

MODELS = Path(__file__).parents[2] / "models"
COMMAND = "python -m tests.reference.fit_roofline"
START = {
    "compute_ratio": 0.7,
    "memory_ratio": 0.8,
    "overhead_s": 5e-6,
    "sharpness": 2.0,
    "sequence_s": 3e-7,
    "serial_s": 2e-8,
    "decode_rows": 40.0,
}
LIMITS = {
    "compute_ratio": (0.05, 1.2),
    "memory_ratio": (0.05, 4.0),
    "overhead_s": (5e-7, 1e-4),
    "sharpness": (1.0, 8.0),
    "sequence_s": (1e-9, 1e-5),
    "serial_s": (1e-10, 1e-6),
    "decode_rows": (1.0, 256.0),
}
OFF = {
    "compute_ratio": 1.0,
    "memory_ratio": 1.0,
    "sharpness": 2.0,
    "sequence_s": 0.0,
    "serial_s": 0.0,
    "decode_rows": 1.0,
}
GEMM = ("compute_ratio", "memory_ratio", "overhead_s", "sharpness")
DECODE = ("memory_ratio", "overhead_s", "sequence_s")
MEMORY = ("memory_ratio", "overhead_s", "sharpness")
MIXED = (*GEMM, "sequence_s", "serial_s", "decode_rows")


LAUNCH_S = (1e-6, 6e-6)
"""Overheads that large matrix products cannot tell by themselves: what small ones take."""


def fit(kernels: m.Kernels, free: tuple[str, ...], **fixed: float) -> tuple[dict[str, float], float]:
    """Constants, and the median error on the half that they were not fitted to."""
    train, test = kernels.halves()
    limits = LIMITS | ({"overhead_s": LAUNCH_S} if kernels.launch_bound else {})
    low, high = (np.log([limits[k][side] for k in free]) for side in (0, 1))

    def constants(x: np.ndarray) -> dict[str, float]:
        return {**OFF, **fixed, **dict(zip(free, np.exp(x), strict=True))}

    def residual(x: np.ndarray) -> np.ndarray:
        return np.log(m.predicted_s(train, constants(x)) / train.time_s)

    start = np.clip(np.log([START[k] for k in free]), low, high)
    solved = least_squares(residual, start, bounds=(low, high), loss="soft_l1", f_scale=0.1)
    found = constants(solved.x)
    return found, error(test, found)


def error(kernels: m.Kernels, constants: dict[str, float]) -> float:
    """Median absolute relative error."""
    return float(np.median(np.abs(m.predicted_s(kernels, constants) / kernels.time_s - 1)))


KEYS = {
    "compute_ratio": ("compute_ratio", 1.0, ""),
    "memory_ratio": ("memory_ratio", 1.0, ""),
    "overhead_s": ("overhead", 1e6, " us"),
    "sharpness": ("sharpness", 1.0, ""),
    "sequence_s": ("per_sequence", 1e9, " ns"),
    "serial_s": ("serial_per_token", 1e9, " ns"),
    "decode_rows": ("decode_rows", 1.0, ""),
}


def entry(kernels: m.Kernels, free: tuple[str, ...], source: str, **fixed: float) -> list[str]:
    """Lines of YAML for one fitted operator group and data type."""
    constants, median = fit(kernels, free, **fixed)
    needed = {"compute_ratio", "memory_ratio", "overhead_s", "sharpness", *free, *fixed}
    lines = [f"    {KEYS[k][0]}: {constants[k] * KEYS[k][1]:.3g}{KEYS[k][2]}" for k in KEYS if k in needed]
    return [
        *lines,
        f"    source: {source}",
        f"    median_error: {median:.3f}",
        f"    rows: {len(kernels)}",
        f"    tokens_max: {np.max(kernels.tokens):.0f}",
    ]


SERIAL_NOTE = (
    "serial_per_token and decode_rows are those of generic-nvidia, mixed_memory_ratio is decode attention's: "
    "fresh prompts alone do not show them"
)


def calibration(name: str) -> str:
    """Content of one calibration file."""
    lines = [f"# Written by `{COMMAND}`. Errors are medians on rows that the fit did not see."]
    profiled, measured = name in m.PROFILED, name in m.SYSTEMS

    def add(group: str, *dtypes: tuple[str, list[str]]) -> None:
        lines.append(f"{group}:")
        for dtype, body in dtypes:
            lines.append(f"  {dtype}:")
            lines.extend(body)

    chip = m.load_accelerator(name)
    aic, lss = "aiconfigurator", "llmservingsim"
    bf16 = entry(m.profiled_gemm(name), GEMM, lss) if profiled else entry(m.gemm(name, "bf16"), GEMM, aic)
    quantised = [d for d in ("fp8", "fp4") if d in chip.peak_flop_per_s] if measured else []
    add(
        "gemm",
        ("bf16", bf16),
        *((d, entry(m.gemm(name, d, CLEANER.get(("gemm", name, d), "vllm")), GEMM, aic)) for d in quantised),
    )
    if measured:
        experts = m.profiled_moe(name) if profiled else m.moe(name, "bf16")
        bodies = [("bf16", entry(experts, GEMM, lss if profiled else aic))]
        bodies += [(d, entry(m.moe(name, d, CLEANER.get(("moe", name, d), "vllm")), GEMM, aic)) for d in quantised]
        add("moe", *((d, [*body, "    imbalance: 1.1"]) for d, body in bodies))
    if profiled:
        prefill = entry(m.profiled_attention(name, True), MIXED, lss)
        decode = entry(m.profiled_attention(name, False), DECODE, lss)
    else:
        decode = entry(m.decode_attention(name), DECODE, aic)
        ratio = next(line for line in decode if "memory_ratio" in line).replace("memory_ratio", "mixed_memory_ratio")
        fresh = entry(m.prefill_attention(name), GEMM, aic)
        prefill = [*fresh, *UNSEEN[name], ratio, f'    note: "{SERIAL_NOTE}"']
    add("prefill_attention", ("bf16", prefill))
    add("decode_attention", ("bf16", decode))
    if profiled:
        add("elementwise", ("bf16", entry(m.profiled_elementwise(name), MEMORY, lss)))
        add("sampler", ("bf16", entry(m.profiled_sampler(name), MEMORY, lss)))
    return "\n".join(lines) + "\n"


CLEANER = {
    ("gemm", "b200-sxm", "fp8"): "trtllm",
    ("moe", "h100-sxm", "fp8"): "trtllm",
    ("moe", "h200-sxm", "fp8"): "trtllm",
}
"""Where vLLM's rows were timed without graphs and show the host instead."""
FLASH_2 = ["    per_sequence: 700 ns", "    serial_per_token: 21 ns", "    decode_rows: 60"]
FLASH_3 = ["    per_sequence: 100 ns", "    serial_per_token: 15 ns", "    decode_rows: 16"]
UNSEEN = {"a100-80": FLASH_2, "l40s": FLASH_2, "h100-sxm": FLASH_3, "h200-sxm": FLASH_3, "b200-sxm": FLASH_3}
"""What fresh prompts alone do not show, by generation of the attention kernel."""


def main(names: list[str]) -> None:
    """Rewrite the calibration of the named accelerators, or of all that were measured."""
    for name in names or sorted({*m.SYSTEMS, *m.PROFILED}):
        content = calibration(name)
        (MODELS / "calibration" / f"{name}.yaml").write_text(content)
        print(name, content, sep="\n")
    for name in ("a100-80", "h100-sxm", "b200-sxm", "l40s", "rtx-pro-6000"):
        print(name, link(name))


def link(name: str) -> str:
    """Constants of a link: latency, added latency per rank, share of the bandwidth."""
    rows = m.collectives(name)
    bandwidth = load_link(m.load_accelerator(name).link).bandwidth_bytes_per_s
    n, size, time = rows.num_gpus.to_numpy(), rows.message_bytes.to_numpy(float), rows.latency_ms.to_numpy() * 1e-3

    def predicted(x: np.ndarray) -> np.ndarray:
        latency, per_rank, ratio = np.exp(x)
        return latency + per_rank * n + 2 * (n - 1) / n * size / (bandwidth * ratio)

    start = np.log([4e-6, 4e-7, 0.6])
    solved = least_squares(lambda x: np.log(predicted(x) / time), start, loss="soft_l1", f_scale=0.1)
    latency, per_rank, ratio = np.exp(solved.x)
    median = np.median(np.abs(predicted(solved.x) / time - 1))
    times = f"latency {latency * 1e6:.2f} us, per rank {per_rank * 1e6:.2f} us"
    return f"{times}, ratio {ratio:.3f}, median error {median:.3f}"


if __name__ == "__main__":
    main(sys.argv[1:])
