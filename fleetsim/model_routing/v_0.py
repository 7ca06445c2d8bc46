"""A value model that has seen answers of the models, and spends most where the outcome is least sure."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.api import Accept, Answer, Ask, ModelsView, Outcome, Query, best
from fleetsim.model_routing.budgets.api import best_scored
from fleetsim.model_routing.learned import LearnedConfig, Normals, Table, cost_share, log_odds
from fleetsim.model_routing.tags import Tags


class V0Config(LearnedConfig):
    """Parameters of V_0."""

    noise: Annotated[float, Field(ge=0)] = 2.0
    """Standard deviation of the error of the log-odds with an empty context (assumption)."""
    half: Annotated[float, Field(gt=0, json_schema_extra={"unit": "count"})] = 50.0
    """Answers in the context of an arm that halve the variance of that error (assumption)."""
    context: Annotated[int, Field(ge=1, strict=True, json_schema_extra={"unit": "count"})] = 256
    """Answers that fit into the context of an arm (assumption)."""
    cost_weight: Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.3
    """Weight of the expected list price, over the dearest arm's, against the predicted chance (assumption)."""
    samples: Annotated[float, Field(ge=1, le=100, json_schema_extra={"unit": "count"})] = 1.0
    """Mean number of answers per request, spread in proportion to ``sqrt(p (1 - p))``; 1: one each. Of several the judge's
    favourite is given."""


class V0:
    """V_0: success is predicted from a context of requests and what became of them; it improves with the context.

    Rule: the chance of each arm is the predictor's, its log-odds with an error of the standard deviation
    ``noise / sqrt(1 + n / half)``, n the answers of the arm that the context holds, drawn towards the table of means as the error
    is large. The arm with the largest ``(1 - w) p - w c`` is asked for a number of answers in proportion to ``sqrt(p (1 - p))``.

    Charged: 20 ms per decision for embedding and prediction (assumption); answers, and the scenario's judge where there are
    several.

    References
    ----------
    V_0, arXiv:2602.03584. Read as an abstract only: its predictor becomes a noise that falls with the context.
    """

    Config: ClassVar = V0Config
    tags: ClassVar[Tags] = Tags(("before",), ("query", "profile"), ("supervised",), "query", ("single", "budget"))
    decision_s: ClassVar[float] = 0.02

    def __init__(self, config: V0Config, rng: Generator, models: ModelsView) -> None:
        self._models, self._config, self._rng = models, config, rng
        self._normals = Normals(rng)
        self.table = Table(config, models)
        self.decision_j = config.retrain_energy / config.retrain_every
        self.decision_usd = config.retrain_usd / config.retrain_every
        self._context = [min(self.table.answers(arm), config.context) for arm in range(models.count)]
        self._errors = [self._error(arm) for arm in range(models.count)]
        self._unsure, self._asked = 0.5, 1.0

    def _error(self, arm: int) -> float:
        return float(self._config.noise / (1.0 + self._context[arm] / self._config.half) ** 0.5)

    def route(self, query: Query) -> Ask:
        """The best arm, as often as it is unsure."""
        config = self._config
        rows = zip(
            self.table.columns[query.domain],
            query.chance.tolist(),
            self._errors,
            self._normals.take(self._models.count),
            strict=True,
        )
        chance = [predicted(mean, seen, error, noise) for mean, seen, error, noise in rows]
        weight = config.cost_weight
        costs = cost_share(self._models, query)
        scores = [(1.0 - weight) * p - weight * c for p, c in zip(chance, costs, strict=True)]
        arm = best(scores, self._models.open())
        samples = self._samples(chance[arm]) if config.samples > 1.0 else 1
        return Ask(arm, samples=samples, judge=samples > 1, last=samples == 1)

    def _samples(self, chance: float) -> int:
        """Answers in proportion to how unsure the outcome is; the mean over requests is as configured."""
        unsure = (chance * (1.0 - chance)) ** 0.5
        self._asked += 1.0
        self._unsure += (unsure - self._unsure) / self._asked
        wanted = self._config.samples * unsure / self._unsure
        return max(int(wanted + self._rng.random()), 1)

    def proceed(self, query: Query, answers: Sequence[Answer]) -> Accept:
        """The judge's favourite."""
        return Accept(best_scored(answers))

    def feedback(self, outcome: Outcome) -> None:
        """The context grows."""
        self.table.learn(outcome)
        if self._context[outcome.arm] < self._config.context:
            self._context[outcome.arm] += 1.0
            self._errors[outcome.arm] = self._error(outcome.arm)

    def joined(self, arm: int) -> None:
        """Nothing is known of a model that joins for the first time."""
        self._context[arm] = min(self.table.answers(arm), self._config.context)
        self._errors[arm] = self._error(arm)


def predicted(mean: float, seen: float, error: float, noise: float) -> float:
    """Chance of an arm: log-odds as they are seen with an error, drawn towards those of the mean as that is large."""
    table = log_odds(mean)
    odds = table + (log_odds(seen) + error * noise - table) / (1.0 + error * error)
    return 1.0 / (1.0 + exp(-odds))
