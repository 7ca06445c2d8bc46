"""Whole vLLM runs with every request's times: arrivals replayed, latencies compared request by request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fleetsim.accuracy.served import simulate
from fleetsim.calibration.tables import table

CHIPS = {"RTXPRO6000": "rtx-pro-6000", "RTX4090": "rtx-4090"}
LLMS = {
    "meta-llama/Llama-3.1-8B": "llama-3.1-8b",
    "Qwen/Qwen3-32B": "qwen3-32b",
    "Qwen/Qwen3-30B-A3B-Instruct-2507": "qwen3-30b-a3b",
}
BLOCK_TOKENS = 16


def configurations() -> pd.DataFrame:
    """Engine configuration of every run, open or not."""
    return table("vllm_run_config").set_index("run")


def measured(run: str) -> pd.DataFrame:
    """Measured requests of an open run."""
    rows = table("vllm_requests")
    return rows[rows.run == run].set_index("request").sort_index()


def inputs(run: str) -> pd.DataFrame:
    """Arrivals and lengths of a run."""
    for name in ("vllm_requests", "vllm_heldout_workloads_inputs_only"):
        rows = table(name)
        found = rows[rows.run == run]
        if len(found):
            return found.set_index("request").sort_index()
    raise KeyError(run)


def replayed(run: str, folder: Path) -> pd.DataFrame:
    """Simulated latencies of a run's requests, by request: ttft_ms, tpot_ms, e2e_ms, end_s.

    Parameters
    ----------
    run : str
        Name in the table of configurations.
    folder : Path
        Where the trace may be written.
    """
    rows = inputs(run)
    trace = folder / f"{run}.parquet"
    _write_trace(rows, trace)
    ended = simulate(_scenario(run, trace))
    order = {index: request for index, request in enumerate(rows.sort_values("arrival_measured_s").index)}
    return (
        pd.DataFrame(
            {
                "request": [order[r.id] for r in ended],
                "ttft_ms": [(r.first_token_s - r.arrival_s) * 1e3 for r in ended],
                "tpot_ms": [
                    (r.end_s - r.first_token_s) / (r.output_tokens - 1) * 1e3 if r.output_tokens > 1 else np.nan
                    for r in ended
                ],
                "e2e_ms": [(r.end_s - r.arrival_s) * 1e3 for r in ended],
                "end_s": [r.end_s for r in ended],
            }
        )
        .set_index("request")
        .sort_index()
    )


def _write_trace(rows: pd.DataFrame, path: Path) -> None:
    """A trace whose shared prefixes are starts of one text: only their lengths are known."""
    rows = rows.sort_values("arrival_measured_s")
    shared = rows.shared_prefix_tokens // BLOCK_TOKENS
    blocks = rows.prompt_tokens // BLOCK_TOKENS
    starts = shared.max() + np.cumsum(np.concatenate([[0], blocks.to_numpy()[:-1]]))
    ids = [
        [*range(s), *range(int(start), int(start) + int(b) - int(s))]
        for s, b, start in zip(shared, blocks, starts, strict=True)
    ]
    columns = {
        "arrival_s": rows.arrival_measured_s.to_numpy(float),
        "prompt_tokens": rows.prompt_tokens.to_numpy(),
        "output_tokens": rows.output_tokens.to_numpy(),
        "block_hashes": ids,
        "block_size": np.full(len(rows), BLOCK_TOKENS),
    }
    pq.write_table(pa.table(columns), path)


def _scenario(run: str, trace: Path) -> dict[str, Any]:
    config = configurations().loc[run]
    dp = int(config.dp)
    return {
        "schema": 1,
        "name": run,
        "seed": 1,
        "workload": {"kind": "trace", "format": "parquet", "path": str(trace)},
        "pools": [
            {
                "name": "run",
                "llm": LLMS[config.model],
                "accelerator": CHIPS[config.gpu],
                "parallelism": {"tp": int(config.tp), "dp": dp, "ep": dp if config.expert_parallel else 1},
                "engine": {
                    "kind": "vllm",
                    "weights": "bf16",
                    "scheduler": {
                        "policy": "vllm-v1",
                        "max_batched_tokens": int(config.max_num_batched_tokens),
                        "max_seqs": int(config.max_num_seqs),
                    },
                    "kv": {"memory_ratio": float(config.gpu_memory_utilization), "retain_unmatched": True}
                    | ({"capacity_tokens": int(config.kv_tokens_capacity)} if config.kv_tokens_capacity > 0 else {}),
                },
            }
        ],
    }


def compared(run: str, folder: Path) -> dict[str, float]:
    """Relative errors of a run's means: ttft, tpot, e2e, makespan."""
    real, ours = measured(run), replayed(run, folder)
    start = real.arrival_measured_s.min()
    return {
        "ttft": ours.ttft_ms.mean() / real.ttft_ms.mean() - 1,
        "tpot": ours.tpot_ms.mean() / real.tpot_ms.mean() - 1,
        "e2e": ours.e2e_ms.mean() / real.e2e_ms.mean() - 1,
        "makespan": (ours.end_s.max() - start) / (real.last_token_s.max() - real.queued_s.min()) - 1,
        "ttft_p90": ours.ttft_ms.quantile(0.9) / real.ttft_ms.quantile(0.9) - 1,
        "e2e_p90": ours.e2e_ms.quantile(0.9) / real.e2e_ms.quantile(0.9) - 1,
    }
