"""Memory plans against what vLLM printed at start, as its users published it.

Each row states what was printed; nothing is tuned per row. Where a row does not say, it has the engine's defaults: 2,048
tokens per step and 256 sequences, on H100 and H200 8,192 and 1,024.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fleetsim.catalog.accelerator import load_accelerator
from fleetsim.catalog.llm import load_llm
from fleetsim.catalog.memory import MemoryPlan, cached_tokens, memory_plan, stage_cache
from fleetsim.scenario.schema import Engine, Parallelism

DATA = Path(os.environ.get("FLEETSIM_DATA", Path(__file__).parents[3] / "shared" / "data"))
RUNS = DATA / "reference" / "open" / "vllm_run_config.parquet"
GIB = 2**30
ISSUES = "https://github.com/vllm-project/vllm/issues/"
PULLS = "https://github.com/vllm-project/vllm/pull/"
CONNECTOR = "a connector for the cache keeps buffers of its own, and MoE kernels of 8-bit blocks need workspaces"
UNSTATED = "neither version nor sampler is stated: FlashInfer's takes a third of the memory"
PADDED = "vLLM 0.10 and 0.11 pad the experts more: 66.0 instead of 64.4 GiB of weights"
RUNTIME = "this log has 0.35 GiB of memory outside PyTorch, others 0.13 to 0.16"


@dataclass(frozen=True)
class Start:
    """One engine start."""

    address: str
    llm: str
    tokens: int = 0
    """Printed as capacity; 0 if only bytes were printed."""
    kv_gib: float = 0.0
    """Printed as memory left for the cache."""
    accelerator: str = "h100-sxm"
    tp: int = 1
    ratio: float = 0.9
    batched_tokens: int = 2048
    seqs: int = 256
    weights: str = "auto"
    total_gib: float = 0.0
    """Memory of the card where the log prints it."""
    slack_gib: float = 0.25
    """What a plan may be off by beside 5 %: drivers and other programs on a card differ by that."""
    why: str = ""
    """Reason for more slack."""


LLM_D = "https://github.com/llm-d/llm-d-benchmark/pull/732 (vLLM empirical test results, H100)"
LMCACHE = "https://github.com/LMCache/LMCache/pull/1769 (sizes of the cache, H100)"
RTX_3090: dict[str, Any] = {"accelerator": "rtx-3090", "total_gib": 23.58, "slack_gib": 0.3, "why": RUNTIME}
H100: dict[str, Any] = {"accelerator": "h100-sxm", "batched_tokens": 8192, "seqs": 1024}

STARTS = {
    "gpt-oss-20b": Start(LLM_D, "gpt-oss-20b", kv_gib=50.28, **H100),
    "gpt-oss-120b": Start(LLM_D, "gpt-oss-120b", kv_gib=3.33, ratio=0.95, **H100),
    "llama-3.3-70b, fp8, tp 2": Start(LLM_D, "llama-3.3-70b", kv_gib=32.0, tp=2, weights="fp8", **H100),
    "llama-3.3-70b, fp8, does not fit": Start(LLM_D, "llama-3.3-70b", kv_gib=-1.44, weights="fp8", **H100),
    "llama-3.1-8b": Start(LLM_D, "llama-3.1-8b", kv_gib=51.38, **H100),
    "qwen3-0.6b": Start(LLM_D, "qwen3-0.6b", kv_gib=64.45, **H100),
    "qwen3-32b": Start(LLM_D, "qwen3-32b", kv_gib=4.45, **H100),
    "qwen3-32b, tp 2": Start(LLM_D, "qwen3-32b", kv_gib=34.49, tp=2, **H100),
    "qwen3-8b": Start(LMCACHE, "qwen3-8b", 366_400, **H100),
    "qwen3-32b, tp 2, vLLM 0.11": Start(LMCACHE, "qwen3-32b", 275_760, tp=2, **H100),
    "llama-3.1-70b, tp 4, vLLM 0.11": Start(LMCACHE, "llama-3.1-70b", 420_208, tp=4, **H100),
    "qwen3-235b-a22b, fp8, tp 4, with a connector": Start(
        ISSUES + "21348", "qwen3-235b-a22b", 178_880, tp=4, weights="fp8", slack_gib=2.1, why=CONNECTOR, **H100
    ),
    "qwen3-30b-a3b, two nodes": Start(
        ISSUES + "21524", "qwen3-30b-a3b", 878_416, tp=2, slack_gib=3.6, why=UNSTATED, **H100
    ),
    "gpt-oss-120b, 1,024 tokens per step": Start(
        ISSUES + "27508",
        "gpt-oss-120b",
        kv_gib=1.71,
        ratio=0.95,
        slack_gib=1.6,
        why=PADDED,
        **(H100 | {"batched_tokens": 1024}),
    ),
    "gpt-oss-120b, does not fit": Start(
        ISSUES + "23278", "gpt-oss-120b", kv_gib=-2.14, slack_gib=1.6, why=PADDED, **H100
    ),
    "qwen3-next-80b-a3b, 2 x H200, vLLM 0.10": Start(
        "a log on GitHub: vLLM 0.10.2, tensor parallel 2, other arguments as usual",
        "qwen3-next-80b-a3b",
        kv_gib=44.59,
        tp=2,
        total_gib=139.81,
        **(H100 | {"accelerator": "h200-sxm"}),
    ),
    "llama-3-8b, V0 engine": Start(PULLS + "10511", "llama-3-8b", kv_gib=53.29, total_gib=79.22),
    "llama-2-7b, A100": Start(PULLS + "2031", "llama-2-7b", 7351 * 16, accelerator="a100-80", batched_tokens=4096),
    "llama-3.1-8b, RTX 3090, 20,000 tokens per step": Start(
        ISSUES + "10517", "llama-3.1-8b", 1952 * 16, batched_tokens=20_000, **RTX_3090
    ),
    "llama-3.1-8b, RTX 3090, 29,000 tokens per step": Start(
        ISSUES + "10517", "llama-3.1-8b", 1478 * 16, batched_tokens=29_000, **RTX_3090
    ),
    "qwen2.5-14b, 2 x RTX 4090": Start(
        ISSUES + "13061", "qwen2.5-14b", 81_536, accelerator="rtx-4090", tp=2, ratio=0.98
    ),
    "qwen3-8b, RTX A5000, as large as an RTX 3090": Start(
        "https://github.com/LMCache/LMCache/issues/3430", "qwen3-8b", 46_368, accelerator="rtx-3090", ratio=0.9764
    ),
}


def plan(start: Start) -> MemoryPlan:
    scheduler = {"policy": "vllm-v1", "max_batched_tokens": start.batched_tokens, "max_seqs": start.seqs}
    kv = {"memory_ratio": start.ratio}
    engine = Engine.model_validate({"kind": "vllm", "weights": start.weights, "kv": kv, "scheduler": scheduler})
    chip = load_accelerator(start.accelerator)
    if start.total_gib:
        chip = replace(chip, memory_bytes=start.total_gib * GIB)
    return memory_plan(load_llm(start.llm), chip, Parallelism(tp=start.tp), engine)


@pytest.mark.parametrize("name", STARTS)
def test_plan_matches_the_log(name: str) -> None:
    """Within 5 %, or a quarter of a GiB where that is more; wider only with a reason."""
    start = STARTS[name]
    found = plan(start)
    if start.kv_gib:
        assert found.kv_bytes / GIB == pytest.approx(start.kv_gib, rel=0.05, abs=start.slack_gib)
    if start.tokens:
        slack = start.slack_gib * GIB / found.kv_bytes_per_token
        assert found.capacity_tokens == pytest.approx(start.tokens, rel=0.05, abs=slack)
    assert found.fits == (start.kv_gib >= 0)
    assert (start.slack_gib > 0.25) == bool(start.why)


def test_most_logs_are_met_within_five_percent() -> None:
    """Over all starts that left room for a cache: the median error is 2.0 %, and 15 of 20 are within 5 %."""
    errors = []
    for start in STARTS.values():
        found = plan(start)
        if start.tokens:
            errors.append(abs(found.capacity_tokens / start.tokens - 1))
        elif start.kv_gib > 0:
            errors.append(abs(found.kv_bytes / GIB / start.kv_gib - 1))
    assert sorted(errors)[len(errors) // 2] < 0.03
    assert sum(error <= 0.05 for error in errors) >= 0.75 * len(errors)


def test_recurrent_states_are_counted_per_sequence() -> None:
    """The Qwen3-Next start printed room for 14.77 requests of 262,144 tokens."""
    start = STARTS["qwen3-next-80b-a3b, 2 x H200, vLLM 0.10"]
    cache = stage_cache(load_llm(start.llm), Parallelism(tp=start.tp))
    assert cached_tokens(start.kv_gib * GIB, cache, 15, 262_144) == pytest.approx(14.77 * 262_144, rel=0.01)


@pytest.mark.skipif(not RUNS.is_file(), reason=f"no {RUNS} (FLEETSIM_DATA)")
def test_capacities_in_the_reference_data() -> None:
    runs = pd.read_parquet(RUNS).dropna(subset=["kv_tokens_capacity"])
    assert len(runs) >= 1
    cards = {"RTX4090": "rtx-4090"}
    models = {"meta-llama/Llama-3.1-8B": "llama-3.1-8b"}
    for run in runs.to_dict("records"):
        start = Start(
            "",
            models[run["model"]],
            accelerator=cards[run["gpu"]],
            tp=int(run["tp"]),
            ratio=run["gpu_memory_utilization"],
            batched_tokens=int(run["max_num_batched_tokens"]),
            seqs=int(run["max_num_seqs"]),
        )
        assert plan(start).capacity_tokens == pytest.approx(run["kv_tokens_capacity"], rel=0.05)
