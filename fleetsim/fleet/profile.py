"""What a replica of a pool takes at a clock, as a profile that was measured beforehand would tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fleetsim.scaling.api import Profile

if TYPE_CHECKING:
    from collections.abc import Callable

    from fleetsim.fleet.pool import Pool

_CHUNK_TOKENS = 8192
"""Prompt tokens per step where the scheduler says none."""
_ROUND_TOKENS = 32
"""Prompts are profiled at multiples of so many tokens."""


def profiles(pool: Pool) -> Callable[[float], Profile]:
    """Profiles of a pool's replicas by clock, each read from the step-time model when it is first needed."""
    power = pool.config.power
    chunk_tokens = getattr(pool.config.engine.scheduler.config, "max_batched_tokens", _CHUNK_TOKENS)
    known: dict[float, Profile] = {}

    def at_clock(ratio: float) -> Profile:
        profile = known.get(ratio)
        if profile is not None:
            return profile
        model = pool.model_at(ratio, power.cap, power.temperature)
        prompts: dict[int, tuple[float, float]] = {}

        def joules(seconds: float, dynamic_j: float) -> float:
            return min(model.static_w * seconds + dynamic_j, model.limit_w * seconds)

        def step(batch: int, ctx_tokens: int) -> tuple[float, float]:
            line = model.decode(batch, ctx_tokens, batch)
            seconds = line.time_s + line.time_per_ctx_s * ctx_tokens
            return seconds, joules(seconds, line.energy_j + line.energy_per_ctx_j * ctx_tokens)

        def prompt(tokens: float) -> tuple[float, float]:
            whole = max(round(tokens / _ROUND_TOKENS), 1) * _ROUND_TOKENS
            found = prompts.get(whole)
            if found is None:
                seconds = spent_j = 0.0
                for done in range(0, whole, chunk_tokens):
                    n = min(chunk_tokens, whole - done)
                    last = int(done + n == whole)
                    time_s, dynamic_j = model.mixed(n, last, n * done + n * (n + 1) // 2, done + n, 1, 0, 0, n)
                    seconds += time_s
                    spent_j += joules(time_s, dynamic_j)
                found = prompts[whole] = (seconds, spent_j)
            return found

        profile = known[ratio] = Profile(step, prompt, model.idle_w)
        return profile

    return at_clock
