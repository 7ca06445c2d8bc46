"""One model after the other, until a judge is content."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.api import Accept, Answer, Ask, ModelsView, Query, number_of
from fleetsim.model_routing.tags import Tags
from fleetsim.plugins import PolicyConfig

_Ratio = Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})]


class FrugalGptConfig(PolicyConfig):
    """Parameters of FrugalGPT's cascade."""

    models: tuple[str, ...] = ()
    """Arms in the order in which they are asked. Empty: up to three, the cheapest by the list (the worst where prices are equal),
    the best, and the one in the middle between them."""
    thresholds: tuple[_Ratio, ...] = ()
    """Score from which an answer is given, for each arm but the last. Empty: 0.5 each; of the scenario's judge, the score that is
    as likely of a right as of a wrong answer."""


class FrugalGpt:
    """FrugalGPT's cascade: cheaper models first, the next one where the judge's score is below a threshold.

    Rule: ask the first arm; give its answer if the judge scores it at the threshold or above, else ask the next one; the last
    one's answer is given as it is. An arm that may not be chosen, or that nobody serves, is left out.

    Charged: all calls (the prompt is paid again by each model), one after the other, and the scenario's judge for each answer but
    the last. Which list and which thresholds are best within a budget is found by a sweep: the published system learns them from
    answers that it has.

    References
    ----------
    L. Chen, M. Zaharia and J. Zou, "FrugalGPT", arXiv:2305.05176; TMLR 2024. The rule is from the literature, not from the code.
    """

    Config: ClassVar = FrugalGptConfig
    tags: ClassVar[Tags] = Tags(("after",), ("query", "profile"), ("supervised",), "query", ("cascade",))

    def __init__(self, config: FrugalGptConfig, rng: Generator, models: ModelsView) -> None:
        self._models = models
        self._order = [number_of(models, name, "frugal-gpt") for name in config.models] or middle_of(models)
        self._thresholds = config.thresholds or (0.5,) * (len(self._order) - 1)
        if len(self._thresholds) != len(self._order) - 1:
            raise ValueError(f"{len(self._order)} models need {len(self._order) - 1} thresholds")

    def route(self, query: Query) -> Ask:
        """The first arm."""
        return self._next(0)

    def proceed(self, query: Query, answers: Sequence[Answer]) -> Ask | Accept:
        """The answer, or the next arm."""
        answer = answers[-1]
        stage = self._order.index(answer.arm) if answer.arm in self._order else len(self._order) - 1
        if stage == len(self._order) - 1 or (answer.score or 0.0) >= self._thresholds[stage]:
            return Accept(len(answers) - 1)
        ask = self._next(stage + 1)
        return Accept(len(answers) - 1) if ask.arm == answer.arm else ask

    def later(self, arm: int) -> list[Ask]:
        """What may be asked from an arm's stage on, in order."""
        among = self._models.open()
        first = self._order.index(arm) if arm in self._order else len(self._order)
        last = len(self._order) - 1
        stages = [stage for stage in range(first, len(self._order)) if self._order[stage] in among]
        return [Ask(self._order[stage], judge=stage < last, last=stage == last) for stage in stages]

    def _next(self, stage: int) -> Ask:
        """The arm of a stage, or of the next one that is there."""
        among = self._models.open()
        for later in range(stage, len(self._order)):
            arm = self._order[later]
            if arm in among:
                last = later == len(self._order) - 1
                return Ask(arm, judge=not last, last=last)
        return Ask(among[0], last=True) if among else Ask(self._order[-1], last=True)


def middle_of(models: ModelsView) -> list[int]:
    """Up to three arms: the cheapest, the one with the middle quality of those between, and the best."""
    usd = models.usd_per_prompt_token + models.usd_per_output_token
    quality = models.mean_quality
    last = int(quality.argmax())
    first = min(range(models.count), key=lambda arm: (usd[arm], quality[arm]))
    between = sorted(
        (arm for arm in range(models.count) if arm not in (first, last) and quality[first] < quality[arm]),
        key=lambda arm: quality[arm],
    )
    chosen = [first, *([between[len(between) // 2]] if between else []), last]
    return list(dict.fromkeys(chosen))
