"""Power and energy of served models: what the roofline predicts against ML.ENERGY's measurements, and the fit to them.

``python -m fleetsim.accuracy.energy --fit`` fits the powers of H100 and B200 to the open rows, family by family left out
once, and writes them into ``models/accelerator``; ``--blind FILE`` writes predictions for the families that are not in
the open table; without options the errors are printed.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from fleetsim.calibration.tables import table
from fleetsim.catalog.accelerator import Accelerator, Power, load_accelerator
from fleetsim.catalog.data import locate
from fleetsim.catalog.link import load_link
from fleetsim.catalog.llm import load_llm
from fleetsim.engine.steptime.roofline import Roofline
from fleetsim.experiment.check import open_workload
from fleetsim.fleet.fleet import Fleet
from fleetsim.kernel.clock import Clock
from fleetsim.kernel.streams import Streams
from fleetsim.scenario.load import load_mapping
from fleetsim.scenario.schema import Engine, Parallelism
from fleetsim.workload.request import Request

Array = np.ndarray[Any, np.dtype[np.float64]]

LLMS = {
    "Qwen/Qwen3-8B": "qwen3-8b",
    "Qwen/Qwen3-14B": "qwen3-14b",
    "Qwen/Qwen3-235B-A22B-Instruct-2507": "qwen3-235b-a22b",
    "Qwen/Qwen3-235B-A22B-Instruct-2507-FP8": "qwen3-235b-a22b",
    "Qwen/Qwen3-235B-A22B-Thinking-2507": "qwen3-235b-a22b",
    "Qwen/Qwen3-235B-A22B-Thinking-2507-FP8": "qwen3-235b-a22b",
    "deepseek-ai/DeepSeek-R1-0528": "deepseek-r1",
    "deepseek-ai/DeepSeek-V3.1": "deepseek-v3",
    "google/gemma-3-12b-it": "gemma-3-12b",
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "meta-llama/Llama-3.1-70B-Instruct": "llama-3.1-70b",
    "meta-llama/Llama-3.3-70B-Instruct": "llama-3.3-70b",
    "meta-llama/Llama-3.1-405B-Instruct": "llama-3.1-405b",
    "meta-llama/Llama-3.1-405B-Instruct-FP8": "llama-3.1-405b",
    "meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8": "llama-4-maverick",
    "nvidia/NVIDIA-Nemotron-Nano-12B-v2": "nemotron-nano-12b-v2",
    "openai/gpt-oss-120b": "gpt-oss-120b",
}
"""Models of the open table, by their name in the catalogue."""
BLIND = {
    "Qwen/Qwen3-32B": "qwen3-32b",
    "Qwen/Qwen3-30B-A3B-Instruct-2507": "qwen3-30b-a3b",
    "google/gemma-3-27b-it": "gemma-3-27b",
    "openai/gpt-oss-20b": "gpt-oss-20b",
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": "llama-4-scout",
    "nvidia/NVIDIA-Nemotron-Nano-9B-v2": "nemotron-nano-9b-v2",
}
"""Models whose rows are kept apart."""
FAMILIES = ("Qwen3-8B|Qwen3-14B", "Qwen3-235B", "DeepSeek", "gemma", "3.1-8B", "70B", "405B", "Maverick", "Nemotron", "gpt-oss")
"""What is left out together in cross-validation: models that share an architecture or a size."""
GPUS = {"H100": "h100-sxm", "B200": "b200-sxm"}
PROMPT_TOKENS = {"lm-arena-chat": 300, "gpqa": 250}
"""Mean prompt by task, which the table does not say: conversations of a few turns, and questions of a few sentences.

Between 100 and 1,500 tokens, 200 to 400 fit the throughputs of the dense chat rows best. Other tasks are left out: code
infilling has prompts of thousands of tokens, and images and videos have towers of their own.
"""
BATCHED_TOKENS = 8192
"""Tokens per step in the benchmark's configuration (ml-energy/benchmark, configs/vllm), which also schedules ahead."""
TERMS = ("static", "active", "compute", "narrow", "memory")
"""Coefficients of `Power` that are fitted, in the order of the columns of `shares`."""


