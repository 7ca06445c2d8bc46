"""Model routers of the tests, in many ways: samples, verifications, several models at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from numpy.random import Generator

from fleetsim.model_routing.api import Accept, Answer, Ask, ModelsView, Outcome, Query
from fleetsim.plugins import PolicyConfig


class Plain(PolicyConfig):
    """Nothing to set."""


class Samples:
    """Three answers of the first arm as a group; the one that most agree on."""

    Config: ClassVar = Plain

    def __init__(self, config: Plain, rng: Generator, models: ModelsView) -> None:
        self._models = models

    def route(self, query: Query) -> Ask:
        return Ask(self._models.open()[0], samples=3)

    def proceed(self, query: Query, answers: Sequence[Answer]) -> Accept:
        labels = [answer.label for answer in answers]
        return Accept(labels.index(max(labels, key=labels.count)))


class Thorough:
    """The last arm answers and checks itself twice; where it does not say yes twice, all arms are asked at once, and judged."""

    Config: ClassVar = Plain
    verifies: ClassVar[bool] = True
    decision_s: ClassVar[float] = 0.02
    decision_j: ClassVar[float] = 0.5
    decision_usd: ClassVar[float] = 1e-6

    def __init__(self, config: Plain, rng: Generator, models: ModelsView) -> None:
        self._models = models
        self.told: list[Outcome] = []

    def route(self, query: Query) -> Ask:
        return Ask(self._models.open()[-1])

    def proceed(self, query: Query, answers: Sequence[Answer]) -> Ask | Accept | list[Ask]:
        first = answers[0]
        if not first.votes:
            return Ask(first.arm, samples=2, verify=0)
        if all(first.votes):
            return Accept(0)
        if len(answers) == 1:
            return [Ask(arm, judge=True) for arm in self._models.open()]
        return Accept(max(range(1, len(answers)), key=lambda i: answers[i].score or 0.0))

    def feedback(self, outcome: Outcome) -> None:
        self.told.append(outcome)


class Thoughtful:
    """The last arm thinks, the first answers, which may be cut off; the last looks at that and thinks it over."""

    Config: ClassVar = Plain
    verifies: ClassVar[bool] = True

    def __init__(self, config: Plain, rng: Generator, models: ModelsView) -> None:
        self._models = models
        self.open: set[int] = set()

    def route(self, query: Query) -> Ask:
        self.open.add(query.id)
        return Ask(self._models.open()[-1], thought=40)

    def proceed(self, query: Query, answers: Sequence[Answer]) -> Ask | Accept:
        among = self._models.open()
        if not answers:
            return Ask(among[0], most_tokens=60, judge=True)
        if len(answers) == 2:
            return Accept(1)
        if not answers[0].votes:
            return Ask(among[-1], verify=0, thought=25)
        return Ask(among[-1], behind=0)

    def forget(self, query: Query) -> None:
        self.open.remove(query.id)


class Broken:
    """Fails at the fifth request."""

    Config: ClassVar = Plain

    def __init__(self, config: Plain, rng: Generator, models: ModelsView) -> None:
        pass

    def route(self, query: Query) -> Ask:
        if query.id == 5:
            raise KeyError("nothing known of it")
        return Ask(0)
