"""Power and energy of served models: what the roofline predicts against ML.ENERGY's measurements, and the fit to them.

``python -m fleetsim.accuracy.energy --fit`` fits the powers of H100 and B200 to the open rows, family by family left out
once, and writes them into ``models/accelerator``; ``--blind`` writes predictions for the families that are not in
the open table; without options the errors are printed.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from fleetsim.calibration.tables import table
from fleetsim.catalog.accelerator import Power, load_accelerator
from fleetsim.catalog.data import locate
from fleetsim.catalog.link import load_link
from fleetsim.catalog.llm import load_llm
from fleetsim.catalog.memory import memory_plan
from fleetsim.engine.steptime.roofline import Roofline
from fleetsim.experiment.check import open_workload
from fleetsim.fleet.fleet import Fleet
from fleetsim.kernel.clock import SAMPLE, Clock
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
FAMILIES = (
    "Qwen3-8B|Qwen3-14B", "Qwen3-235B", "DeepSeek", "gemma", "3.1-8B", "70B", "405B", "Maverick", "Nemotron", "gpt-oss",
    "Mistral-7B", "Mistral-Large", "8x7B", "8x22B",
)  # fmt: skip
"""What is left out together in cross-validation: models that share an architecture or a size."""
OLDER = {
    "meta-llama/Meta-Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "mistralai/Mistral-7B-Instruct-v0.3": "mistral-7b-v0.3",
    "mistralai/Mistral-Large-Instruct-2407": "mistral-large-123b",
    "mistralai/Mixtral-8x7B-Instruct-v0.1": "mixtral-8x7b",
    "mistralai/Mixtral-8x22B-Instruct-v0.1": "mixtral-8x22b",
}
"""Models of the table of 2024 that the catalogue has; its A100 rows give the powers of that chip."""
GPUS = {"H100": "h100-sxm", "B200": "b200-sxm", "A100": "a100-40"}
PROMPT_TOKENS = {"lm-arena-chat": 200, "gpqa": 250}
"""Mean prompt by task, which the table does not say: conversations of a few turns, and questions of a few sentences.

Between 100 and 1,500 tokens, 200 to 400 fit the throughputs of the dense chat rows best. Other tasks are left out: code
infilling has prompts of thousands of tokens, and images and videos have towers of their own.
"""
LONGEST_PROMPT = 4096
"""Longer prompts are cut to this [tokens]."""
BATCHED_TOKENS = 8192
"""Tokens per step in the benchmark's configuration (ml-energy/benchmark, configs/vllm), which also schedules ahead."""
HOST_S = 0.9e-3
"""Time per step in which the accelerators wait: fitted with the two below to the throughput of the open rows."""
HOST_SEQUENCE_S = 40e-6
"""Added per sequence and step: the benchmark streams every token of every request to one client."""
EXPERT_LAYER_S = 85e-6
"""Added per layer of experts where they are spread over accelerators."""
TERMS = ("static", "occupancy", "active", "compute", "memory")
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
    if model_id in OLDER:
        model_id = "meta-llama/Llama-3.1-8B-Instruct"  # the table of 2024 has no histograms
    rows = rows[(rows.task == task) & (rows.model_id == model_id)]
    edges = np.append(rows.bin_lo_tokens.to_numpy(float), rows.bin_hi_tokens.to_numpy(float)[-1:])
    reached = np.append(0.0, np.cumsum(rows["count"].to_numpy(float)))
    levels = np.interp(np.linspace(0, 1, 21), reached / reached[-1], edges)
    return np.asarray(levels / ((levels[1:] + levels[:-1]) / 2).mean())


def open_rows() -> pd.DataFrame:
    """Open rows of models that the catalogue has, with prompts of known length; `left_out` tells of the others."""
    rows = table("mlenergy_llm")
    return rows[rows.model_id.isin(list(LLMS)) & rows.task.isin(list(PROMPT_TOKENS))].reset_index(drop=True)


