"""Writes ``models/calibration``: constants of every accelerator that published kernel tables cover.

``python -m fleetsim.calibration.catalogue [NAME...]`` from the root of the repository, with the data folder beside it.
Half of the rows are fitted (log residuals, soft L1), the other half gives the error that the file states.
"""

import sys
from pathlib import Path

import numpy as np

from fleetsim.calibration import tables
from fleetsim.calibration.kernels import KEYS, OFF, Fit, Kernels, fit
from fleetsim.catalog.accelerator import load_accelerator
from fleetsim.catalog.calibration import GROUPS, load_calibration

FOLDER = Path("models", "calibration")
HEADER = "# Written by `python -m fleetsim.calibration.catalogue`. Errors are medians on rows that the fit did not see."

ROOF = ("compute_ratio", "memory_ratio", "overhead_s", "sharpness")
GEMM = (*ROOF, "width_s")
QUANTISED = (*GEMM, "passes")
MOE = (*GEMM, "passes")
FRESH = (*ROOF, "serial_s")
MIXED = (*ROOF, "head_s", "serial_s", "decode_rows")
DECODE = ("memory_ratio", "overhead_s", "head_s")
MEMORY = ("memory_ratio", "overhead_s", "sharpness")

ALWAYS = ("compute_ratio", "memory_ratio", "overhead_s", "sharpness")

BORROWED_NOTE = (
    "decode_rows is that of the attention kernel's generation on profiled chips, mixed_memory_ratio and per_head are decode "
    "attention's: fresh prompts alone do not show them"
)
FLASH_2, FLASH_3 = 60.0, 16.0
ROWS = {"a100-80": FLASH_2, "l40s": FLASH_2, "arc-pro-b60": FLASH_2, "rtx-pro-6000": FLASH_2}
"""Rows of a tile that a decoding sequence's one query takes in the prompt kernel: FlashAttention 2 before Hopper."""

Body = dict[str, list[str]]


def lines(found: Fit, names: tuple[str, ...], source: str) -> list[str]:
    """Lines of YAML for one fitted operator group and number format."""
    wanted = [k for k in KEYS if k in ALWAYS or k in names]
    return [
        *(f"    {KEYS[k][0]}: {found.constants[k] * KEYS[k][1]:.3g}{KEYS[k][2]}" for k in wanted),
        f"    source: {source}",
        f"    median_error: {found.median_error:.3f}",
        f"    rows: {found.rows}",
        f"    tokens_max: {found.tokens_max:.0f}",
    ]


def entry(kernels: Kernels, free: tuple[str, ...], source: str = "aiconfigurator") -> list[str]:
    """A fit as lines of YAML."""
    return lines(fit(kernels, free), free, source)


def attention(name: str, library: str) -> tuple[Body, Body]:
    """Prompt and decode attention by the data type of the cache, where the kernel tables have them."""
    prompts: Body = {}
    decodes: Body = {}
    for dtype, cache in (("bf16", "bfloat16"), ("fp8", "fp8")):
        kernels = tables.decode_attention(name, library, cache)
        if not len(kernels):
            continue
        decode = fit(kernels, DECODE)
        decodes[dtype] = lines(decode, DECODE, "aiconfigurator")
        fresh = fit(tables.prefill_attention(name, library, cache), FRESH)
        borrowed = {
            "decode_rows": ROWS.get(name, FLASH_3),
            "mixed_memory_ratio": decode.constants["memory_ratio"],
            "head_s": decode.constants["head_s"],
        }
        whole = Fit({**fresh.constants, **borrowed}, fresh.median_error, fresh.mean_error, fresh.rows, fresh.tokens_max)
        prompts[dtype] = [*lines(whole, (*FRESH, *borrowed), "aiconfigurator"), f'    note: "{BORROWED_NOTE}"']
    return prompts, decodes


