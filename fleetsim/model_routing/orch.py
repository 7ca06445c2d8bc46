"""Several analysts, chosen by what they were worth so far, and a merge by rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.api import Accept, Answer, Ask, ModelsView, Outcome, Query
from fleetsim.model_routing.pairs import Remembered
from fleetsim.model_routing.tags import Tags
from fleetsim.plugins import PolicyConfig

_Weight = Annotated[float, Field(ge=0, json_schema_extra={"unit": "ratio"})]


class OrchConfig(PolicyConfig):
    """Parameters of ORCH."""

    analysts: Annotated[int, Field(ge=1, le=16, strict=True, json_schema_extra={"unit": "count"})] = 3
    """Arms that answer at the same time (k)."""
    beta: Annotated[float, Field(gt=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.1
    """Weight of a new reward (assumption: the publication does not say)."""
    quality: _Weight = 0.6
    """Weight of quality in the reward (assumption)."""
    latency: _Weight = 0.2
    """Weight of speed: one less the latency over `patience`, at least 0 (assumption)."""
    cost: _Weight = 0.2
    """Weight of thrift: one less the list price over the dearest arm's expected one, at least 0 (assumption)."""
    patience: Annotated[float, Field(gt=0, json_schema_extra={"unit": "s"})] = 30.0
    """Latency that is worth nothing (assumption) [s]."""


class Orch:
    """ORCH: the k arms with the best running means answer at the same time, and a fixed rule merges them.

    Rule: each arm has a score, at first its profile's mean quality, then ``s <- (1 - beta) s + beta r`` with a reward r of quality,
    speed and thrift; the k arms with the highest scores are asked at once. The answer that most agree on is given, of equally
    frequent ones that of the arm with the highest score. Once it is known how good it was, all arms that gave it learn from that;
    if it was right, those that gave another one learn that theirs was wrong.

    Charged: all answers. The published merge agent follows fixed rules, so that no further call is made for it.

    References
    ----------
    ORCH, arXiv:2602.01797.
    """

    Config: ClassVar = OrchConfig
    tags: ClassVar[Tags] = Tags(("before", "after"), ("profile",), ("bandit", "rule"), "query", ("ensemble",))

    def __init__(self, config: OrchConfig, rng: Generator, models: ModelsView) -> None:
        self._models, self._config = models, config
        self.scores: list[float] = models.mean_quality.tolist()
        """Running mean of each arm's rewards."""
        self._answers: Remembered[tuple[int, list[tuple[int, int, float, float]]]] = Remembered()
        """Label that was given, and of each answer: arm, label, latency, price over the dearest arm's."""

    def route(self, query: Query) -> list[Ask]:
        """The best arms so far."""
        scores = self.scores
        order = sorted(self._models.open(), key=lambda arm: (-round(scores[arm], 9), arm))
        return [Ask(arm) for arm in order[: self._config.analysts]]

    def proceed(self, query: Query, answers: Sequence[Answer]) -> Accept:
        """The answer that most gave."""
        labels = [answer.label for answer in answers]
        counts = [labels.count(label) for label in labels]
        top = max(counts)
        leading = [i for i, count in enumerate(counts) if count == top]
        chosen = leading[0]
        for i in leading[1:]:
            if self.scores[answers[i].arm] > self.scores[answers[chosen].arm] + 1e-9:
                chosen = i
        dearest = max(self._models.usd_list(query))
        facts = [(a.arm, a.label, a.latency_s, a.list_usd / dearest if dearest > 0.0 else 0.0) for a in answers]
        self._answers.keep(query.id, (labels[chosen], facts))
        return Accept(chosen)

    def feedback(self, outcome: Outcome) -> None:
        """Learn from all that is known now of the answers."""
        kept = self._answers.take(outcome.query.id)
        if kept is None:
            return
        given, facts = kept
        config = self._config
        for arm, label, latency_s, usd in facts:
            if label != given and outcome.quality <= 0.5:
                continue  # another answer than a wrong one: nobody knows
            quality = outcome.quality if label == given else 0.0
            speed, thrift = max(1.0 - latency_s / config.patience, 0.0), max(1.0 - usd, 0.0)
            reward = config.quality * quality + config.latency * speed + config.cost * thrift
            self.scores[arm] += config.beta * (reward - self.scores[arm])
