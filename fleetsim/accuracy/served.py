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
BATCHED_TOKENS = {"vllm": 8192, "sglang": 16384, "trtllm": 16384}
"""Tokens per step of InferenceMAX's launch scripts, by engine."""
PROMPTS_PER_USER = 10
"""Prompts of a run over its concurrency, in the same scripts."""
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


def scenario(row: Mapping[str, Any], step_time: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A row's configuration and protocol as a scenario."""
    inferencemax = row["source"] == "inferencemax"
    concurrency = int(row["concurrency"] if pd.notna(row["concurrency"]) else row["batch_size"])
    tp, dp, ep = parallelism(row)
    precision = row["precision"] if pd.notna(row["precision"]) else "bf16"
    eight_bit_cache = (inferencemax or precision == "fp4") and _compresses_cache(row)
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
                "parallelism": {"tp": tp, "pp": max(int(row["pp"]), 1) if pd.notna(row["pp"]) else 1, "dp": dp, "ep": ep},
                "engine": {
                    "kind": row["backend"],
                    "weights": weights(row["model"], precision),
                    "prefix_cache": False,
                    "scheduler": {
                        "policy": "vllm-v1",
                        "max_batched_tokens": BATCHED_TOKENS[row["backend"]],
                        "max_seqs": max(per_rank, 1),
                    },
                    "kv": {"dtype": "fp8" if eight_bit_cache else "auto"},
                    "step_time": {"model": "roofline", **(step_time or {})},
                },
            }
        ],
    }


def parallelism(row: Mapping[str, Any]) -> tuple[int, int, int]:
    """Tensor, attention data-parallel and expert degrees of a row.

    The table's tp counts the accelerators of an instance; attention data parallelism divides them.
    """
    gpus = max(int(row["tp"]), 1)
    if pd.notna(row.get("num_gpus_inferred")) and row["num_gpus_inferred"] > 0:
        gpus = int(row["num_gpus_inferred"])
    dp = int(row["attn_dp"]) if pd.notna(row["attn_dp"]) and row["attn_dp"] > 1 else 1
    ep = int(row["moe_ep"]) if pd.notna(row["moe_ep"]) and row["moe_ep"] > 1 else 1
    dp = min(dp, gpus)
    return max(gpus // dp, 1), dp, min(ep, gpus)


def weights(model: str, precision: str) -> str:
    """Precision of the weights as a scenario says it: that of the checkpoint where it is the model's own."""
    own = {"openai/gpt-oss-120b", "Qwen/Qwen3-235B-A22B-FP8"}
    if model in own or (precision == "fp8" and model.startswith(("deepseek", "MiniMax", "zhipuai"))):
        return "auto"
    return precision


def _compresses_cache(row: Mapping[str, Any]) -> bool:
    """Whether the launch script asks for an 8-bit cache: all TensorRT-LLM ones, vLLM's for Llama and on Blackwell."""
    if row["backend"] == "trtllm":
        return True
    blackwell = row["system"] in ("b200_sxm", "b300_sxm", "gb200", "gb300")
    return row["backend"] == "vllm" and ("Llama" in row["model"] or ("gpt-oss" in row["model"] and blackwell))


def _lengths(nominal: int, low: float) -> dict[str, Any]:
    if low == 1.0:
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


def serve(row: Mapping[str, Any], step_time: Mapping[str, Any] | None = None) -> Served:
    """Mean TTFT and TPOT of a simulated point, the initial burst included as in the measurement."""
    ended = [r for r in simulate(scenario(row, step_time)) if r.status == FINISHED]
    ttft = np.array([r.first_token_s - r.arrival_s for r in ended])
    tpot = np.array([(r.end_s - r.first_token_s) / (r.output_tokens - 1) for r in ended if r.output_tokens > 1])
    return Served(float(ttft.mean() * 1e3), float(tpot.mean() * 1e3) if len(tpot) else float("nan"))