def measured(name: str, library: str) -> dict[str, Body]:
    """Operator groups of one accelerator and kernel library."""
    products = tables.formats("aic_gemm", name, library)
    experts = tables.formats("aic_moe", name, library)
    prompts, decodes = attention(name, library)
    return {
        "gemm": {f: entry(tables.gemm(name, f, library), GEMM if f == "bf16" else QUANTISED) for f in products},
        "moe": {f: [*entry(tables.moe(name, f, library), MOE)] for f in experts},
        "prefill_attention": prompts,
        "decode_attention": decodes,
    }


def profiled(name: str) -> dict[str, Body]:
    """Operator groups of an accelerator that was profiled inside an engine."""
    source = "llmservingsim"
    groups = {
        "gemm": {"bf16": entry(tables.profiled_gemm(name), GEMM, source)},
        "prefill_attention": {"bf16": entry(tables.profiled_attention(name, prompts=True), MIXED, source)},
        "decode_attention": {"bf16": entry(tables.profiled_attention(name, prompts=False), DECODE, source)},
        "elementwise": {"bf16": entry(tables.profiled_elementwise(name), MEMORY, source)},
        "sampler": {"bf16": entry(tables.profiled_sampler(name), MEMORY, source)},
    }
    if name == "rtx-pro-6000":
        groups["moe"] = {"bf16": entry(tables.profiled_moe(name), GEMM, source)}
    return groups


def content(groups: dict[str, Body]) -> str:
    """Text of one calibration file."""
    out = [HEADER]
    for group, formats in groups.items():
        if formats:
            out.append(f"{group}:")
        for name, body in formats.items():
            out += [f"  {name}:", *body]
    return "\n".join(out) + "\n"


def generic(vendor: str) -> str:
    """Constants for a vendor's chips that nobody measured: medians over those that were."""
    chips = [load_accelerator(name) for name in {*tables.SYSTEMS, *tables.PROFILED}]
    groups = [load_calibration(chip.calibration, "", "").groups for chip in chips if chip.vendor == vendor]
    out: dict[str, Body] = {}
    for group in GROUPS:
        forms = sorted({form for its in groups for form in its.get(group, {})})
        for form in forms:
            fits = [its[group][form] for its in groups if form in its.get(group, {})]
            constants = {k: float(np.median([getattr(fit, k) for fit in fits])) for k in KEYS}
            constants["memory_ratio"] = min(
                constants["memory_ratio"], 1.0
            )  # above it the last-level cache was measured
            beside = KEYS if group == "prefill_attention" else [k for k in KEYS if k != "mixed_memory_ratio"]
            wanted = tuple(k for k in beside if k in ALWAYS or constants[k] not in (OFF.get(k), 0.0))
            body = [f"    {KEYS[k][0]}: {constants[k] * KEYS[k][1]:.3g}{KEYS[k][2]}" for k in wanted]
            note = f'    note: "median of {len(fits)} chips of the vendor"'
            out.setdefault(group, {})[form] = [*body, f"    source: {fits[0].source}", note]
    return content(out)


def main(names: list[str]) -> None:
    """Rewrite the calibration of the named accelerators, or of all that were measured and of chips like them."""
    for name in names or sorted({*tables.SYSTEMS, *tables.PROFILED}):
        found = {library: measured(name, library) for library in tables.LIBRARIES if name in tables.SYSTEMS}
        groups = found.get("vllm", {})
        for group, formats in (profiled(name) if name in tables.PROFILED else {}).items():
            groups[group] = {**groups.get(group, {}), **formats}
        files = {name: groups, **({f"{name}-trtllm": found["trtllm"]} if any(found.get("trtllm", {}).values()) else {})}
        for file, its in files.items():
            (FOLDER / f"{file}.yaml").write_text(content(its), encoding="utf-8")
            print(file, *(f"{g} {f}: {_error(b)}" for g, v in its.items() for f, b in v.items()), sep="\n  ")
    load_calibration.cache_clear()
    (FOLDER / "generic-nvidia.yaml").write_text(generic("nvidia"), encoding="utf-8")


def _error(body: list[str]) -> str:
    return next(line.split(": ")[1] for line in body if "median_error" in line)


if __name__ == "__main__":
    main(sys.argv[1:])
