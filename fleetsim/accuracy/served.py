"""Served points: a model under a fixed number of concurrent requests, simulated with the protocol of its benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fleetsim.calibration.tables import table
from fleetsim.experiment.check import open_workload
from fleetsim.fleet.fleet import Fleet
from fleetsim.kernel.clock import Clock
from fleetsim.kernel.streams import Streams
from fleetsim.scenario.load import load_mapping
from fleetsim.workload.request import FINISHED, Request

LLMS = {
    "meta-llama/Llama-3.1-70B": "llama-3.1-70b",
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "Qwen/Qwen3-32B": "qwen3-32b",
    "Qwen/Qwen3-235B-A22B-FP8": "qwen3-235b-a22b",
    "openai/gpt-oss-120b": "gpt-oss-120b",
    "moonshotai/Kimi-K2.5": "kimi-k2",
    "deepseek-ai/DeepSeek-R1": "deepseek-r1",
    "nvidia/DeepSeek-R1-NVFP4": "deepseek-r1",
    "nvidia/DeepSeek-V3.1-NVFP4": "deepseek-v3",
    "MiniMaxAI/MiniMax-M2.5": "minimax-m2.5",
    "Qwen/Qwen3.5-397B-A17B": "qwen3.5-397b-a17b",
    "zhipuai/GLM-5": "glm-5",
}
"""Models of the table, by their name in the catalogue; Kimi K2.5's language model is that of K2."""
SYSTEMS = {
    "h100_sxm": "h100-sxm",
    "h200_sxm": "h200-sxm",
    "b200_sxm": "b200-sxm",
    "b300_sxm": "b300-sxm",
    "gb200": "gb200",
    "gb300": "gb300",
}
BATCHED_TOKENS = {"vllm": 8192, "sglang": 16384, "trtllm": 8192}
"""Tokens per step by default, by engine, on chips of this size."""
PROMPTS_PER_USER = 10
"""Prompts of a run over its concurrency, in the same scripts."""
RANDOM_TOKENS_SPREAD = 1.0
"""How unevenly prompts of random tokens visit experts: at 1 the four open models are met best."""
CLIENT_S = 0.015
"""HTTP, tokeniser and streaming between a client and the engine: these points were timed by clients."""
LARGEST_RUN = 20_480
"""Requests simulated at most for one point: at high concurrency fewer rounds give the same means."""


@dataclass(frozen=True, slots=True)
class Served:
    """Mean latencies of a run [ms]."""

    ttft_ms: float
    tpot_ms: float


def open_rows() -> pd.DataFrame:
    """Rows of the open table that say what ran: aggregated serving, precision known, no doubt about the row."""
    rows = table("e2e_silicon")
    rows = rows[(rows.quality_flag == "ok") & (rows["mode"] == "agg")]
    return rows[rows.concurrency.notna() | rows.batch_size.notna()]


