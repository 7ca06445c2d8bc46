"""DynamoLLM's upper level: as many replicas as take the least energy at clocks that meet the objectives."""

from __future__ import annotations

from math import inf
from typing import Annotated, ClassVar, Self

from numpy.random import Generator
from pydantic import Field, model_validator

from fleetsim.plugins import PolicyConfig
from fleetsim.scaling.api import PoolState, Profile
from fleetsim.scaling.behaviour import Period

Ratio = Annotated[float, Field(gt=0, le=1, json_schema_extra={"unit": "ratio"})]


class DynamoLlmConfig(PolicyConfig):
    """Parameters of dynamollm."""

    clocks: tuple[Annotated[float, Field(ge=0.1, le=1)], ...] = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    """Clocks over the usual one at which a replica was profiled, rising to 1: those of the power manager `slo-clock`; [1] where
    nobody manages clocks."""
    headroom_ratio: Annotated[float, Field(ge=1, json_schema_extra={"unit": "ratio"})] = 1.1
    """Load that is planned for over the load that is expected: an assumption."""
    ttft_ratio: Ratio = 0.5
    """Share of the objective for the first token that its predicted mean may reach: an assumption, since percentiles are higher."""
    tpot_ratio: Ratio = 0.8
    """The same for the time per output token: an assumption."""
    period_s: Period = 1800.0
    """Time between two plans: half an hour as in the paper (quoted from memory)."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if list(self.clocks) != sorted(set(self.clocks)) or self.clocks[-1] != 1.0:
            raise ValueError("clocks must rise to 1")
        return self


class DynamoLlm:
    """As many replicas as take the least energy together, each at the cheapest clock that meets the objectives.

    Rule: each period the pool's `forecaster` says how many requests come in the next one; `headroom_ratio` times that is shared out
    evenly over each number of replicas allowed and each clock. One replica's share of prompts takes `u` of its time; it decodes
    with the batch that produces its answers in the rest. Predicted are the time per output token (a step over 1 - u) and the mean
    time to first token (a prompt, with the wait u / (1 - u) of a queue of such prompts, and a step), and the power from a profile
    of the accelerators. Of the numbers and clocks that keep both within their share of the objectives the one with the least power
    is wanted; all replicas if none does, and as many as there are if the pool has no profile or nothing came yet.

    Not modelled: the programme's choice of tensor parallelism, one per pool here; its power manager is `slo-clock`.

    References
    ----------
    Stojkovic et al., "DynamoLLM: Designing LLM Inference Clusters for Performance and Energy Efficiency", HPCA 2025,
    arXiv:2408.00741.
    """

    Config: ClassVar = DynamoLlmConfig

    def __init__(self, config: DynamoLlmConfig, rng: Generator, pool: PoolState) -> None:
        self.period_s = config.period_s
        self._config = config
        self._pool = pool
        self._requests = pool.new_forecaster("requests", self.period_s)
        self._prompt = self._answer = 0.0
        """Mean lengths that were seen last [tokens]."""

    def tick(self) -> int:
        """Replicas wanted."""
        pool, window = self._pool, self._pool.window
        self._requests.observe(pool.now_s, window.arrivals)
        if window.arrivals:
            self._prompt = window.prompt_tokens / window.arrivals
        if window.finished:
            self._answer = window.output_tokens / window.finished
        rate = self._config.headroom_ratio * max(float(self._requests.mean(1)[0]), 0.0) / self.period_s
        if pool.at_clock is None or not self._answer:
            return pool.wanted
        if rate <= 0.0:
            return pool.clip(1)
        best, least_w = pool.maximum, inf
        for replicas in range(max(pool.minimum, 1), pool.maximum + 1):
            watts = min([self._power_w(pool.at_clock(ratio), rate / replicas) for ratio in self._config.clocks])
            if replicas * watts < least_w * (1.0 - 1e-9):
                best, least_w = replicas, replicas * watts
        return pool.clip(best)

    def _power_w(self, profile: Profile, rate: float) -> float:
        """Power of a replica that takes so many requests per second; infinite if it would miss an objective."""
        pool, config = self._pool, self._config
        prompt_s, prompt_j = profile.prompt(self._prompt)
        busy = rate * prompt_s
        if busy >= 1.0:
            return inf
        context = self._prompt + 0.5 * self._answer
        wanted = rate * self._answer / (1.0 - busy)  # tokens per second while it decodes
        most = min(pool.slots, int(pool.capacity_tokens / context))
        if most < 1 or most < wanted * profile.step(most, int(most * context))[0]:
            return inf
        low, high = 1, most
        while low < high:  # the first batch that produces them: steps grow by less than the batch
            middle = (low + high) // 2
            if middle >= wanted * profile.step(middle, int(middle * context))[0]:
                high = middle
            else:
                low = middle + 1
        step_s, step_j = profile.step(low, int(low * context))
        ttft_s = prompt_s * (1.0 + busy / (1.0 - busy)) + step_s
        if (
            ttft_s > config.ttft_ratio * pool.ttft_limit_s
            or step_s / (1.0 - busy) > config.tpot_ratio * pool.tpot_limit_s
        ):
            return inf
        decoding = min(wanted * step_s / low, 1.0) * (1.0 - busy)
        idle = max(1.0 - busy - decoding, 0.0)
        return rate * prompt_j + decoding * step_j / step_s + idle * profile.idle_w