@dataclass(frozen=True, slots=True)
class Served:
    """A model on some accelerators at a number of sequences, as the benchmark ran it."""

    model_id: str
    llm: str
    task: str
    gpu: str
    gpus: int
    dp: int
    ep: int
    weights: str
    max_num_seqs: int
    output_tokens: float
    """Mean output [tokens]."""

    @property
    def accelerator(self) -> str:
        """Name in the catalogue."""
        return GPUS[self.gpu]

    @property
    def prompt_tokens(self) -> int:
        """Mean prompt [tokens]."""
        return PROMPT_TOKENS[self.task]

    @property
    def parallelism(self) -> Parallelism:
        """Tensor parallel over all accelerators of a data-parallel rank, whole experts over all."""
        return Parallelism(tp=self.gpus // self.dp, dp=self.dp, ep=self.ep)

    @property
    def family(self) -> str:
        """What it is left out with in cross-validation."""
        return next((name for name in FAMILIES if re.search(name, self.model_id)), self.model_id)

    @property
    def is_moe(self) -> bool:
        """Whether it has experts."""
        return load_llm(self.llm).is_moe

    @property
    def spread(self) -> Array:
        """Outputs at 21 equally spaced quantiles [tokens]: the shape of the published histogram, the mean of the run."""
        shape = _quantiles(self.task, self.model_id)
        return np.maximum(shape * self.output_tokens, 1.0)


@cache
def _quantiles(task: str, model_id: str) -> Array:
    """Quantiles of the outputs over their mean."""
    rows = table("mlenergy_output_length_hist")
    rows = rows[(rows.task == task) & (rows.model_id == model_id)]
    edges = np.append(rows.bin_lo_tokens.to_numpy(float), rows.bin_hi_tokens.to_numpy(float)[-1:])
    reached = np.append(0.0, np.cumsum(rows["count"].to_numpy(float)))
    levels = np.interp(np.linspace(0, 1, 21), reached / reached[-1], edges)
    return np.asarray(levels / ((levels[1:] + levels[:-1]) / 2).mean())


def open_rows() -> pd.DataFrame:
    """Open rows of models that the catalogue has, with prompts of known length; `left_out` tells of the others."""
    rows = table("mlenergy_llm")
    return rows[rows.model_id.isin(list(LLMS)) & rows.task.isin(list(PROMPT_TOKENS))].reset_index(drop=True)


def left_out() -> pd.DataFrame:
    """Rows per task and model that are not used."""
    rows = table("mlenergy_llm")
    rows = rows[~(rows.model_id.isin(list(LLMS)) & rows.task.isin(list(PROMPT_TOKENS)))]
    return rows.groupby(["task", "model_id"]).size().rename("rows").reset_index()


def served(row: Mapping[str, Any]) -> Served:
    """What a row of the table ran."""
    llm = LLMS[row["model_id"]]
    precision = {"bfloat16": "bf16", "fp8": "fp8", "mxfp4": "auto"}[row["weight_precision"]]
    if "Qwen3-235B" in row["model_id"] and precision == "fp8":
        precision = "fp8-block"
    if llm.startswith("deepseek"):
        precision = "auto"
    return Served(
        row["model_id"], llm, row["task"], row["gpu"], int(row["num_gpus"]), int(row["dp"]),
        int(row["ep"]) if load_llm(llm).is_moe else 1, precision, int(row["max_num_seqs"]), float(row["avg_output_tokens"]),
    )  # fmt: skip


# --- what runs how much of the time -------------------------------------------------------------------------------------


@cache
def _priced(llm: str, chip: str, degrees: tuple[int, int, int], weights: str, term: str) -> Roofline:
    """A roofline whose dynamic energy is one term's alone, at one watt."""
    accelerator = load_accelerator(chip)
    free = replace(accelerator.power, active_w=0.0, compute_w=0.0, narrow_w=0.0, memory_w=0.0)
    power: Power = replace(free, **{f"{term}_w": 1.0})
    tp, dp, ep = degrees
    return Roofline(
        Roofline.Config(async_scheduling=True),
        load_llm(llm),
        replace(accelerator, power=power),
        load_link(accelerator.link),
        Parallelism(tp=tp, dp=dp, ep=ep),
        Engine(kind="vllm", weights=weights),  # type: ignore[arg-type]
    )


def shares(point: Served, batch: float, tokens_per_s: float) -> Array:
    """What one watt of each of `TERMS` adds to the power of an accelerator at a given batch and throughput.

    Prompts are charged by what they add to a decode step of that batch.
    """
    degrees = (point.parallelism.tp, point.dp, point.ep)
    size = max(round(batch / point.dp), 1)
    spread = point.spread
    middle = (spread[1:] + spread[:-1]) / 2
    context = point.prompt_tokens + (middle**2).mean() / middle.mean() / 2  # long outputs are met more often
    ctx, prompt, total = round(size * context), point.prompt_tokens, size * point.dp
    steps_per_s, prompts_per_s = tokens_per_s / batch, tokens_per_s / point.output_tokens
    out = [1.0]
    for term in TERMS[1:]:
        model = _priced(point.llm, point.accelerator, degrees, point.weights, term)
        _, decode = model.mixed(size, size, 0, 0, 0, size, ctx, total)
        _, both = model.mixed(
            size + prompt, size + 1, prompt * (prompt + 1) // 2, prompt, 1, size, ctx, total + prompt * point.dp
        )
        watts = (point.dp * steps_per_s * decode + prompts_per_s * max(both - decode, 0.0)) / point.gpus
        out.append(min(watts, 1.0))  # more than all of the time or of the peak: the step times are too long
    return np.array(out)


def coefficients(power: Power) -> Array:
    """Coefficients of `TERMS` [W]."""
    return np.array([getattr(power, f"{term}_w") for term in TERMS])


def power_errors(rows: pd.DataFrame | None = None) -> pd.DataFrame:
    """Power per accelerator at the measured throughput, of every open row.

    Returns
    -------
    DataFrame
        ``measured_w``, ``predicted_w`` and what ran.
    """
    rows = open_rows() if rows is None else rows
    out = []
    for row in rows.to_dict("records"):
        point = served(row)
        power = load_accelerator(point.accelerator).power
        watts = shares(point, row["avg_batch"], row["output_tokens_per_s"]) @ coefficients(power)
        out.append({**_named(point), "measured_w": row["power_per_gpu_W"], "predicted_w": min(watts, power.limit_w)})
    return pd.DataFrame(out)


def _named(point: Served) -> dict[str, Any]:
    return {
        "model_id": point.model_id,
        "family": point.family,
        "moe": point.is_moe,
        "task": point.task,
        "gpu": point.gpu,
        "num_gpus": point.gpus,
        "max_num_seqs": point.max_num_seqs,
    }


# --- simulated ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Steady:
    """What a simulated run shows between its first and its last wave of requests."""

    batch: float
    tokens_per_s: float
    power_per_gpu_w: float
    energy_per_token_j: float


def scenario(point: Served, requests: int) -> dict[str, Any]:
    """The benchmark's protocol: as many users as sequences, each sending its next request at once."""
    parallel = point.parallelism
    return {
        "schema": 1,
        "name": "steady state",
        "seed": 1,
        "workload": {
            "kind": "synthetic",
            "requests": requests,
            "arrivals": {"process": "closed-loop", "concurrency": point.max_num_seqs},
            "prompt_tokens": {"distribution": "lognormal", "mean": point.prompt_tokens, "cv": 1.0, "max": 4096},
            "output_tokens": {"distribution": "quantiles", "values": [round(v, 1) for v in point.spread]},
        },
        "pools": [
            {
                "name": "served",
                "llm": point.llm,
                "accelerator": point.accelerator,
                "parallelism": {"tp": parallel.tp, "dp": parallel.dp, "ep": parallel.ep},
                "engine": {
                    "kind": "vllm",
                    "weights": point.weights,
                    "prefix_cache": False,
                    "kv": {"dtype": "bf16"},
                    "scheduler": {
                        "policy": "vllm-v1",
                        "max_batched_tokens": BATCHED_TOKENS,
                        "max_seqs": -(-point.max_num_seqs // point.dp),
                    },
                    "step_time": {"model": "roofline", "async_scheduling": True},
                },
            }
        ],
    }


def steady(point: Served) -> Steady:
    """Simulate a point and read its meters once all users have ended a request, and before the last wave."""
    users = point.max_num_seqs
    requests = max(3 * users, 160)
    loaded = load_mapping(scenario(point, requests), (), Path())
    clock, streams = Clock(), Streams(loaded.scenario.seed)
    seen: list[tuple[float, Any]] = []
    ended = 0

    def count(_: Request) -> None:
        nonlocal ended
        ended += 1
        if ended in (users, requests - users):
            seen.append((clock.now_s, fleet.replicas[0].meter(clock.now_s)))

    fleet = Fleet(loaded.scenario, loaded.base_dir, clock, streams, count)
    fleet.feed(open_workload(loaded, streams))
    clock.run(float("inf"))
    (start_s, before), (end_s, after) = seen
    time_s, tokens = end_s - start_s, after.output_tokens - before.output_tokens
    energy_j = after.energy_j - before.energy_j
    energy_j += fleet.replicas[0].model.idle_w * (time_s - (after.busy_s - before.busy_s))
    steps = max(after.steps - before.steps, 1)
    return Steady(tokens / steps, tokens / time_s, energy_j / time_s / point.gpus, energy_j / tokens)


def energy_errors(rows: pd.DataFrame | None = None) -> pd.DataFrame:
    """Energy per output token with the throughput that the simulation gives, of every open row."""
    rows = open_rows() if rows is None else rows
    out = []
    for row in rows.to_dict("records"):
        point = served(row)
        found = steady(point)
        out.append({
            **_named(point),
            "measured_j": row["energy_per_token_J"], "predicted_j": found.energy_per_token_j,
            "measured_tokens_per_s": row["output_tokens_per_s"], "predicted_tokens_per_s": found.tokens_per_s,
            "measured_w": row["power_per_gpu_W"], "predicted_w": found.power_per_gpu_w,
            "measured_batch": row["avg_batch"], "predicted_batch": found.batch,
        })  # fmt: skip
    return pd.DataFrame(out)
