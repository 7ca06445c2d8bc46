"""Published kernel measurements as arrays in base units, one table per accelerator, operator group and data type."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from fleetsim.calibration.kernels import ARITHMETIC, WIDTHS, Kernels, joined
from fleetsim.catalog.accelerator import Accelerator, load_accelerator
from fleetsim.catalog.llm import load_llm
from fleetsim.errors import DataError, Finding

DATA = Path(os.environ.get("FLEETSIM_DATA", Path(__file__).parents[3] / "shared" / "data")).absolute()
"""Folder of the reference data: beside the checkout, or where FLEETSIM_DATA says, whatever the working directory is later."""
OPEN = DATA / "reference" / "open"
MISSING = f"measurements are not at {OPEN}: set FLEETSIM_DATA to the folder that holds reference/open"

SYSTEMS = {
    "a100-80": "a100_sxm",
    "h100-sxm": "h100_sxm",
    "h200-sxm": "h200_sxm",
    "b200-sxm": "b200_sxm",
    "b300-sxm": "b300_sxm",
    "gb200": "gb200",
    "gb300": "gb300",
    "l40s": "l40s",
    "rtx-pro-6000": "rtx_pro_6000_server",
    "arc-pro-b60": "b60",
}
"""Accelerators that aiconfigurator measured, by their name there."""
LIBRARIES = ("vllm", "trtllm")
"""Kernel libraries that it measured."""
PROFILED = {"rtx-4090": "RTX4090", "rtx-pro-6000": "RTXPRO6000"}
"""Accelerators that LLMServingSim profiled inside vLLM 0.19, by their name there."""
LLMS = {
    "meta-llama/Llama-3.1-8B": "llama-3.1-8b",
    "Qwen/Qwen3-32B": "qwen3-32b",
    "Qwen/Qwen3-30B-A3B-Instruct-2507": "qwen3-30b-a3b",
}
GEMM_FORMATS = {"bf16": "bfloat16", "fp8": "fp8", "fp8_block": "fp8_block", "fp4": "nvfp4"}
"""Number formats of matrix products, by their name in the table."""
MOE_FORMATS = {
    "bf16": "bfloat16",
    "fp8": "fp8",
    "fp8_block": "fp8_block",
    "fp4": "nvfp4",
    "mxfp4_bf16": "w4a16_mxfp4",
    "int4_bf16": "w4a16_mxfp4",
    "mxfp4_fp8": "w4a8_mxfp4_mxfp8",
}
"""Number formats of experts: weights in mxfp4 meet activations in 16 or 8 bits."""
L2_BYTES = {
    "a100-80": 40e6,
    "h100-sxm": 50e6,
    "h200-sxm": 50e6,
    "b200-sxm": 126e6,
    "b300-sxm": 126e6,
    "gb200": 126e6,
    "gb300": 126e6,
    "l40s": 96e6,
    "rtx-pro-6000": 128e6,
    "arc-pro-b60": 18e6,
}
"""Last-level caches: weights that fit are read from there in a loop over one kernel, but not in a model."""
TOKENS_MAX = 16384
"""Most tokens of a step that fits look at."""


def require_data() -> None:
    """Make sure that the folder of measurements is there.

    Raises
    ------
    DataError
        If it is not.
    """
    if not OPEN.is_dir():
        hint = "Set FLEETSIM_DATA to the folder that holds reference/open"
        raise DataError(Finding(f"no measurements at {OPEN}", hint=hint))


@cache
def table(name: str) -> pd.DataFrame:
    """One Parquet file of the reference data."""
    return pd.read_parquet(OPEN / f"{name}.parquet")


def measured(table_name: str, name: str, library: str) -> pd.DataFrame:
    """Rows of one accelerator and kernel library."""
    rows = table(table_name)
    return rows[(rows.system == SYSTEMS[name]) & (rows.framework == library)]


def formats(table_name: str, name: str, library: str) -> list[str]:
    """Number formats that a table holds for an accelerator and library, and that its data sheet knows."""
    column, known = {"aic_gemm": ("dtype", GEMM_FORMATS), "aic_moe": ("moe_dtype", MOE_FORMATS)}[table_name]
    present = set(measured(table_name, name, library)[column])
    peaks = load_accelerator(name).peak_flop_per_s
    usable = [d for d, its in known.items() if its in present and ARITHMETIC[d] in peaks]
    if table_name == "aic_moe":
        usable = [d for d in usable if len(moe(name, d, library)) >= FEWEST]
    return [d for d in usable if (table_name, d, library) not in UNUSABLE | {k[:3] for k in SLOW if k[3] == name}]


FEWEST = 40
"""Kernels below which nothing is fitted."""
UNUSABLE = {("aic_gemm", "fp8_block", "vllm")}
"""Products that were timed without a captured graph: they show the host, not the kernel."""
SLOW = {("aic_moe", "fp8", "vllm", "h100-sxm"), ("aic_moe", "fp8", "vllm", "h200-sxm")}
"""A kernel that reaches a seventh of the bandwidth that experts with a scale per block reach: engines choose others."""


def gemm(name: str, form: str, library: str = "vllm") -> Kernels:
    """Matrix products whose weights a model would read from memory, and small ones that show the launch alone.

    The small ones find their weights in the last-level cache: they are marked, fitted with a bandwidth of their own, and
    not judged.
    """
    rows = measured("aic_gemm", name, library)
    rows = rows[(rows.dtype == GEMM_FORMATS[form]) & (rows.m <= TOKENS_MAX)]
    weights = rows.n * rows.k * WIDTHS[form]
    large = weights > 2 * L2_BYTES[name]
    cached = (weights < L2_BYTES[name] / 4) & (rows.m <= 256)
    kept = rows.index[cached]
    fewer = np.random.default_rng(0).permutation(kept)[: large.sum() // 5]
    rows = rows[large | rows.index.isin(fewer)]
    kernels = products(load_accelerator(name), form, rows.m, rows.n, rows.k, rows.latency_ms * 1e-3)
    return replace(kernels, cached=cached[rows.index].to_numpy(float))


def products(chip: Accelerator, form: str, m: pd.Series, n: pd.Series, k: pd.Series, time_s: pd.Series) -> Kernels:
    """Products of m x k activations with k x n weights in a number format."""
    m, n, k = (np.asarray(x, float) for x in (m, n, k))
    quantised = form != "bf16"
    read = m * k * (WIDTHS[form] if quantised else 2)
    return Kernels(
        chip,
        ARITHMETIC[form],
        np.asarray(time_s, float),
        flops=2 * m * n * k,
        size_bytes=n * k * WIDTHS[form] + read + m * n * 2,
        pass_bytes=m * k * (2 + WIDTHS[form]) * quantised,
        width=k,
        tokens=m,
    )


def prefill_attention(name: str, library: str = "vllm", cache: str = "bfloat16") -> Kernels:
    """Causal attention of fresh prompts, equally long, in 16 bits; the cache that it writes may have 8."""
    rows = measured("aic_context_attention", name, library)
    rows = rows[(rows.attn_dtype == "bfloat16") & (rows.kv_cache_dtype == cache)]
    rows = rows[rows.batch * rows.prefill_tokens <= 65536]
    b, n, heads, kv = (rows[c].to_numpy(float) for c in ("batch", "prefill_tokens", "num_heads", "num_kv_heads"))
    return Kernels(
        load_accelerator(name),
        "bf16",
        rows.latency_ms.to_numpy() * 1e-3,
        flops=b * n * (n + 1) / 2 * 4 * heads * 128,
        size_bytes=b * n * (2 * heads + 2 * kv) * 128 * 2,
        serial_tokens=n,
        tokens=b * n,
    )


def decode_attention(name: str, library: str = "vllm", cache: str = "bfloat16") -> Kernels:
    """Attention of decodes with equal contexts and grouped queries."""
    rows = measured("aic_generation_attention", name, library)
    rows = rows[(rows.kv_cache_dtype == cache) & (rows.attn_dtype.isna() | (rows.attn_dtype == "bfloat16"))]
    rows = rows[(rows.batch <= 512) & (rows.num_kv_heads <= 8) & (rows.num_heads / rows.num_kv_heads <= 16)]
    b, c, heads, kv = (rows[k].to_numpy(float) for k in ("batch", "kv_len", "num_heads", "num_kv_heads"))
    return Kernels(
        load_accelerator(name),
        "bf16",
        rows.latency_ms.to_numpy() * 1e-3,
        size_bytes=b * c * 2 * kv * 128 * (2 if cache == "bfloat16" else 1),
        sequence_heads=b * heads,
        tokens=b,
    )


MARLIN = "marlin"
"""Kernels that widen 4-bit weights with instructions that every chip since Ampere has: int4 experts always run on them, mxfp4
experts where nothing made for the chip is chosen."""
SKEWS = {"balanced": 0.0, "power_law_1.01": 1.01, "power_law_1.2": 1.2}
"""Exponents of the loads of experts in the table."""


@cache
def expert_loads(tokens: int, experts: int, chosen: int, ranks: int, exponent: float) -> tuple[float, float]:
    """Experts hit and assignments on the busiest rank, for loads drawn from a power law as the table's workloads were.

    Loads are drawn from a density proportional to x^-exponent between 1 and 0.8 x tokens (between 0.01 and 2 where there
    are fewer assignments than experts), scaled to the number of assignments and rounded.
    """
    assigned = tokens * chosen
    if not exponent:
        return min(experts, assigned) / ranks, assigned / ranks
    low, high = (1.0, max(0.8 * tokens, 1.001)) if assigned > experts else (0.01, 2.0)
    u = np.random.default_rng(experts * 1_000_003 + tokens).random((24, experts))
    p = 1 - exponent
    loads = ((high**p - low**p) * u + low**p) ** (1 / p)
    loads *= assigned / loads.sum(axis=1, keepdims=True)
    whole = np.floor(loads)
    rest = np.argsort(np.argsort(whole - loads, axis=1), axis=1) < (assigned - whole.sum(axis=1, keepdims=True))
    by_rank = (whole + rest).reshape(24, ranks, experts // ranks)
    busiest = by_rank[np.arange(24), by_rank.sum(axis=2).argmax(axis=1)]
    return float((busiest > 0).sum(axis=1).mean()), float(busiest.sum(axis=1).mean())


def moe(name: str, form: str, library: str = "vllm") -> Kernels:
    """Routed experts of the busiest rank, with even and with skewed loads."""
    rows = measured("aic_moe", name, library)
    rows = rows[(rows.moe_dtype == MOE_FORMATS[form]) & (rows.tokens <= TOKENS_MAX)]
    rows = rows[~rows.kernel.str.contains("nongated")]
    if form in ("mxfp4_bf16", "int4_bf16"):
        rows = rows[rows.kernel.str.contains(MARLIN) == (form == "int4_bf16")]
    columns = (rows.tokens, rows.num_experts, rows.topk, rows.moe_ep, rows.distribution.map(SKEWS))
    found = [expert_loads(int(t), int(e), int(k), int(r), s) for t, e, k, r, s in zip(*columns, strict=True)]
    loads = np.array(found).reshape(-1, 2)
    width = (rows.inter_size / rows.moe_tp).to_numpy(float)
    return experts(
        load_accelerator(name),
        form,
        rows.tokens,
        rows.hidden_size,
        width,
        loads[:, 1],
        loads[:, 0],
        rows.latency_ms * 1e-3,
    )


def experts(chip, form, tokens, hidden, width, assigned, hit, time_s) -> Kernels:  # type: ignore[no-untyped-def]
    """Gated experts: `assigned` (token, expert) pairs over `hit` distinct experts."""
    tokens, hidden, width, assigned, hit = (np.asarray(x, float) for x in (tokens, hidden, width, assigned, hit))
    size = 3 * hidden * width
    return Kernels(
        chip,
        ARITHMETIC[form],
        np.asarray(time_s, float),
        flops=2 * assigned * size,
        size_bytes=hit * size * WIDTHS[form],
        pass_bytes=assigned * (2 * hidden + 3 * width) * 2,
        width=hidden + width,
        tokens=tokens,
    )


# --- profiles taken inside vLLM 0.19 ----------------------------------------------------------------------------------


def _profiled(name: str) -> pd.DataFrame:
    rows = table("lss_dense_ops")
    return rows[(rows.gpu == PROFILED[name]) & (rows.profiler == "v1") & rows.model.isin(LLMS)]


def profiled_gemm(name: str) -> Kernels:
    """Projections and LM head of real models."""
    parts = []
    for (model, tp), rows in _profiled(name).groupby(["model", "tp"]):
        llm = load_llm(LLMS[model])
        heads, kv = llm.query_dim / tp, 2 * llm.head_dim * max(llm.kv_heads // tp, 1)
        shapes = {
            "qkv_proj": (llm.hidden, heads + kv),
            "o_proj": (heads, llm.hidden),
            "gate_up_proj": (llm.hidden, 2 * llm.intermediate / tp),
            "down_proj": (llm.intermediate / tp, llm.hidden),
            "lm_head": (llm.hidden, llm.vocab / tp),
        }
        for op, (inner, outer) in shapes.items():
            chosen = rows[rows.op == op]
            m = chosen.tokens_or_sequences
            parts.append(products(load_accelerator(name), "bf16", m, outer, inner, chosen.latency_us * 1e-6))
    return joined(parts)


def profiled_elementwise(name: str) -> Kernels:
    """Norms, rotary embedding, head norms and activation function."""
    parts = []
    for (model, tp), rows in _profiled(name).groupby(["model", "tp"]):
        llm = load_llm(LLMS[model])
        rotated = (llm.heads + 2 * llm.kv_heads) * llm.head_dim / tp
        widths = {
            "layernorm": 4 * llm.hidden,
            "rotary_emb": 2 * rotated,
            "qk_norm": 2 * rotated,
            "act_fn": 3 * llm.intermediate / tp,
        }
        for op, width in widths.items():
            chosen = rows[rows.op == op]
            if len(chosen) and not (op == "act_fn" and llm.is_moe):
                m = chosen.tokens_or_sequences.to_numpy(float)
                time = chosen.latency_us.to_numpy() * 1e-6
                parts.append(Kernels(load_accelerator(name), "bf16", time, np.zeros(len(m)), m * width * 2, tokens=m))
    return joined(parts)


def profiled_sampler(name: str) -> Kernels:
    """Sampler over a batch of logits."""
    rows = _profiled(name)
    rows = rows[rows.op == "sampler"]
    logits = rows.tokens_or_sequences * rows.model.map(lambda m: load_llm(LLMS[m]).vocab)
    zero = np.zeros(len(rows))
    time = rows.latency_us.to_numpy() * 1e-6
    tokens = rows.tokens_or_sequences.to_numpy(float)
    return Kernels(load_accelerator(name), "bf16", time, zero, logits.to_numpy(float) * 4, tokens=tokens)


def profiled_attention(name: str, prompts: bool) -> Kernels:
    """Attention of steps with a prompt chunk (and perhaps decodes), or of decodes alone."""
    rows = table("lss_attention_v1")
    rows = rows[(rows.gpu == PROFILED[name]) & ((rows.prefill_chunk > 0) == prompts)]
    tp = rows.tp.to_numpy()
    heads = rows.model.map(lambda m: load_llm(LLMS[m]).heads).to_numpy() / tp
    kv = rows.model.map(lambda m: load_llm(LLMS[m]).kv_heads).to_numpy() / tp
    n, c, b, ctx = (rows[k].to_numpy(float) for k in ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode"))
    read = (n + c) * (n > 0) + b * ctx
    return Kernels(
        load_accelerator(name),
        "bf16",
        rows.latency_us.to_numpy() * 1e-6,
        flops=(n * c + n * (n + 1) / 2) * 4 * heads * 128,
        size_bytes=read * kv * 512 + n * heads * 512,
        sequence_heads=b * heads,
        single_row_flops=b * ctx * 4 * heads * 128,
        serial_tokens=np.maximum((n + c) * (n > 0), ctx * (b > 0)) * prompts,
        tokens=n + b,
    )


def profiled_moe(name: str) -> Kernels:
    """Fused experts with a known number of them hit."""
    rows = table("lss_moe")
    llm = load_llm("qwen3-30b-a3b")
    tokens, hit = rows.tokens.to_numpy(float), rows.activated_experts.to_numpy(float)
    assigned = tokens * llm.experts_per_token
    hidden, width = np.full(len(rows), llm.hidden), np.full(len(rows), llm.moe_intermediate)
    return experts(load_accelerator(name), "bf16", tokens, hidden, width, assigned, hit, rows.latency_us * 1e-6)


def collectives(name: str, kind: str = "all_reduce") -> pd.DataFrame:
    """Best library per size and number of accelerators, as an engine would choose inside a captured graph."""
    rows = table("aic_collectives")
    rows = rows[(rows.system == SYSTEMS[name]) & (rows.collective == kind) & rows.variant.isin(["vllm_graph", "NCCL"])]
    rows = rows[rows.dtype.isin(["bfloat16", "half"]) & (rows.message_bytes <= 2**28)]
    return rows.groupby(["num_gpus", "message_bytes"]).latency_ms.min().reset_index()
