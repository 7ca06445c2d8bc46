"""Published kernel measurements as arrays in base units, one table per accelerator, operator group and data type."""

import os
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from fleetsim.catalog.accelerator import Accelerator, load_accelerator
from fleetsim.catalog.llm import BYTES_PER_VALUE, load_llm

DATA = Path(os.environ.get("FLEETSIM_DATA", Path(__file__).parents[3] / "shared" / "data"))
OPEN = DATA / "reference" / "open"
MISSING = f"measurements are not at {OPEN}: set FLEETSIM_DATA to the folder that holds reference/open"

SYSTEMS = {
    "a100-80": "a100_sxm",
    "h100-sxm": "h100_sxm",
    "h200-sxm": "h200_sxm",
    "b200-sxm": "b200_sxm",
    "l40s": "l40s",
    "rtx-pro-6000": "rtx_pro_6000_server",
}
"""Accelerators that aiconfigurator measured, by their name there."""
PROFILED = {"rtx-4090": "RTX4090", "rtx-pro-6000": "RTXPRO6000"}
"""Accelerators that LLMServingSim profiled inside vLLM 0.19, by their name there."""
LLMS = {
    "meta-llama/Llama-3.1-8B": "llama-3.1-8b",
    "Qwen/Qwen3-32B": "qwen3-32b",
    "Qwen/Qwen3-30B-A3B-Instruct-2507": "qwen3-30b-a3b",
}
DTYPES = {"bfloat16": "bf16", "fp8": "fp8", "nvfp4": "fp4"}
L2_BYTES = {"a100-80": 40e6, "h100-sxm": 50e6, "h200-sxm": 50e6, "b200-sxm": 126e6, "l40s": 96e6, "rtx-pro-6000": 128e6}
"""Last-level caches: weights that fit are read from there in a loop over one kernel, but not in a model."""


@dataclass(frozen=True)
class Kernels:
    """Work and measured time of many kernels; every field is an array of the same length, or one number for all."""

    accelerator: Accelerator
    arithmetic: str
    time_s: np.ndarray
    flops: np.ndarray | float = 0.0
    size_bytes: np.ndarray | float = 0.0
    sequences: np.ndarray | float = 0.0
    """Sequences that cost time by themselves."""
    single_row_flops: np.ndarray | float = 0.0
    """Arithmetic of decodes in a kernel whose tiles have more rows."""
    serial_tokens: np.ndarray | float = 0.0
    """Longest context."""
    launch_bound: bool = False
    """Whether all kernels are too long to show their own overhead."""
    tokens: np.ndarray | float = 0.0
    """New tokens, for the validity range."""

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


def predicted_s(kernels: Kernels, constants: dict[str, float]) -> np.ndarray:
    """The formula of `fleetsim.catalog.calibration.Efficiency` for many kernels at once."""
    chip, p = kernels.accelerator, constants["sharpness"]
    work = kernels.flops + constants["decode_rows"] * kernels.single_row_flops
    arithmetic = work / (chip.peak_flop_per_s[kernels.arithmetic] * constants["compute_ratio"])
    memory = kernels.size_bytes / (chip.bandwidth_bytes_per_s * constants["memory_ratio"])
    serial = kernels.serial_tokens * constants["serial_s"]
    largest = np.maximum(np.maximum(arithmetic, memory), np.maximum(serial, 1e-12))
    joined = largest * sum((part / largest) ** p for part in (arithmetic, memory, serial)) ** (1 / p)
    return constants["overhead_s"] + constants["sequence_s"] * kernels.sequences + joined


@cache
def table(name: str) -> pd.DataFrame:
    """One Parquet file of the reference data."""
    return pd.read_parquet(OPEN / f"{name}.parquet")


def gemm(name: str, dtype: str, framework: str = "vllm") -> Kernels:
    """Matrix products whose weights do not stay in the last-level cache."""
    rows = table("aic_gemm")
    inverse = {v: k for k, v in DTYPES.items()}
    rows = rows[(rows.system == SYSTEMS[name]) & (rows.framework == framework) & (rows.dtype == inverse[dtype])]
    width = BYTES_PER_VALUE[dtype]
    rows = rows[(rows.n * rows.k * width > 2 * L2_BYTES[name]) & (rows.m <= 16384)]
    kernels = _products(load_accelerator(name), dtype, rows.m, rows.n, rows.k, rows.latency_ms * 1e-3)
    return replace(kernels, launch_bound=True)