def scenario(
    row: Mapping[str, Any], step_time: Mapping[str, Any] | None = None, calibration: str | None = None
) -> dict[str, Any]:
    """A row's configuration and protocol as a scenario, with other options of the roofline or a calibration file."""
    inferencemax = by_inferencemax(row)
    launch = launched(row)
    concurrency = int(row["concurrency"] if pd.notna(row["concurrency"]) else row["batch_size"])
    tp, dp, ep = parallelism(row)
    precision = row["precision"] if pd.notna(row["precision"]) else "bf16"
    low = 0.8 if inferencemax else 1.0
    per_rank = -(-concurrency // dp)
    return {
        "schema": 1,
        "name": "served point",
        "seed": 1,
        "workload": {
            "kind": "synthetic",
            "requests": max(min(PROMPTS_PER_USER * concurrency, LARGEST_RUN), 3 * concurrency),
            "arrivals": {"process": "closed-loop", "concurrency": concurrency},
            "prompt_tokens": _lengths(int(row["isl_tokens"]), low),
            "output_tokens": _lengths(int(row["osl_tokens"]), low),
        },
        "pools": [
            {
                "name": "served",
                "llm": LLMS[row["model"]],
                "accelerator": SYSTEMS[row["system"]],
                "parallelism": {
                    "tp": tp,
                    "pp": max(int(row["pp"]), 1) if pd.notna(row["pp"]) else 1,
                    "dp": dp,
                    "ep": ep,
                },
                "engine": {
                    "kind": engine(row),
                    "calibration": calibration,
                    "weights": weights(row, row["model"], precision),
                    "prefix_cache": False,
                    "scheduler": {
                        "policy": "vllm-v1",
                        "max_batched_tokens": launch.batched_tokens,
                        "max_seqs": max(per_rank, 1),
                    },
                    "kv": {"dtype": launch.kv_dtype, "memory_ratio": launch.memory_ratio},
                    "step_time": {
                        "model": "roofline",
                        "expert_spread": RANDOM_TOKENS_SPREAD,
                        "fuse_all_reduce": launch.fuse_all_reduce,
                        "async_scheduling": launch.async_scheduling,
                        "prompt_scale": prompt_scale(row),
                        "marlin": "gpt-oss" in row["model"] and row["backend"] == "vllm",
                        **(step_time or {}),
                    },
                },
            }
        ],
    }


def parallelism(row: Mapping[str, Any]) -> tuple[int, int, int]:
    """Tensor, attention data-parallel and expert degrees of a row.

    A row may say tensor parallelism and attention data parallelism of the same accelerators: the launch scripts of vLLM
    know only the former. Expert degrees beyond the accelerators are the same twice.
    """
    tp = max(int(row["tp"]), 1)
    dp = int(row["attn_dp"]) if pd.notna(row["attn_dp"]) and row["attn_dp"] > 1 else 1
    if pd.isna(row["attn_dp"]) and pd.notna(row["concurrency"]) and row["batch_size"] > 0:
        dp = max(int(row["concurrency"] / row["batch_size"]), 1)  # the batch size is that of one rank
    node = int(row["num_gpus_inferred"]) if pd.notna(row["num_gpus_inferred"]) and row["num_gpus_inferred"] > 0 else tp
    if not row["parallel_consistent"] and pd.notna(row["moe_tp"]):
        node = tp = max(tp, int(row["moe_tp"]) * max(int(row["moe_ep"]), 1))  # the experts' degrees are right there
    if tp > node:  # moe_tp x moe_ep was written in place of the accelerators
        tp = node
    if tp > 1:
        dp = 1 if row["backend"] == "vllm" or dp * tp > node else dp
    dp = min(dp, max(node // tp, 1))
    ep = int(row["moe_ep"]) if pd.notna(row["moe_ep"]) and row["moe_ep"] > 1 else 1
    return tp, dp, min(ep, tp * dp)


OLD_ENGINE_ON_BLACKWELL = 1.25
"""Time of steps with prompts under vLLM 0.10 to 0.19 on Blackwell over that of the kernels measured under 0.24.

Fitted to the times to first token of prompts of 8,192 tokens of three open models, which agree (1.2 to 1.35).
"""


def prompt_scale(row: Mapping[str, Any]) -> float:
    """Factor on steps with prompts."""
    blackwell = row["system"] in ("b200_sxm", "b300_sxm", "gb200", "gb300")
    return OLD_ENGINE_ON_BLACKWELL if blackwell and row["backend"] == "vllm" else 1.0


BLOCK_SCALED = ("Qwen3-235B", "DeepSeek", "MiniMax", "GLM", "Qwen3.5")
"""Models whose published fp8 checkpoints have a scale per block."""


def weights(row: Mapping[str, Any], model: str, precision: str) -> str:
    """Precision of the weights as a scenario says it: that of the checkpoint where it is the model's own."""
    if model == "openai/gpt-oss-120b":
        return "auto"
    blocks = row["gemm_quant_mode"] == "fp8_block" or any(name in model for name in BLOCK_SCALED)
    return "fp8-block" if precision == "fp8" and blocks else precision


def engine(row: Mapping[str, Any]) -> str:
    """Engine of a row by its name in the catalogue."""
    old = row["backend"] == "trtllm" and str(row["backend_version"]).startswith("1.0.0rc")
    return "trtllm-1.0" if old else str(row["backend"])


def by_inferencemax(row: Mapping[str, Any]) -> bool:
    """Whether the row was measured by InferenceMAX: some of its points stand in NVIDIA's own table once more."""
    return row["source"] == "inferencemax" or any(name in row["model"] for name in ("Kimi", "Qwen3.5"))


@dataclass(frozen=True, slots=True)
class Launch:
    """What the launch script of a row says beside the parallelism."""

    batched_tokens: int
    kv_dtype: str = "auto"
    memory_ratio: float = 0.9
    fuse_all_reduce: bool = False
    async_scheduling: bool = False
    held_steps: int = 0
    """Steps that a prompt is held back on average: TensorRT-LLM's batch_wait_timeout_iters, half of SGLang's receive interval."""


def launched(row: Mapping[str, Any]) -> Launch:
    """Options of InferenceMAX's launch scripts; where the source is another, defaults.

    NVIDIA's own TensorRT-LLM points behave as if a step had room for hardly more than one prompt.

    SemiAnalysisAI/InferenceX, ``benchmarks/``: 70b_*, gptoss_*, kimik2.5_*, minimaxm2.5_*, qwen3.5_*, dsr1_*, glm5_*.
    """
    backend, model, precision = row["backend"], row["model"], row["precision"]
    default = BATCHED_TOKENS[backend]
    blackwell = row["system"] in ("b200_sxm", "b300_sxm", "gb200", "gb300")
    if not by_inferencemax(row):
        return Launch(int(row["isl_tokens"]) + 1500, fuse_all_reduce=True) if backend == "trtllm" else Launch(default)
    if backend == "trtllm":
        hopper_oss = "gpt-oss" in model and row["system"] in ("h100_sxm", "h200_sxm")
        tokens = 20_000 if "gpt-oss" in model else 16_384 if row["system"] == "b200_sxm" else 10_240
        short = row["isl_tokens"] == row["osl_tokens"] == 1024 and row["tp"] < 8
        held = 20 if "Llama" in model and short else 0
        ratio = 0.85 if "gpt-oss" in model else 0.9
        return Launch(tokens, "auto" if hopper_oss else "fp8", ratio, fuse_all_reduce=True, held_steps=held)
    if backend == "sglang":
        return _sglang(row)
    if "Llama" in model:
        # on Hopper later scripts ask for an 8-bit cache; the points of H100 have the capacity of one in 16 bits
        return Launch(8192, "fp8" if blackwell else "auto", fuse_all_reduce=blackwell, async_scheduling=True)
    if "gpt-oss" in model:
        return Launch(8192, "fp8" if blackwell else "auto", fuse_all_reduce=blackwell, async_scheduling=True)
    ahead = not str(row["backend_version"]).startswith(("0.11", "0.12", "0.13"))  # the default from vLLM 0.14 on
    if "Kimi" in model and precision == "fp4":
        return Launch(2 * int(row["isl_tokens"]), "fp8", fuse_all_reduce=True, async_scheduling=ahead)
    if "MiniMax" in model and precision == "fp8" and blackwell and not str(row["backend_version"]).startswith("0.17"):
        return Launch(2 * int(row["isl_tokens"]), "fp8", async_scheduling=ahead)
    if "MiniMax" in model and row["system"] == "h200_sxm":
        return Launch(16_384 if row["concurrency"] < 64 else 32_768, "fp8", 0.95, async_scheduling=ahead)
    fused = precision in ("fp4", "int4")
    return Launch(8192, "auto", 0.9 if precision == "fp4" else 0.95, fused, async_scheduling=ahead)


def _sglang(row: Mapping[str, Any]) -> Launch:
    """Options of SGLang's scripts; its scheduler looks for new prompts only every so many steps where they say so."""
    if "Qwen3.5" not in row["model"]:
        return Launch(32_768 if "DeepSeek" in row["model"] else 8192, "auto", 0.82)
    if row["system"] == "h200_sxm":
        return Launch(16_384, "fp8", 0.8, fuse_all_reduce=True)
    if row["system"] == "b300_sxm":
        return Launch(16_384, "auto" if row["precision"] == "bf16" else "fp8", 0.8, held_steps=5)
    wide = row["concurrency"] >= 16 or row["precision"] == "fp4"
    fused, cache = row["precision"] == "bf16", "auto" if row["precision"] == "bf16" else "fp8"
    return Launch(32_768, cache, 0.82, fused, held_steps=15 if wide else 5)


def _lengths(nominal: int, low: float) -> dict[str, Any]:
    if low == 1:
        return {"distribution": "fixed", "value": nominal}
    return {"distribution": "quantiles", "values": [max(low * nominal, 1), nominal]}


def simulate(mapping: Mapping[str, Any], base_dir: Path = Path()) -> list[Request]:
    """Requests of a run without tables, in the order of their end."""
    loaded = load_mapping(mapping, (), base_dir)
    clock, streams = Clock(), Streams(loaded.scenario.seed)
    ended: list[Request] = []
    workload = open_workload(loaded, streams)
    fleet = Fleet(loaded.scenario, loaded.base_dir, clock, streams, ended.append)
    fleet.feed(workload)
    clock.run(float("inf"))
    return ended


def serve(row: Mapping[str, Any], step_time: Mapping[str, Any] | None = None, calibration: str | None = None) -> Served:
    """Mean TTFT and TPOT of a simulated point, the initial burst included as in the measurement."""
    ended = [r for r in simulate(scenario(row, step_time, calibration)) if r.status == FINISHED]
    ttft = np.array([r.first_token_s - r.arrival_s + CLIENT_S for r in ended])
    tpot = np.array([(r.end_s - r.first_token_s) / (r.output_tokens - 1) for r in ended if r.output_tokens > 1])
    if not len(ttft):
        return Served(float("nan"), float("nan"))
    step_ms = float(tpot.mean() * 1e3) if len(tpot) else float("nan")
    held_ms = launched(row).held_steps * step_ms if len(tpot) else 0.0
    return Served(float(ttft.mean() * 1e3) + held_ms, step_ms)
