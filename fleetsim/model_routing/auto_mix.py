"""A small model that checks itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.api import Accept, Answer, Ask, ModelsView, Outcome, Query, number_of
from fleetsim.model_routing.tags import Tags
from fleetsim.plugins import PolicyConfig

_MOST_KEPT = 100_000
"""Answers that are remembered until somebody says how good they were."""


class AutoMixConfig(PolicyConfig):
    """Parameters of AutoMix."""

    small: str = ""
    """Arm that answers first and checks itself. Empty: the cheapest by the list but the large one."""
    large: str = ""
    """Arm that is asked where the check fails. Empty: the one with the highest mean quality."""
    verifications: Annotated[int, Field(ge=1, le=100, strict=True, json_schema_extra={"unit": "count"})] = 2
    """Times that the small model checks its answer."""
    meta: Literal["threshold", "pomdp"] = "threshold"
    """Who decides by the share of yes: a threshold, or a belief about whether the answer is right, learned from what became of
    answers."""
    threshold: Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.5
    """Share of yes from which the small model's answer is given (`meta: threshold`)."""
    usd_weight: Annotated[float, Field(ge=0, json_schema_extra={"unit": "1/USD"})] = 0.0
    """Quality that a dollar of list price is worth (`meta: pomdp`)."""
    prior: Annotated[float, Field(gt=0, json_schema_extra={"unit": "count"})] = 8.0
    """Answers that the profile's mean counts for at each share of yes, before what is learned (`meta: pomdp`)."""


class AutoMix:
    """AutoMix: the small model answers and checks its answer a few times; the large one is asked where that does not convince.

    Rule: the small model's answer, then k short answers of the same model whether it is right; with the share v of yes: `threshold`
    keeps the answer if v reaches it; `pomdp` keeps it if the quality that is expected of it, given v, is at least that of the large
    model less `usd_weight` times its expected list price. What is expected of an answer with the share v is the mean of the answers
    given with that share (k + 1 bins), drawn towards the profile's mean; only answers that were given are ever learned from.

    Charged: the answer, k verifications behind prompt and answer (their keys and values are found in the prefix cache, where the
    pool has one), and the large model's answer if it is asked. Lengths and hit rates of verdicts are `quality.verification`.
    The published POMDP has a third state, in which neither model is right; here it is in the large model's mean.

    References
    ----------
    AutoMix, arXiv:2310.12963 (NeurIPS 2024). The rule is from the literature, not from the code.
    """

    Config: ClassVar = AutoMixConfig
    tags: ClassVar[Tags] = Tags(("after",), ("query", "profile"), ("rule", "supervised"), "query", ("cascade",))
    verifies: ClassVar[bool] = True

    def __init__(self, config: AutoMixConfig, rng: Generator, models: ModelsView) -> None:
        self._models, self._config = models, config
        usd = models.usd_per_prompt_token + models.usd_per_output_token
        self._large = number_of(models, config.large, "auto-mix") if config.large else int(models.mean_quality.argmax())
        others = [arm for arm in range(models.count) if arm != self._large] or [self._large]
        cheapest = min(others, key=lambda arm: (usd[arm], models.mean_quality[arm]))
        self._small = number_of(models, config.small, "auto-mix") if config.small else cheapest
        self._sums = [0.0] * (config.verifications + 1)
        self._counts = [0.0] * (config.verifications + 1)
        self._kept: dict[int, int] = {}
        """Share of yes of answers that were kept, by request, until it is known how good they were."""

    def route(self, query: Query) -> Ask:
        """The small model."""
        among = self._models.open()
        if self._small in among:
            return Ask(self._small)
        return Ask(self._large if self._large in among else among[0], last=True)

    def proceed(self, query: Query, answers: Sequence[Answer]) -> Ask | Accept:
        """Check, keep, or ask the large model."""
        first = answers[0]
        if not first.votes and self._small in self._models.open():
            return Ask(self._small, samples=self._config.verifications, verify=0)
        yes = sum(first.votes)
        if self._keeps(query, yes) or self._large not in self._models.open():
            self._kept[query.id] = yes
            if len(self._kept) > _MOST_KEPT:
                del self._kept[next(iter(self._kept))]
            return Accept(0)
        return Ask(self._large, last=True)

    def feedback(self, outcome: Outcome) -> None:
        """Learn how good answers with so many yes are."""
        yes = self._kept.pop(outcome.query.id, None)
        if yes is not None and outcome.arm == self._small:
            self._sums[yes] += outcome.quality
            self._counts[yes] += 1.0

    def _keeps(self, query: Query, yes: int) -> bool:
        config = self._config
        if config.meta == "threshold":
            return yes / config.verifications >= config.threshold
        prior, models = config.prior, self._models
        expected = prior * float(query.chance[self._small]) + self._sums[yes]
        kept = expected / (prior + self._counts[yes])
        return kept >= float(query.chance[self._large]) - config.usd_weight * float(models.usd(query)[self._large])
