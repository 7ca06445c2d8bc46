"""What one replica carries, from its predicted prefill and decode times."""

from __future__ import annotations

from math import inf

from fleetsim.scaling.api import PoolState

_CONTEXT_TOKENS = 1024.0
"""Context of a request where none has been seen yet."""


def best_batch(pool: PoolState, context_tokens: float, tpot_s: float) -> int:
    """Most requests of so much context that decode together in memory and within a time per token; at least 1."""
    most = min(pool.slots, int(pool.capacity_tokens / max(context_tokens, 1.0)))
    low, high = 1, max(most, 1)
    while low < high:  # the last one whose step is short enough: steps grow with the batch
        middle = (low + high + 1) // 2
        if pool.step_s(middle, middle * context_tokens) <= tpot_s:
            low = middle
        else:
            high = middle - 1
    return low


def decode_rate(pool: PoolState, context_tokens: float, tpot_s: float) -> float:
    """Tokens of answers per second of one replica whose requests take `tpot_s` per token at most [1/s]."""
    batch = best_batch(pool, context_tokens, tpot_s)
    return batch / pool.step_s(batch, batch * context_tokens)


def prefill_rate(pool: PoolState, prompt_tokens: float) -> float:
    """Prompt tokens per second of one replica, prompts of this length one after the other [1/s]."""
    return prompt_tokens / pool.prefill_s(prompt_tokens) if prompt_tokens > 0.0 else inf


def replica_seconds(
    pool: PoolState, requests: float, prompt_tokens: float, output_tokens: float, tpot_s: float = inf
) -> float:
    """Time of one replica that so much work of the pool's role takes it [s].

    A pool that computes prompts and answers needs the sum: a step with prompts lasts longer by about what they take alone.
    """
    if requests <= 0.0:
        return 0.0
    prompt = prompt_tokens / requests
    context = prompt + 0.5 * output_tokens / requests
    seconds = 0.0
    if pool.role != "decode":
        seconds += requests * pool.prefill_s(prompt)
    if pool.role != "prefill":
        seconds += output_tokens / decode_rate(pool, context or _CONTEXT_TOKENS, tpot_s)
    return seconds
