"""Predictions for runs whose results are kept apart, written for others to score."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from fleetsim.accuracy import energy, runs, served
from fleetsim.calibration.tables import table
from fleetsim.catalog.accelerator import load_accelerator
from fleetsim.catalog.link import load_link
from fleetsim.catalog.llm import load_llm
from fleetsim.engine.steptime.roofline import Roofline, RooflineConfig
from fleetsim.experiment.replicate import Notice
from fleetsim.scenario.schema import Engine, KvCache, Parallelism


def write(folder: Path, notice: Notice = lambda _: None) -> list[Path]:
    """Write every prediction as Parquet; returns the files.

    Parameters
    ----------
    folder : Path
        Where ``e2e_silicon.parquet``, ``vllm_requests.parquet`` and ``energy.parquet`` go; made if it is not there.
    notice : callable
        Told what is being predicted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts: Mapping[str, Callable[[], pd.DataFrame]] = {
        "e2e_silicon": served_points,
        "vllm_requests": requests,
        "energy": energy.blind,
    }
    files = []
    for name, predict in parts.items():
        notice(name)
        path = folder / f"{name}.parquet"
        predict().to_parquet(path, index=False)
        files.append(path)
    return files


def requests() -> pd.DataFrame:
    """Latencies of every request of the runs that are not in the open table: run, request, ttft_ms, tpot_ms, e2e_ms."""
    names = table("vllm_heldout_workloads_inputs_only").run.unique()
    with TemporaryDirectory() as folder:
        parts = [runs.replayed(name, Path(folder)).assign(run=name).reset_index() for name in names]
    return pd.concat(parts)[["run", "request", "ttft_ms", "tpot_ms", "e2e_ms"]]


def served_points() -> pd.DataFrame:
    """All columns of the inputs, and ttft_ms and tpot_ms [ms]."""
    rows = table("e2e_silicon_heldout_inputs_only")
    found = [predict(row) for row in rows.to_dict("records")]
    return rows.assign(ttft_ms=[f.ttft_ms for f in found], tpot_ms=[f.tpot_ms for f in found])


def predict(row: Mapping[str, Any]) -> served.Served:
    """One point: simulated, or in closed form where prompts and answers are computed by different workers."""
    if row["mode"] == "disagg":
        return disaggregated(row)
    return served.serve(row)


TRANSFER_S = 0.02
"""Handing a request's cache from a prefill to a decode worker, and the router between them."""


def disaggregated(row: Mapping[str, Any]) -> served.Served:
    """Separate workers in closed form, since the fleet does not separate them yet.

    Decode steps have the concurrency of their worker and no prompts. Prompts queue at the prefill workers as in M/D/c while
    these keep up; where they do not, the time to first token is what is left of a closed loop's cycle.
    """
    low = 0.9 if row["source"] == "inferencemax" else 1.0
    prompt, output = int(row["isl_tokens"] * low), int(row["osl_tokens"] * low)
    users = int(row["concurrency"] if pd.notna(row["concurrency"]) else row["decode_batch_size"])
    decode = _worker(row, "decode")
    prefill = _worker(row, "prefill")
    ranks = decode.parallelism.dp
    workers = _count(row, "decode_num_workers")
    batch = max(round(users / (workers * ranks)), 1)
    context = batch * (prompt + output // 2)
    step_s, _ = decode.mixed(batch, batch, 0, 0, 0, batch, context, batch * ranks)
    group = prefill.parallelism.dp
    alone_s, _ = prefill.mixed(prompt, 1, prompt * (prompt + 1) // 2, prompt, 1, 0, 0, prompt * group)
    capacity_per_s = _count(row, "prefill_num_workers") * group / alone_s
    answer_s = output * step_s
    rate_per_s = users / (answer_s + alone_s + TRANSFER_S)
    if rate_per_s < 0.95 * capacity_per_s:
        load = rate_per_s / capacity_per_s
        ttft_s = alone_s * (1 + load / (2 * (1 - load)) / _count(row, "prefill_num_workers")) + TRANSFER_S
    else:
        ttft_s = max(users / (0.95 * capacity_per_s) - answer_s, alone_s)
    return served.Served((ttft_s + prefill.frontend_s + served.CLIENT_S) * 1e3, step_s * 1e3)


def _count(row: Mapping[str, Any], key: str) -> int:
    return max(int(row[key]), 1) if pd.notna(row[key]) else 1


def _worker(row: Mapping[str, Any], role: str) -> Roofline:
    tp = _count(row, f"{role}_tp_size")
    dp = _count(row, f"{role}_attention_dp_size")
    experts = _count(row, f"{role}_moe_ep_size")
    parallelism = Parallelism(tp=tp, dp=dp, ep=min(experts, tp * dp))
    chip = load_accelerator(served.SYSTEMS[row["system"]])
    engine = Engine(
        kind=served.engine(row),
        weights=served.weights(row, row["model"], row["precision"]),
        kv=KvCache(dtype="fp8"),
    )
    options = RooflineConfig(expert_spread=served.RANDOM_TOKENS_SPREAD, fuse_all_reduce=True)
    llm = load_llm(served.LLMS[row["model"]])
    return Roofline(options, llm, chip, load_link(chip.link), parallelism, engine)
