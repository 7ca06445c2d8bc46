"""Actions on screens: a classifier, a probe of the small model, and the strongest model where it matters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.api import Accept, Answer, Ask, ModelsView, Query, best
from fleetsim.model_routing.learned import cost_share
from fleetsim.model_routing.pairs import domain_number, weak_and_strong
from fleetsim.model_routing.tags import Tags
from fleetsim.plugins import PolicyConfig

_Ratio = Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})]


class AdaptiveVlmConfig(PolicyConfig):
    """Parameters of adaptive VLM routing."""

    small: str = ""
    """Arm that is probed. Empty: the cheapest by the list but the strongest."""
    strongest: str = ""
    """Arm for risky actions. Empty: the one with the highest mean quality."""
    threshold: _Ratio = 0.8
    """Predicted chance from which an arm is trusted (assumption)."""
    confidence: _Ratio = 0.6
    """Score of the probe, by the scenario's judge, from which its answer is taken (assumption)."""
    hopeless: _Ratio = 0.2
    """Predicted chance of the small model below which it is not even probed (assumption)."""
    risky: tuple[str, ...] = ()
    """Domains whose requests go straight to the strongest model."""


class AdaptiveVlm:
    """Adaptive VLM routing: the cheapest model that is good enough for an action on a screen, by a classifier and then by a probe.

    Rule: a request of a risky domain goes to the strongest model. Else, if the classifier gives the small model the chance
    `threshold`, it answers alone. If it gives it less, but `hopeless` at least, the small model is probed: its answer is taken
    where the judge, who stands for the confidence that is read off its tokens, gives it `confidence`. Else the cheapest arm that
    is not the small one and whose chance reaches the threshold answers, or the strongest one.

    Charged: 10 ms per decision for the classifier, the probe with its images, and the model after it, which computes the images
    again. Memory, which lifts small models, is in their abilities: give them a skill.

    References
    ----------
    Adaptive VLM routing for computer-use agents, arXiv:2603.12823.
    """

    Config: ClassVar = AdaptiveVlmConfig
    tags: ClassVar[Tags] = Tags(("before", "after"), ("query", "profile"), ("supervised", "rule"), "step", ("cascade",))
    decision_s: ClassVar[float] = 0.01

    def __init__(self, config: AdaptiveVlmConfig, rng: Generator, models: ModelsView) -> None:
        self._models, self._config = models, config
        self._small, self._strongest = weak_and_strong(models, config.small, config.strongest, "adaptive-vlm")
        self._risky = {domain_number(models, name, "adaptive-vlm") for name in config.risky}

    def route(self, query: Query) -> Ask:
        """The small model, alone or as a probe, or another one."""
        among = self._models.open()
        if query.domain in self._risky or self._small not in among:
            return self._larger(query, query.domain in self._risky)
        chance = float(query.chance[self._small])
        if chance >= self._config.threshold:
            return Ask(self._small, last=True)
        if chance < self._config.hopeless:
            return self._larger(query, False)
        return Ask(self._small, judge=True)

    def proceed(self, query: Query, answers: Sequence[Answer]) -> Ask | Accept:
        """The probe's answer, or a larger model."""
        if (answers[0].score or 0.0) >= self._config.confidence or len(self._models.open()) == 1:
            return Accept(0)
        return self._larger(query, False)

    def _larger(self, query: Query, risky: bool) -> Ask:
        """The cheapest arm that is trusted, or the strongest."""
        models = self._models
        among = [arm for arm in models.open() if arm != self._small] or models.open()
        chance = query.chance.tolist()
        trusted = [arm for arm in among if chance[arm] >= self._config.threshold]
        if trusted and not risky:
            costs = cost_share(models, query)
            return Ask(min(trusted, key=lambda arm: (round(costs[arm], 9), arm)), last=True)
        return Ask(self._strongest if self._strongest in among else best(models.mean_quality, among), last=True)
