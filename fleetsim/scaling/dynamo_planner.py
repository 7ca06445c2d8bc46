"""The planner of NVIDIA Dynamo: by load, or by service-level objectives."""

from __future__ import annotations

from math import ceil, inf, isfinite
from typing import Annotated, ClassVar, Literal

from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.scaling.api import PoolState
from fleetsim.scaling.behaviour import Period
from fleetsim.scaling.capacity import decode_rate, prefill_rate

_Share = Annotated[float, Field(ge=0, json_schema_extra={"unit": "ratio"})]
_Count = Annotated[int, Field(ge=0, strict=True, json_schema_extra={"unit": "count"})]


class DynamoPlannerConfig(PolicyConfig):
    """Parameters of the planner; defaults as in Dynamo."""

    mode: Literal["load", "sla"] = "sla"
    """By queues and KV use, one replica at a time; or by forecast demand and objectives."""
    interval_s: Period = 180.0
    """Time between two adjustments by objectives; longer than a replica needs to start."""
    load_interval_s: Period = 30.0
    """The same by load."""
    metric_s: Period = 1.0
    """Time between two looks at the metrics, by load; they are averaged over an interval."""
    queue_up: _Share = 0.5
    """Waiting prompts per replica above which one is added."""
    queue_down: _Share = 0.2
    """And below which one is removed."""
    kv_up: _Share = 0.9
    """Share of KV blocks in use above which a replica that decodes is added."""
    kv_down: _Share = 0.5
    """And below which one is removed."""
    trend_intervals: _Count = 3
    """Intervals within which a queue that goes on shrinking as it does must be below `queue_up`, for an addition to be skipped."""
    grace_intervals: _Count = 3
    """Intervals after an addition of a replica that decodes in which none is removed."""


class DynamoPlanner:
    """Replicas for prompts and for answers from what is expected and what one of them carries, or by thresholds.

    Rule (`sla`): each interval the pool's `forecaster` says how many requests, prompt tokens and answer tokens come in the next
    one. Prompts need ``prompt tokens / interval * min(1, k_p) / r_p`` replicas, `r_p` tokens per second of one that computes
    prompts of the expected length; ``k_p`` is the mean time to first token of the last interval over the predicted prefill time.
    Answers need ``answer tokens / interval / r_d``, `r_d` the best rate of one whose steps take no longer than ``TPOT objective /
    k_d`` with a context of prompt and half the answer; ``k_d`` is the mean time per token over what the step-time model predicts
    for the requests that ran. A pool of role `prefill` or `decode` has its share rounded up; a mixed one, which Dynamo does not
    plan, the sum. Factors stay as they are in intervals without an observation.

    Rule (`load`): every `load_interval_s`, one replica more or less. A pool that computes prompts: more above `queue_up` waiting
    requests per replica, unless the queue falls so fast that it is below within `trend_intervals`; fewer below `queue_down`. One
    that decodes: more above `kv_up`, fewer below `kv_down` but not within `grace_intervals` of an addition. A mixed one: more if
    either says so, fewer if both do.

    References
    ----------
    ai-dynamo/dynamo, docs/planner.
    """

    Config: ClassVar = DynamoPlannerConfig

    def __init__(self, config: DynamoPlannerConfig, rng: Generator, pool: PoolState) -> None:
        self._config = config
        self._pool = pool
        self._by_load = config.mode == "load"
        self.period_s = min(config.metric_s, config.load_interval_s) if self._by_load else config.interval_s
        self._looks = max(round(config.load_interval_s / self.period_s), 1) if self._by_load else 1
        self._queues: list[float] = []
        self._used: list[float] = []
        self._last_queue: float | None = None
        self._grace = 0
        self._k_p = self._k_d = 1.0
        if not self._by_load:
            self._requests = pool.new_forecaster("requests", self.period_s)
            self._prompts = pool.new_forecaster("prompt_tokens", self.period_s)
            self._answers = pool.new_forecaster("output_tokens", self.period_s)

    def tick(self) -> int:
        """Replicas wanted."""
        return self._load() if self._by_load else self._sla()

    # --- by objectives -------------------------------------------------------------------------------------------------

    def _sla(self) -> int:
        pool, window = self._pool, self._pool.window
        self._requests.observe(pool.now_s, window.arrivals)
        self._prompts.observe(pool.now_s, window.prompt_tokens)
        length = window.output_tokens / window.finished if window.finished else 0.0
        self._answers.observe(pool.now_s, length * window.arrivals)
        self._correct()
        requests = max(float(self._requests.mean(1)[0]), 0.0)
        prompts = max(float(self._prompts.mean(1)[0]), 0.0)
        answers = max(float(self._answers.mean(1)[0]), 0.0)
        if requests <= 0.0:
            return pool.clip(1)
        needed = 0.0
        if pool.role != "decode":
            needed += prompts / self.period_s * min(1.0, self._k_p) / prefill_rate(pool, prompts / requests)
        if pool.role != "prefill":
            context = (prompts + 0.5 * answers) / requests
            needed += answers / self.period_s / decode_rate(pool, context, pool.tpot_limit_s / self._k_d)
        return pool.clip(max(ceil(needed - 1e-9), 1))

    def _correct(self) -> None:
        """Compare what was observed with what the models predict."""
        pool, window = self._pool, self._pool.window
        if window.arrivals and isfinite(window.ttft_s):
            predicted_s = pool.prefill_s(window.prompt_tokens / window.arrivals)
            self._k_p = window.ttft_s / predicted_s if predicted_s > 0.0 else self._k_p
        if window.arrivals and isfinite(window.tpot_s) and window.finished:
            context = window.prompt_tokens / window.arrivals + 0.5 * window.output_tokens / window.finished
            batch = max(pool.running / max(pool.ready, 1), 1.0)
            self._k_d = window.tpot_s / pool.step_s(batch, batch * context)

    # --- by load -------------------------------------------------------------------------------------------------------

    def _load(self) -> int:
        config, pool = self._config, self._pool
        self._queues.append((pool.waiting + pool.waiting_outside) / max(pool.ready, 1))
        self._used.append(pool.kv_used_ratio)
        if len(self._queues) < self._looks:
            return pool.wanted
        queue, used = (sum(values) / len(values) for values in (self._queues, self._used))
        self._queues, self._used = [], []
        prompts = self._by_queue(queue)
        self._grace = max(self._grace - 1, 0)
        answers = 1 if used > config.kv_up else -1 if used < config.kv_down and not self._grace else 0
        change = {"prefill": prompts, "decode": answers}.get(pool.role)
        if change is None:
            change = max(prompts, answers)
        if change > 0 and pool.role != "prefill":
            self._grace = config.grace_intervals + 1
        return pool.clip(max(pool.wanted + change, 1))

    def _by_queue(self, queue: float) -> int:
        """One more, one fewer, or none, for a queue per replica."""
        config, last = self._config, self._last_queue
        self._last_queue = queue
        if queue > config.queue_up:
            falling = inf if last is None else queue + config.trend_intervals * (queue - last)
            return 0 if falling < config.queue_up else 1
        return -1 if queue < config.queue_down else 0
