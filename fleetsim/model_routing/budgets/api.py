"""What a budget controller sees, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, Self

from pydantic import Field, model_validator

from fleetsim.model_routing.api import Answer, ModelsView, Query
from fleetsim.plugins import PolicyConfig

__all__ = ["Answer", "BudgetController", "Effort", "LoadConfig", "ModelsView", "Query", "shrunk"]

Pick = Literal["first", "judge", "vote", "last"]


@dataclass(frozen=True, slots=True)
class Effort:
    """How an arm comes to its answer."""

    samples: int = 1
    """Answers that it gives as a group in each round."""
    rounds: int = 1
    """Rounds in all: from the second one on, it thinks over the answer that was picked of the one before, one sample each."""
    pick: Pick = "first"
    """Which of them counts: the first that is there, the one with the highest score of the scenario's judge (who is then asked, and
    paid, for each), the one that most agree on, or the last."""
    most_tokens: int = 0
    """Longest answer that is taken; one that is cut off is as bad as a wrong one. 0: any [tokens]."""


class BudgetController(Protocol):
    """Decides what an answer may take that a model router asks an arm for.

    Built as ``Policy(config, rng, models)``: its parameters, its own random stream, and the `ModelsView`, whose `load` says how
    busy an arm's replicas are. Class attributes as of model routers: `decision_s` [s], `decision_j` [J] and `decision_usd` [USD]
    add to the router's; `tags` says what kind of policy it is. Besides `spend` it may have

    - ``goes_on(query, arm, answers) -> bool``: asked before each further round, with the answers that the arm has given; without
      it all rounds are made.
    """

    def spend(self, query: Query, arm: int) -> Effort:
        """What an arm's answer to a request may take."""
        ...


class LoadConfig(PolicyConfig):
    """Parameters of who spends less when the fleet is busy."""

    calm: Annotated[float, Field(ge=0, json_schema_extra={"unit": "ratio"})] = 1.0
    """Requests at the arm's replicas over the seats there, up to which the whole budget is spent (assumption)."""
    busy: Annotated[float, Field(ge=0, json_schema_extra={"unit": "ratio"})] = 2.0
    """The same from which one answer is all; between both the budget falls in proportion (assumption)."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.busy < self.calm:
            raise ValueError(f"busy {self.busy:g} is below calm {self.calm:g}")
        return self


def shrunk(wanted: int, load: float, config: LoadConfig) -> int:
    """What of a number of answers is left at a load."""
    if wanted <= 1 or load <= config.calm:
        return wanted
    if load >= config.busy:
        return 1
    return 1 + int((wanted - 1) * (config.busy - load) / (config.busy - config.calm) + 1e-9)


def most_agreed(answers: Sequence[Answer]) -> int:
    """Number of the first answer among those that most agree on."""
    labels = [answer.label for answer in answers]
    return labels.index(max(labels, key=labels.count))


def best_scored(answers: Sequence[Answer]) -> int:
    """Number of the answer with the highest score, the first of equal ones."""
    return max(range(len(answers)), key=lambda i: (answers[i].score or 0.0, -i))
