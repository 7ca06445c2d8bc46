"""Kernels and collectives: the constants of the catalogue against the half of the measurements that they were not fitted to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from fleetsim.calibration import tables
from fleetsim.calibration.kernels import Kernels, predicted_s
from fleetsim.catalog.accelerator import load_accelerator
from fleetsim.catalog.calibration import Efficiency, load_calibration
from fleetsim.catalog.link import load_link

CONSTANTS = (
    "compute_ratio",
    "memory_ratio",
    "overhead_s",
    "sharpness",
    "passes",
    "width_s",
    "head_s",
    "serial_s",
    "decode_rows",
)


def constants(efficiency: Efficiency) -> dict[str, float]:
    """Constants of a calibration as `predicted_s` takes them."""
    return {key: getattr(efficiency, key) for key in CONSTANTS}


def cells() -> Iterator[tuple[str, str, str, str, Kernels]]:
    """Operator group, accelerator, kernel library, number format and measurements of everything that was fitted."""
    for name in tables.SYSTEMS:
        for library in tables.LIBRARIES:
            for form in tables.formats("aic_gemm", name, library):
                yield "gemm", name, library, form, tables.gemm(name, form, library)
            for form in tables.formats("aic_moe", name, library):
                yield "moe", name, library, form, tables.moe(name, form, library)
            for form, cache in (("bf16", "bfloat16"), ("fp8", "fp8")):
                for group, read in _ATTENTION.items():
                    kernels = read(name, library, cache)
                    if len(kernels):
                        yield group, name, library, form, kernels
    for name in tables.PROFILED:
        yield "gemm", name, "inside vLLM", "bf16", tables.profiled_gemm(name)
        yield "prefill_attention", name, "inside vLLM", "bf16", tables.profiled_attention(name, prompts=True)
        yield "decode_attention", name, "inside vLLM", "bf16", tables.profiled_attention(name, prompts=False)
        yield "elementwise", name, "inside vLLM", "bf16", tables.profiled_elementwise(name)
        yield "sampler", name, "inside vLLM", "bf16", tables.profiled_sampler(name)


_ATTENTION: Mapping[str, Callable[[str, str, str], Kernels]] = {
    "prefill_attention": tables.prefill_attention,
    "decode_attention": tables.decode_attention,
}


def kernels() -> pd.DataFrame:
    """Errors of every cell: group, chip, library, format, rows, median_ape, mean_ape, bias, and of unmeasured chips.

    ``unseen_ape`` is the median error with the medians of the other chips' constants: what a chip without measurements
    would get.
    """
    found = []
    for group, name, library, form, measured in cells():
        engine = "trtllm" if library == "trtllm" else "vllm"
        own = load_calibration(name, "", engine)
        efficiency = own.groups.get(group, {}).get(form)
        if efficiency is None or (
            library == "vllm" and name in tables.PROFILED and efficiency.source == "llmservingsim"
        ):
            continue
        unseen = others(group, form, name, engine)
        _, test = measured.halves()
        test = test.rows(np.broadcast_to(np.asarray(test.cached) == 0, len(test)))
        error = predicted_s(test, constants(efficiency)) / test.time_s - 1
        row = {
            "group": group,
            "chip": name,
            "library": library,
            "format": form,
            "rows": len(test),
            "median_ape": float(np.median(np.abs(error))),
            "mean_ape": float(np.mean(np.abs(error))),
            "bias": float(np.median(error)),
            "unseen_ape": float("nan"),
        }
        if unseen is not None:
            row["unseen_ape"] = float(np.median(np.abs(predicted_s(test, constants(unseen)) / test.time_s - 1)))
        found.append(row)
    return pd.DataFrame(found)


def others(group: str, form: str, name: str, engine: str) -> Efficiency | None:
    """Medians of the constants of other chips of the same vendor; None where fewer than two were measured."""
    vendor = load_accelerator(name).vendor
    fits = [
        load_calibration(other, "", engine).groups.get(group, {}).get(form)
        for other in {*tables.SYSTEMS, *tables.PROFILED} - {name}
        if load_accelerator(other).vendor == vendor
    ]
    known = [fit for fit in fits if fit is not None]
    if len(known) < 2:
        return None
    medians = {key: float(np.median([getattr(fit, key) for fit in known])) for key in CONSTANTS}
    return replace(known[0], **medians)  # type: ignore[arg-type]


def collectives() -> pd.DataFrame:
    """Errors of all-reduces over the link of each measured chip: chip, link, rows, median_ape, bias."""
    found = []
    for name in tables.SYSTEMS:
        rows = tables.collectives(name)
        if rows.empty:
            continue
        link = load_link(load_accelerator(name).link)
        pairs = zip(rows.message_bytes, rows.num_gpus, strict=True)
        predicted = np.array([link.all_reduce_s(float(size), int(ranks)) for size, ranks in pairs])
        error = predicted / (rows.latency_ms.to_numpy() * 1e-3) - 1
        found.append(
            {
                "chip": name,
                "link": link.name,
                "rows": len(rows),
                "median_ape": float(np.median(np.abs(error))),
                "bias": float(np.median(error)),
            }
        )
    return pd.DataFrame(found)
