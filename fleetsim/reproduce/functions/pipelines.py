"""Bubbles of pipelines: of one that is emptied after every batch, and of the one that the engine models."""

from __future__ import annotations

from pathlib import Path

from fleetsim.fleet.pool import describe_pool
from fleetsim.reproduce.functions import check
from fleetsim.scenario.load import load_mapping


@check
def emptied(seed: int, stages: int, micro_batches: int) -> float:
    """Idle share of a pipeline through which equal micro-batches go once: each stage takes them in order, one at a time."""
    free = [0.0] * stages
    for _ in range(micro_batches):
        ready = 0.0
        for stage in range(stages):
            ready = free[stage] = max(ready, free[stage]) + 1.0
    return 1.0 - micro_batches * stages / (stages * max(free))


@check
def engine(seed: int, stages: int, sequences: int, llm: str, accelerator: str, ctx_tokens: int) -> float:
    """Idle share of the roofline's pipeline while it decodes so many sequences.

    Against the time in which stages that never idle would do the same work, each sequence a micro-batch of its own.
    """
    pool = {"name": "p", "llm": llm, "accelerator": accelerator, "parallelism": {"pp": stages}}
    kind = {"engine": {"kind": "generic"}}
    workload = {
        "kind": "synthetic",
        "requests": 1,
        "arrivals": {"process": "poisson", "rate": "1 req/s"},
        "prompt_tokens": {"distribution": "fixed", "value": 1},
        "output_tokens": {"distribution": "fixed", "value": 1},
    }
    scenario = load_mapping(
        {"schema": 1, "name": "pipeline", "workload": workload, "pools": [{**pool, **kind}]}
    ).scenario
    model = describe_pool(scenario.pools[0], 0, Path()).model
    lone, full = (model.decode(batch, batch * ctx_tokens, batch) for batch in (1, sequences))
    lone_s, full_s = (line.time_s + line.time_per_ctx_s * ctx_tokens * n for line, n in ((lone, 1), (full, sequences)))
    return 1.0 - sequences * lone_s / stages / full_s
