"""A language model that thinks about whom to ask, and asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.api import Accept, Answer, Ask, ModelsView, Query, best, number_of
from fleetsim.plugins import PolicyConfig


class RouterR1Config(PolicyConfig):
    """Parameters of Router-R1."""

    planner: str = ""
    """Arm that thinks and chooses. Empty: the cheapest by the list."""
    turns: Annotated[int, Field(ge=1, le=20, strict=True, json_schema_extra={"unit": "count"})] = 4
    """Answers that it asks others for at most."""
    alpha: Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.0
    """Weight of the price against quality, as in its reward (0 to 0.9 in the publication)."""
    content: Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.6
    """Score of an answer from which it asks no further."""


class RouterR1:
    """Router-R1: a small model thinks, asks another one, reads what it says, and thinks again, for some turns.

    Rule: in every turn the planner computes an answer of its own (its thoughts), then the arm with the highest ``(1 - alpha) p -
    alpha c / max c`` that was not asked yet answers; if its score is at least `content`, or all turns are taken, or nobody is
    left, the answer with the highest score is given. The planner itself is asked for no final answer.

    Charged: the planner's call before each turn, often dearer than a cheap model's answer, and every call that it makes, one after
    the other; the judge stands for the planner's reading of an answer. What it has read is not added to its next prompt.

    References
    ----------
    Router-R1, arXiv:2506.09033 (NeurIPS 2025; github.com/ulab-uiuc/Router-R1). Its policy is learned; here it is the rule above.
    """

    Config: ClassVar = RouterR1Config

    def __init__(self, config: RouterR1Config, rng: Generator, models: ModelsView) -> None:
        self._config, self._models = config, models
        usd = models.usd_per_prompt_token + models.usd_per_output_token
        cheapest = min(range(models.count), key=lambda arm: (usd[arm], arm))
        self._planner = number_of(models, config.planner, "router-r1") if config.planner else cheapest

    def route(self, query: Query) -> Ask:
        """First thoughts."""
        among = self._models.open()
        return Ask(self._planner if self._planner in among or not among else among[0])

    def proceed(self, query: Query, answers: Sequence[Answer]) -> Ask | Accept:
        """Ask, think again, or give an answer."""
        given = [i for i, answer in enumerate(answers) if answer.score is not None]
        thoughts = len(answers) - len(given)
        asked = {answers[i].arm for i in given}
        left = [arm for arm in self._models.open() if arm not in asked and arm != self._planner]
        if thoughts > len(given) and left:
            return Ask(self._best(query, left), judge=True)
        if not given:
            return Accept(0)  # there is nobody to ask
        top = max(given, key=lambda i: (answers[i].score or 0.0, -i))
        content = (answers[top].score or 0.0) >= self._config.content
        if content or len(given) >= self._config.turns or not left:
            return Accept(top)
        return self.route(query)

    def _best(self, query: Query, among: list[int]) -> int:
        usd, alpha = self._models.usd(query), self._config.alpha
        largest = float(usd[among].max())
        thrift = usd / largest if largest > 0.0 else usd
        return best((1.0 - alpha) * query.chance - alpha * thrift, among)
