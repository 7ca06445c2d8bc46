"""Stages of a task, each with its model and its number of answers, within one budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated, ClassVar, Literal

from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.api import Accept, Answer, Ask, ModelsView, Query, best
from fleetsim.model_routing.budgets.api import best_scored
from fleetsim.model_routing.tags import Tags
from fleetsim.plugins import PolicyConfig

_MOST_PLANS = 200_000


class AgentTtsConfig(PolicyConfig):
    """Parameters of stage budgets."""

    stages: Annotated[int, Field(ge=1, le=12, strict=True, json_schema_extra={"unit": "count"})] = 3
    """Stages of a task: the turns of a session; later turns are as the last one."""
    budget: Annotated[float, Field(gt=0, json_schema_extra={"unit": "USD"})] = 0.001
    """List price of all stages together [USD]."""
    most: Annotated[int, Field(ge=1, le=64, strict=True, json_schema_extra={"unit": "count"})] = 8
    """Answers of a stage at most (assumption)."""
    search: Literal["greedy", "grid"] = "greedy"
    """`greedy`: always the change that gains most per dollar; `grid`: all plans, while there are not more than 200,000."""
    coupling: Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.5
    """Share of a stage's chance that hangs on the stage before: ``p (1 - coupling + coupling F)``."""
    prompt_tokens: Annotated[int, Field(ge=0, strict=True, json_schema_extra={"unit": "tokens"})] = 1000
    """Of a stage, as the plan expects it (assumption) [tokens]."""
    output_tokens: Annotated[int, Field(ge=1, strict=True, json_schema_extra={"unit": "tokens"})] = 256
    """Of an answer, as the plan expects it (assumption) [tokens]."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a stage does."""

    arm: int
    samples: int


class AgentTts:
    """AgentTTS-like stage budgets: for each stage of a task a model and a number of answers, planned within one budget.

    Rule: the chance that stage j is done is TTSPM's ``F_j = 1 - (1 - p_j)^n`` with ``p_j = p (0.5 + 0.5 F_{j-1})``, p the mean
    quality of the stage's arm; the plan has the largest F of the last stage within the budget. The search starts with one answer
    of the cheapest arm a stage and makes the change (one more answer, or another arm) that gains most per dollar, until nothing
    fits, or tries all plans. A request of turn j of its session is a request of stage j: the stage's arm answers it n times, and
    the judge's favourite is given.

    Charged: all answers, and the scenario's judge where there are several. The published search is done by a language model, which
    is not charged: it is made once.

    References
    ----------
    AgentTTS, arXiv:2508.00890 (NeurIPS 2025); the search without an agent is ours.
    """

    Config: ClassVar = AgentTtsConfig
    tags: ClassVar[Tags] = Tags(("before",), ("profile",), ("rule",), "step", ("single", "budget"))

    def __init__(self, config: AgentTtsConfig, rng: Generator, models: ModelsView) -> None:
        self._models, self._config = models, config
        self._epoch = -1
        self._usd = [
            (
                config.prompt_tokens * float(models.usd_per_prompt_token[arm]),
                config.output_tokens * float(models.usd_per_output_token[arm]),
            )
            for arm in range(models.count)
        ]
        self.plan: tuple[Choice, ...] = ()
        """What each stage does."""

    def route(self, query: Query) -> Ask:
        """The stage's arm, as often as the plan says."""
        if self._models.epoch != self._epoch:
            self._epoch = self._models.epoch
            self.plan = self._planned()
        choice = self.plan[min(query.turn, len(self.plan) - 1)]
        among = self._models.open()
        arm = choice.arm if choice.arm in among else best(self._models.mean_quality, among)
        return Ask(arm, samples=choice.samples, judge=choice.samples > 1, last=choice.samples == 1)

    def proceed(self, query: Query, answers: Sequence[Answer]) -> Accept:
        """The judge's favourite."""
        return Accept(best_scored(answers))

    def _planned(self) -> tuple[Choice, ...]:
        arms = [arm for arm, offered in enumerate(self._models.offered) if offered] or list(range(self._models.count))
        quality = self._models.mean_quality.tolist()
        return planned(self._config, arms, quality, self._usd)


def done(plan: Sequence[Choice], quality: Sequence[float], coupling: float) -> float:
    """Chance that the last stage of a plan is done."""
    before = 1.0
    for choice in plan:
        chance = quality[choice.arm] * (1.0 - coupling + coupling * before)
        before = 1.0 - (1.0 - chance) ** choice.samples
    return before


def price(plan: Sequence[Choice], usd: Sequence[tuple[float, float]]) -> float:
    """List price of a plan: a prompt and so many answers for each stage [USD]."""
    return sum(usd[choice.arm][0] + choice.samples * usd[choice.arm][1] for choice in plan)


def planned(
    config: AgentTtsConfig, arms: Sequence[int], quality: Sequence[float], usd: Sequence[tuple[float, float]]
) -> tuple[Choice, ...]:
    """The plan of a search; one answer of the cheapest arm a stage, where not even that fits.

    Parameters
    ----------
    config : AgentTtsConfig
        Stages, budget and search.
    arms : sequence of int
        Arms to choose among.
    quality : sequence of float
        Chance of each arm to answer well.
    usd : sequence of pairs
        Price of a prompt and of an answer of each arm [USD].
    """
    cheapest = min(arms, key=lambda arm: (sum(usd[arm]), -quality[arm]))
    plan = (Choice(cheapest, 1),) * config.stages
    options = [Choice(arm, samples) for arm in arms for samples in range(1, config.most + 1)]
    if config.search == "grid" and len(options) ** config.stages <= _MOST_PLANS:
        fitting = (plan for plan in product(options, repeat=config.stages) if price(plan, usd) <= config.budget)
        return max(fitting, key=lambda plan: (done(plan, quality, config.coupling), -price(plan, usd)), default=plan)
    while True:
        better = _step(plan, options, config, quality, usd)
        if better is None:
            return plan
        plan = better


def _step(
    plan: tuple[Choice, ...],
    options: Sequence[Choice],
    config: AgentTtsConfig,
    quality: Sequence[float],
    usd: Sequence[tuple[float, float]],
) -> tuple[Choice, ...] | None:
    """The change of one stage that gains most per dollar; None if none gains and fits."""
    now, spent = done(plan, quality, config.coupling), price(plan, usd)
    found, most = None, 0.0
    for stage in range(len(plan)):
        for option in options:
            changed = (*plan[:stage], option, *plan[stage + 1 :])
            gain = done(changed, quality, config.coupling) - now
            cost = price(changed, usd)
            if gain <= 1e-12 or cost > config.budget:
                continue
            worth = gain / max(cost - spent, 1e-15)
            if worth > most * (1.0 + 1e-12):
                found, most = changed, worth
    return found