def _products(chip: Accelerator, dtype: str, m: pd.Series, n: pd.Series, k: pd.Series, time_s: pd.Series) -> Kernels:
    m, n, k = (np.asarray(x, float) for x in (m, n, k))
    arithmetic = chip.arithmetic(dtype)
    activations = m * (n + k) * 2
    if arithmetic != "bf16":
        activations = activations + m * k * (2 + BYTES_PER_VALUE[arithmetic])
    size = n * k * BYTES_PER_VALUE[dtype] + activations
    return Kernels(chip, arithmetic, np.asarray(time_s, float), 2 * m * n * k, size, tokens=m)


def prefill_attention(name: str, framework: str = "vllm") -> Kernels:
    """Causal attention of fresh prompts, equally long."""
    rows = table("aic_context_attention")
    rows = rows[(rows.system == SYSTEMS[name]) & (rows.framework == framework)]
    rows = rows[(rows.attn_dtype == "bfloat16") & (rows.kv_cache_dtype == "bfloat16")]
    rows = rows[rows.batch * rows.prefill_tokens <= 65536]
    b, n, heads, kv = (rows[c].to_numpy(float) for c in ("batch", "prefill_tokens", "num_heads", "num_kv_heads"))
    return Kernels(
        load_accelerator(name),
        "bf16",
        rows.latency_ms.to_numpy() * 1e-3,
        flops=b * n * (n + 1) / 2 * 4 * heads * 128,
        size_bytes=b * n * (2 * heads + 2 * kv) * 128 * 2,
        tokens=b * n,
    )


def decode_attention(name: str, framework: str = "vllm") -> Kernels:
    """Attention of decodes with equal contexts."""
    rows = table("aic_generation_attention")
    rows = rows[(rows.system == SYSTEMS[name]) & (rows.framework == framework) & (rows.kv_cache_dtype == "bfloat16")]
    rows = rows[(rows.batch <= 512) & (rows.num_kv_heads <= 8) & (rows.num_heads / rows.num_kv_heads <= 16)]
    b, c, kv = (rows[c].to_numpy(float) for c in ("batch", "kv_len", "num_kv_heads"))
    size = b * c * 2 * kv * 128 * 2
    return Kernels(
        load_accelerator(name), "bf16", rows.latency_ms.to_numpy() * 1e-3, size_bytes=size, sequences=b, tokens=b
    )


def moe(name: str, dtype: str, framework: str = "vllm") -> Kernels:
    """Routed experts of one rank, with up to 16 routed assignments per expert of skew."""
    rows = table("aic_moe")
    names = {"bf16": ("bfloat16",), "fp8": ("fp8", "fp8_block"), "fp4": ("nvfp4",)}[dtype]
    rows = rows[(rows.system == SYSTEMS[name]) & (rows.framework == framework) & rows.moe_dtype.isin(names)]
    rows = rows[rows.tokens <= 16384]
    t, h, i, k, e, tp, ep = (
        rows[c].to_numpy(float)
        for c in ("tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp", "moe_ep")
    )
    return _experts(
        load_accelerator(name), dtype, t, h, i / tp, t * k / ep, e / ep * (1 - (1 - k / e) ** t), rows.latency_ms * 1e-3
    )


def _experts(chip, dtype, tokens, hidden, width, assigned, hit, time_s) -> Kernels:
    size = 3 * hidden * width
    size_bytes = hit * size * BYTES_PER_VALUE[dtype] + assigned * (2 * hidden + 3 * width) * 2
    time = np.asarray(time_s, float)
    return Kernels(chip, chip.arithmetic(dtype), time, 2 * assigned * size, size_bytes, tokens=tokens)


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
            parts.append(_products(load_accelerator(name), "bf16", m, outer, inner, chosen.latency_us * 1e-6))
    return _join(parts)


def _join(parts: list[Kernels]) -> Kernels:
    arrays = ("time_s", "flops", "size_bytes", "tokens")
    joined = {k: np.concatenate([np.broadcast_to(getattr(p, k), len(p)) for p in parts]) for k in arrays}
    return replace(parts[0], **joined)


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
    return _join(parts)


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
        sequences=b,
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
    return _experts(
        load_accelerator(name), "bf16", tokens, llm.hidden, llm.moe_intermediate, assigned, hit, rows.latency_us * 1e-6
    )


def collectives(name: str, kind: str = "all_reduce") -> pd.DataFrame:
    """Best library per size and number of accelerators, as an engine would choose inside a captured graph."""
    rows = table("aic_collectives")
    rows = rows[(rows.system == SYSTEMS[name]) & (rows.collective == kind) & rows.variant.isin(["vllm_graph", "NCCL"])]
    rows = rows[rows.dtype.isin(["bfloat16", "half"]) & (rows.message_bytes <= 2**28)]
    return rows.groupby(["num_gpus", "message_bytes"]).latency_ms.min().reset_index()
