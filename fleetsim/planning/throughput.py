"""How many requests of given lengths a replica serves per second within the SLO, by its step-time model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, inf

from fleetsim.fleet.pool import Pool
from fleetsim.scenario.schema import SloLimits

_TOKENS, _SEATS = 8192, 1024
"""Tokens a step and requests at a time where a scheduler has no such limits."""


@dataclass(frozen=True, slots=True)
class Rate:
    """What one replica does with a steady stream of equal requests."""

    requests_per_s: float
    """0 where not even one request at a time keeps the limits."""
    batch: int
    """Requests that decode at a time, per data-parallel rank."""
    tpot_s: float
    ttft_s: float
    """Without any queue."""
    power_w: float
    """Of its accelerators."""
    why: str = ""
    """What holds it back: a limit of the SLO, memory, seats or the token budget."""


def steady_rate(pool: Pool, prompt_tokens: float, output_tokens: float, limits: SloLimits) -> Rate:
    """Highest rate of equal requests within the limits, by bisection over the batch.

    With `b` requests decoding, ``b / (o - 1)`` of them end per step (o output tokens), and as many prompts take their places: so
    many steps carry a prompt or a chunk of it, the others decode only, and the time of a step is the mean of the two. Requests hold
    ``p + o / 2`` tokens of the cache on average. Prefix hits are left out. Waiting is not in it: the planner leaves room for that.

    Parameters
    ----------
    pool : Pool
        From `describe_pool`.
    prompt_tokens, output_tokens : float
        Lengths [tokens]. ≥ 1.
    limits : SloLimits
        Limits on the first token, the tokens after it, and the whole.

    Returns
    -------
    Rate
    """
    seats = int(getattr(pool.config.engine.scheduler.config, "max_seqs", _SEATS))
    room = pool.capacity_tokens / (prompt_tokens + output_tokens / 2 + pool.config.engine.kv.block_tokens)
    low, best, why = 0, Rate(0.0, 0, inf, inf, 0.0, "one request does not fit into memory"), "memory"
    high = min(seats, int(room))
    if high == seats:
        why = "seats (max_seqs)"
    found = _with_batch(pool, high, prompt_tokens, output_tokens, limits) if high else best
    if high and not found.why:
        return replace(found, why=why)
    best = replace(found, requests_per_s=0.0, batch=0) if high else best
    while high - low > 1:
        middle = (low + high) // 2
        tried = _with_batch(pool, middle, prompt_tokens, output_tokens, limits)
        if tried.why:
            high, best = middle, replace(best, why=tried.why)
        else:
            low, best = middle, replace(tried, why=best.why)
    return best


def _with_batch(pool: Pool, batch: int, prompt: float, output: float, limits: SloLimits) -> Rate:
    """What a batch of this size gives; `why` names the limit that it breaks, if any."""
    model, ranks = pool.model, pool.config.parallelism.dp
    budget = int(getattr(pool.config.engine.scheduler.config, "max_batched_tokens", _TOKENS))
    context = int(batch * (prompt + output / 2))
    steps = max(output - 1.0, 0.0)
    spare = budget - batch
    if spare < 1:
        return Rate(0.0, batch, inf, inf, 0.0, "the token budget")
    line = model.decode(batch, context, batch * ranks)
    decode_s, decode_j = line.time_s + line.time_per_ctx_s * context, line.energy_j + line.energy_per_ctx_j * context
    chunk = max(min(int(prompt), spare), 1)
    coming = batch / steps if steps >= 1.0 else batch  # prompts that start per step
    needed = coming * prompt
    if needed > spare and steps >= 1.0:
        return Rate(0.0, batch, inf, inf, 0.0, "the token budget")
    tokens = int(min(max(chunk, needed), spare))
    share = min(needed / tokens, 1.0)
    prompts = max(round(tokens / prompt), 1)
    decoding = batch if steps >= 1.0 else 0
    pairs = int(prompts * (tokens / prompts) * (prompt + 1) / 2)
    reads = int(prompts * (prompt if chunk >= int(prompt) else (prompt + chunk) / 2))
    mixed_s, mixed_j = model.mixed(
        tokens + decoding, prompts + decoding, pairs, reads, prompts, decoding, context if decoding else 0,
        (tokens + decoding) * ranks,
    )  # fmt: skip
    chunks = ceil(prompt / spare) if steps >= 1.0 else ceil(prompt / budget)
    if steps >= 1.0:
        step_s = (1.0 - share) * decode_s + share * mixed_s
        step_j = (1.0 - share) * decode_j + share * mixed_j
        rate = ranks * batch / (steps * step_s)
    else:
        step_s, step_j = mixed_s, mixed_j
        rate = ranks * tokens / prompt / mixed_s
    power = min(model.static_w + ranks * step_j / step_s, model.limit_w)
    ttft_s = model.frontend_s + chunks * mixed_s + step_s / 2  # a prompt waits for the step under way
    whole_s = ttft_s + steps * step_s
    why = ""
    for name, value, limit in (
        ("ttft", ttft_s, limits.ttft),
        ("tpot", step_s, limits.tpot),
        ("e2el", whole_s, limits.e2el),
    ):
        if limit is not None and value > limit and not (name == "tpot" and steps < 1.0):
            why = f"slo.{name}"
            break
    return Rate(rate, batch, step_s, ttft_s, power, why)