def older_rows() -> pd.DataFrame:
    """Chat rows of the table of 2024 on A100 with 40 GB, one pipeline stage, in the columns of the newer one."""
    rows = table("mlenergy_v2_llm")
    rows = rows[
        rows.model_id.isin(list(OLDER)) & (rows.task == "chat") & rows.gpu.str.contains("A100") & (rows.pp == 1)
    ]
    return rows.assign(
        gpu="A100", task="lm-arena-chat", num_gpus=rows.tp, dp=1, ep=1, weight_precision="bfloat16",
        power_per_gpu_W=rows.avg_power_per_gpu_W_derived, energy_per_token_J=rows.energy_per_token_J,
    ).reset_index(drop=True)  # fmt: skip


def left_out() -> pd.DataFrame:
    """Rows per task and model that are not used."""
    rows = table("mlenergy_llm")
    rows = rows[~(rows.model_id.isin(list(LLMS)) & rows.task.isin(list(PROMPT_TOKENS)))]
    return rows.groupby(["task", "model_id"]).size().rename("rows").reset_index()


def served(row: Mapping[str, Any]) -> Served:
    """What a row of the table ran."""
    llm = {**LLMS, **OLDER}[row["model_id"]]
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
def _priced(
    llm: str, chip: str, degrees: tuple[int, int, int], weights: str, host: tuple[tuple[str, str], ...], term: str
) -> Roofline:
    """A roofline whose dynamic energy is one term's alone, at one watt."""
    accelerator = load_accelerator(chip)
    free = replace(accelerator.power, occupancy_w=0.0, active_w=0.0, compute_w=0.0, memory_w=0.0)
    one: Any = {f"{term}_w": 1.0}
    power: Power = replace(free, **one)
    tp, dp, ep = degrees
    return Roofline(
        Roofline.Config(**dict(host)),
        load_llm(llm),
        replace(accelerator, power=power),
        load_link(accelerator.link),
        Parallelism(tp=tp, dp=dp, ep=ep),
        Engine.model_validate({"kind": "vllm", "weights": weights}),
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
    tokens = size * (1 + prompt / point.output_tokens)
    out = [1.0, tokens / (tokens + load_accelerator(point.accelerator).power.half_occupied_tokens)]
    for term in TERMS[2:]:
        model = _priced(point.llm, point.accelerator, degrees, point.weights, tuple(host(point).items()), term)
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


def host(point: Served) -> dict[str, str]:
    """What the benchmark's host adds to every step, as options of the roofline."""
    host_s = HOST_S + (load_llm(point.llm).moe_layers * EXPERT_LAYER_S if point.ep > 1 else 0.0)
    return {
        "host": f"{host_s:.9f} s",
        "host_per_sequence": f"{HOST_SEQUENCE_S:.9f} s",
    }


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
            "prompt_tokens": {
                "distribution": "lognormal",
                "mean": point.prompt_tokens,
                "cv": 1.0,
                "max": LONGEST_PROMPT,
            },
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
                    "step_time": {"model": "roofline", **host(point)},
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
            clock.at(clock.now_s, read, SAMPLE)  # when the step that ended it is in the books

    def read() -> None:
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


# --- fit ----------------------------------------------------------------------------------------------------------------

IN_USE, LOGISTIC = "compute, memory, kernels, occupancy", "logistic in the batch"
Form = Callable[[Array, Array], Array]
"""Power [W] of constants and of a matrix with the columns of `observations`."""


def _in_use(x: Array, rows: Array) -> Array:
    return np.asarray(rows[:, : len(TERMS)] @ x)


def _without_occupancy(x: Array, rows: Array) -> Array:
    return np.asarray(rows[:, [0, 2, 3, 4]] @ x)


def _plain(x: Array, rows: Array) -> Array:
    return np.asarray(rows[:, [0, 3, 4]] @ x)


def _roots(x: Array, rows: Array) -> Array:
    return np.asarray(x[0] + x[1] * np.sqrt(rows[:, 4]) + x[2] * np.sqrt(rows[:, 3]))


def _logistic(x: Array, rows: Array) -> Array:
    return np.asarray(x[0] + x[1] / (1 + np.exp(-x[2] * (rows[:, 5] - x[3]))))


def _constant(x: Array, rows: Array) -> Array:
    return np.full(len(rows), x[0])


FORMS: Mapping[str, tuple[Form, tuple[float, ...]]] = {
    IN_USE: (_in_use, (200.0, 150.0, 200.0, 800.0, 300.0)),
    "compute, memory, kernels": (_without_occupancy, (200.0, 100.0, 800.0, 400.0)),
    "compute, memory": (_plain, (200.0, 800.0, 400.0)),
    "square roots of compute and memory": (_roots, (150.0, 400.0, 600.0)),
    LOGISTIC: (_logistic, (400.0, 300.0, 0.8, 6.0)),
    "mean power": (_constant, (500.0,)),
}
"""Forms compared, with where their fits start; the first is the one in use."""


def observations(gpu: str) -> tuple[pd.DataFrame, Array]:
    """Open rows of a kind of accelerator, with `shares` and log2(batch)."""
    rows = older_rows() if gpu == "A100" else open_rows()
    rows = rows[rows.gpu == gpu].reset_index(drop=True)
    points = [served(row) for row in rows.to_dict("records")]
    rows["family"], rows["moe"] = [p.family for p in points], [p.is_moe for p in points]
    columns = [
        [*shares(point, batch, rate), np.log2(batch)]
        for point, batch, rate in zip(points, rows.avg_batch, rows.output_tokens_per_s, strict=True)
    ]
    return rows, np.array(columns)


def fit(form: Form, start: Iterable[float], columns: Array, power_w: Array, limit_w: float, floor_w: float) -> Array:
    """Constants, not below 0 and static power not below `floor_w`, that minimise the absolute relative error."""
    x0 = np.array(list(start))
    low = np.zeros(len(x0))
    low[0] = floor_w
    scale = np.maximum(x0, 0.1)

    def residual(x: Array) -> Array:
        watts = form(x, columns)
        capped = np.minimum(watts, limit_w) + 0.01 * np.maximum(watts - limit_w, 0.0)  # a way back from above the limit
        return np.asarray(capped / power_w - 1)

    found = least_squares(
        residual, np.maximum(x0, low + 1e-3), bounds=(low, np.inf), x_scale=scale, loss="soft_l1", f_scale=0.05
    )
    return np.asarray(found.x)


def compare(gpu: str) -> pd.DataFrame:
    """Error of every form on families that its fit did not see: one row per open row and form."""
    rows, columns = observations(gpu)
    power = load_accelerator(GPUS[gpu]).power
    measured = rows.power_per_gpu_W.to_numpy(float)
    out = []
    for name, (form, start) in FORMS.items():
        whole = fit(form, start, columns, measured, power.limit_w, power.idle_w)
        seen = np.minimum(form(whole, columns), power.limit_w)
        unseen = np.zeros(len(rows))
        for family in rows.family.unique():
            other = (rows.family != family).to_numpy()
            x = fit(form, start, columns[other], measured[other], power.limit_w, power.idle_w)
            unseen[~other] = np.minimum(form(x, columns[~other]), power.limit_w)
        part = rows[["family", "moe", "task", "model_id", "max_num_seqs", "num_gpus"]].assign(form=name)
        out.append(part.assign(measured_w=measured, seen_w=seen, unseen_w=unseen))
    return pd.concat(out, ignore_index=True)


def mape(rows: pd.DataFrame, predicted: str) -> float:
    """Mean absolute relative error of a column of watts."""
    return float((rows[predicted] / rows.measured_w - 1).abs().mean())


# --- into the catalogue -------------------------------------------------------------------------------------------------

FITTED = {"H100": "mlenergy-v3", "B200": "mlenergy-v3", "A100": "mlenergy-v2"}
"""Kinds of accelerator with measurements, and their source."""
BLACKWELL = ("b200-sxm", "b300-sxm", "gb200", "gb300", "rtx-pro-6000")
AMPERE = ("a100-40", "a100-80", "a100-40-pcie", "a100-80-pcie", "a10g", "a30", "a40", "a6000", "rtx-3090")
"""Chips that take the shares of the board limit of B200 and of A100; all others take those of H100."""


def refit() -> None:
    """Fit the kinds of accelerator that were measured, and write them and the shares of others into the catalogue."""
    shares_of_limit: dict[str, dict[str, float]] = {}
    for gpu, source in FITTED.items():
        errors = compare(gpu)
        rows, columns = observations(gpu)
        chip = load_accelerator(GPUS[gpu])
        measured = rows.power_per_gpu_W.to_numpy(float)
        floor = 1.05 * chip.power.idle_w
        found = {}
        for name in (IN_USE, LOGISTIC):
            form, start = FORMS[name]
            found[name] = fit(form, start, columns, measured, chip.power.limit_w, floor)
        part = errors[errors.form == IN_USE]
        seen, unseen = (100 * mape(part, c) for c in ("seen_w", "unseen_w"))
        dense = 100 * mape(part[~part.moe], "seen_w")
        note = (
            f"fit of served power, {len(part)} rows: MAPE {seen:.1f} % (dense {dense:.1f} %), "
            f"{unseen:.1f} % on models left out"
        )
        constants = dict(zip(TERMS, found[IN_USE], strict=True))
        shares_of_limit[gpu] = {term: watts / chip.power.limit_w for term, watts in constants.items()}
        _write_power(chip.name, constants, source, note, found[LOGISTIC])
        print(gpu, {k: round(v) for k, v in constants.items()}, note)
    for path in sorted(locate("accelerator", "h100-sxm").parent.glob("*.yaml")):
        if path.stem in [GPUS[gpu] for gpu in FITTED]:
            continue
        like = "B200" if path.stem in BLACKWELL else "A100" if path.stem in AMPERE else "H100"
        power = load_accelerator(path.stem).power
        constants = {term: share * power.limit_w for term, share in shares_of_limit[like].items()}
        constants["static"] = max(constants["static"], 1.05 * power.idle_w)
        _write_power(path.stem, constants, "assumed", f"share of the board limit as fitted on the {like}", None)
    load_accelerator.cache_clear()
    _priced.cache_clear()


def _write_power(name: str, constants: Mapping[str, float], source: str, note: str, logistic: Array | None) -> None:
    """Replace all of a chip's power block but its limit and idle power."""
    path = locate("accelerator", name)
    before, block, after = re.split(r"(?m)(^power:\n(?:  .*\n)+)", path.read_text(encoding="utf-8"))
    kept = [line for line in block.splitlines() if line.startswith(("power:", "  limit:", "  idle:"))]
    explained = {term: note if term == "static" or source == "assumed" else "" for term in TERMS}
    for term in TERMS:
        tail = f', note: "{explained[term]}"' if explained[term] else ""
        kept.append(f"  {term}: {{value: {max(constants[term], 0.0):.0f}, unit: W, source: {source}{tail}}}")
    if logistic is not None:
        kept.append("  logistic:")
        for key, value, unit in zip(
            ("low", "rise", "slope", "middle"), logistic, ("W", "W", "ratio", "ratio"), strict=True
        ):
            kept.append(f"    {key}: {{value: {value:.4g}, unit: {unit}, source: {source}}}")
    path.write_text(before + "\n".join(kept) + "\n" + after, encoding="utf-8")


# --- blind --------------------------------------------------------------------------------------------------------------

BLIND_FILE = Path(__file__).resolve().parents[2] / "docs" / "blind" / "energy.parquet"
"""Predictions made before anybody compared them."""
BLIND_SEQS = (8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


def blind() -> pd.DataFrame:
    """Predictions for the models that are kept apart, by the tasks whose lengths of outputs are known of them.

    On every power of two of accelerators, up to 8, that holds the weights and eight requests of mean length, or the longest.
    """
    lengths = table("mlenergy_output_length_hist")
    out = []
    for (model_id, llm), gpu, task in product(BLIND.items(), ("H100", "B200"), PROMPT_TOKENS):
        rows = lengths[(lengths.model_id == model_id) & (lengths.task == task)]
        if rows.empty:
            continue
        output = float(np.average((rows.bin_lo_tokens + rows.bin_hi_tokens) / 2, weights=rows["count"]))
        weights = "auto" if "gpt-oss" in llm else "bf16"
        for seqs, gpus in product(BLIND_SEQS, (1, 2, 4, 8)):
            ep = gpus if load_llm(llm).is_moe and "gpt-oss" not in llm else 1  # as in the open rows
            point = Served(model_id, llm, task, gpu, gpus, 1, ep, weights, seqs, output)
            if not _fits(point):
                continue
            found = steady(point)
            out.append({
                "model_id": model_id, "task": task, "gpu": gpu, "num_gpus": gpus, "max_num_seqs": seqs,
                "avg_batch": found.batch, "output_tokens_per_s": found.tokens_per_s,
                "power_per_gpu_w": found.power_per_gpu_w, "energy_per_token_j": found.energy_per_token_j,
            })  # fmt: skip
    return pd.DataFrame(out)


def _fits(point: Served) -> bool:
    llm, chip = load_llm(point.llm), load_accelerator(point.accelerator)
    if llm.kv_heads % point.gpus and point.gpus % llm.kv_heads:
        return False
    engine = Engine.model_validate(scenario(point, 1)["pools"][0]["engine"])  # states of all sequences take room
    needed = max(8 * (point.prompt_tokens + point.output_tokens), LONGEST_PROMPT + point.spread[-1])
    return bool(memory_plan(llm, chip, point.parallelism, engine).capacity_tokens >= needed)


# --- command line -------------------------------------------------------------------------------------------------------


def report() -> None:
    """Print the errors of every form, and those of the catalogue's constants with simulated throughput."""
    for gpu in FITTED:
        found = compare(gpu)
        for column in ("seen_w", "unseen_w"):
            found[column] = 100 * (found[column] / found.measured_w - 1).abs()
        print(
            f"\n{gpu}: MAPE of power [%]\n",
            found.groupby(["form", "moe"])[["seen_w", "unseen_w"]].mean().round(1).unstack(),
        )
        print(found.pivot_table(index="family", columns="form", values="unseen_w").round(1).to_string())
    errors = energy_errors()
    for key in ("w", "j", "tokens_per_s"):
        errors[key] = 100 * (errors[f"predicted_{key}"] / errors[f"measured_{key}"] - 1).abs()
    keys = ["w", "j", "tokens_per_s"]
    print(
        "\nsimulated: MAPE [%] of power, energy per token, throughput\n",
        errors.groupby(["gpu", "moe"])[keys].mean().round(1),
    )
    print(errors.groupby(["gpu", "family", "task"])[keys].mean().round(1).to_string())
    print("dense, all:", errors[~errors.moe][keys].mean().round(1).to_dict(), errors[keys].mean().round(1).to_dict())
    print(f"\nnot used: {left_out().rows.sum()} of {len(table('mlenergy_llm'))} rows\n", left_out().to_string())


def main() -> None:
    """Fit, predict or report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fit", action="store_true", help="fit the powers and write them into models/accelerator")
    parser.add_argument("--blind", action="store_true", help=f"write {BLIND_FILE.name}: models that are kept apart")
    chosen = parser.parse_args()
    if chosen.fit:
        refit()
    if chosen.blind:
        blind().to_parquet(BLIND_FILE, index=False)
    if not (chosen.fit or chosen.blind):
        report()


if __name__ == "__main__":
    main()
