"""Several answers of a cheap model in place of one of a dear one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.api import Accept, Answer, Ask, ModelsView, Query, number_of
from fleetsim.model_routing.tags import Tags
from fleetsim.plugins import PolicyConfig


class BestRouteConfig(PolicyConfig):
    """Parameters of BEST-Route."""

    reference: str = ""
    """Arm whose answer is to be matched. Empty: the one with the highest mean quality."""
    most: Annotated[int, Field(ge=1, le=100, strict=True, json_schema_extra={"unit": "count"})] = 5
    """Samples of an arm at most."""
    threshold: Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.8
    """Predicted probability of an answer at least as good as the reference's from which a cheaper choice is taken."""


class BestRoute:
    """BEST-Route: the cheapest model and number of samples whose best answer is probably as good as the reference's.

    Rule: for each arm and n from 1 to `most`, ``P(best of n >= reference) = 1 - p_ref (1 - p)^n`` by the predicted chances, at the
    list price of one prompt and n answers; the cheapest choice with a probability of at least `threshold`, else one answer of the
    reference. Of several samples the one with the judge's highest score is given.

    Charged: 20 ms per decision for the encoder; all samples, whose prompt is computed once where the pool has a prefix cache; the
    judge for each where there are several. The published router has a head for each choice; here its errors are those of
    `quality.features`.

    References
    ----------
    BEST-Route, arXiv:2506.22716 (ICML 2025; github.com/microsoft/best-route-llm).
    """

    Config: ClassVar = BestRouteConfig
    tags: ClassVar[Tags] = Tags(("before",), ("query", "profile"), ("supervised",), "query", ("single", "ensemble"))
    decision_s: ClassVar[float] = 0.02

    def __init__(self, config: BestRouteConfig, rng: Generator, models: ModelsView) -> None:
        self._config, self._models = config, models
        best = int(models.mean_quality.argmax())
        self._reference = number_of(models, config.reference, "best-route") if config.reference else best

    def route(self, query: Query) -> Ask:
        """The cheapest choice that is good enough."""
        models, config = self._models, self._config
        among = models.open()
        reference = self._reference if self._reference in among or not among else among[0]
        p_reference = float(query.chance[reference])
        cheapest, usd = Ask(reference, last=True), float(models.usd(query)[reference])
        for arm in among:
            if arm == reference:
                continue
            missed = 1.0 - float(query.chance[arm])
            prompt_usd = query.prompt_tokens * float(models.usd_per_prompt_token[arm])
            answer_usd = float(query.output_tokens[arm] * models.usd_per_output_token[arm])
            for n in range(1, config.most + 1):
                price = prompt_usd + n * answer_usd
                if price >= usd:
                    break
                if 1.0 - p_reference * missed**n >= config.threshold:
                    cheapest, usd = Ask(arm, samples=n, judge=n > 1, last=n == 1), price
                    break
        return cheapest

    def proceed(self, query: Query, answers: Sequence[Answer]) -> Accept:
        """The answer with the highest score."""
        return Accept(max(range(len(answers)), key=lambda i: (answers[i].score or 0.0, -i)))
