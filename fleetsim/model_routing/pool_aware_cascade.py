"""A cascade that asks the dear model only where its answer can still come in time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.api import Accept, Answer, Ask, ModelsView, Outcome, Query, number_of
from fleetsim.model_routing.pairs import Remembered, weak_and_strong
from fleetsim.model_routing.pool_inference import PoolInference
from fleetsim.model_routing.tags import Tags
from fleetsim.plugins import PolicyConfig

_Ratio = Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})]
_Seconds = Annotated[float, Field(ge=0, json_schema_extra={"unit": "s"})]


class PoolAwareCascadeConfig(PolicyConfig):
    """Parameters of the pool-aware cascade."""

    cheap: str = ""
    """Arm that is asked first. Empty: the cheapest by the list but the dear one."""
    dear: str = ""
    """Arm that is asked where the first answer does not convince. Empty: the one with the highest mean quality."""
    middle: str = ""
    """Arm that is asked in the dear one's place where that would be too late, if it would not be. Empty: none, the cheap answer is
    given."""
    threshold: _Ratio = 0.5
    """Score from which the cheap answer is given."""
    limit: Annotated[float, Field(gt=0, json_schema_extra={"unit": "s"})] | None = None
    """Time from arrival to the first token; default: the limit of the request's class, and none without one [s]."""
    grace: _Seconds = 0.05
    """How much later than that it may be [s]."""
    queue: Literal["inferred", "seen"] = "inferred"
    """Whose count of the dear pool's requests it takes: its own, sent less done, or the pool's view's, as old as that is."""
    forget: Annotated[float, Field(gt=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.99
    """Weight of an observed first token after another one."""


class PoolAwareCascade:
    """Pool-aware cascading: escalate only if queue and prompt at the dear model fit into what is left of the limit.

    Rule: the cheap arm answers; if the judge's score reaches the threshold, that is given. Else the dear arm is asked if
    ``queue * service + prefill <= limit - elapsed + grace``: requests there per seat, the mean time of its answers, and the time to
    the first token that a regression on prompt lengths expects (last hundred, forgetting 1 % each). If it does not fit, the middle
    arm where that fits, else the cheap answer. A pool whose prompts take longer than 1 / 0.7 of what they took first has no grace.

    Charged: both calls and the judge; the gate itself costs nothing.

    References
    ----------
    Workload-Router-Pool, arXiv:2603.21354, directions 12 (inference of pools) and 14 (pool-aware cascading).
    """

    Config: ClassVar = PoolAwareCascadeConfig
    tags: ClassVar[Tags] = Tags(("after",), ("query", "system"), ("rule",), "query", ("cascade",))

    def __init__(self, config: PoolAwareCascadeConfig, rng: Generator, models: ModelsView) -> None:
        self._models, self._config = models, config
        self._cheap, self._dear = weak_and_strong(models, config.cheap, config.dear, "pool-aware-cascade")
        self._middle = number_of(models, config.middle, "pool-aware-cascade") if config.middle else -1
        self.pools = [PoolInference(config.forget) for _ in range(models.count)]
        self._open: dict[int, tuple[int, float]] = {}
        """Of requests under way, the arm that was asked last and when."""
        self._ended: Remembered[tuple[int, float]] = Remembered()
        self.refused = 0
        """Answers that would have been asked for again, had there been time."""

    def route(self, query: Query) -> Ask:
        """The cheap arm."""
        among = self._models.open()
        if self._cheap in among:
            return self._asks(query, Ask(self._cheap, judge=True))
        return self._asks(query, Ask(self._dear if self._dear in among else among[0], last=True))

    def proceed(self, query: Query, answers: Sequence[Answer]) -> Ask | Accept:
        """The cheap answer, or a dearer arm if there is time."""
        answer = answers[0]
        pool = self.pools[answer.arm]
        pool.started(query.prompt_tokens, answer.ttft_s)
        pool.served(answer.latency_s)
        self._ends(query)
        if (answer.score or 0.0) >= self._config.threshold:
            return Accept(0)
        among = self._models.open()
        for arm in (self._dear, self._middle):
            if arm in among and arm != answer.arm and self._fits(query, arm):
                return self._asks(query, Ask(arm, last=True))
        self.refused += 1
        return Accept(0)

    def forget(self, query: Query) -> None:
        """A request is over."""
        last = self._ends(query)
        if last is not None:
            self._ended.keep(query.id, last)

    def feedback(self, outcome: Outcome) -> None:
        """When the dear arm's first token came, and its last."""
        last = self._ended.take(outcome.query.id)
        if last is None or last[0] != outcome.arm:
            return
        since_s = last[1] - outcome.query.arrival_s
        self.pools[outcome.arm].started(outcome.query.prompt_tokens, outcome.ttft_s - since_s)
        self.pools[outcome.arm].served(outcome.latency_s - since_s)

    def _asks(self, query: Query, ask: Ask) -> Ask:
        self._open[query.id] = ask.arm, query.now_s
        self.pools[ask.arm].sent += 1
        return ask

    def _ends(self, query: Query) -> tuple[int, float] | None:
        """What was asked has come back."""
        last = self._open.pop(query.id, None)
        if last is not None:
            self.pools[last[0]].done += 1
        return last

    def _fits(self, query: Query, arm: int) -> bool:
        """Whether an arm's first token would come in time."""
        config, models, pool = self._config, self._models, self.pools[arm]
        limit_s = query.deadline_s - query.arrival_s if config.limit is None else config.limit
        if limit_s == float("inf"):
            return True
        seats = len(models.replicas(arm).members) * models.seats[arm]
        load = pool.queue / seats if config.queue == "inferred" else models.load(arm)
        grace_s = 0.0 if pool.slow else config.grace
        left_s = limit_s - (query.now_s - query.arrival_s) + grace_s
        return load * pool.service_s + pool.prefill_s(query.prompt_tokens) <= left_s + 1e-9
