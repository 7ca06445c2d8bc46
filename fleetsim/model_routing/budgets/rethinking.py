"""Answers that are thought over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.budgets.api import Answer, Effort, LoadConfig, ModelsView, Query, shrunk
from fleetsim.model_routing.tags import Tags


class RethinkingConfig(LoadConfig):
    """Parameters of rethinking."""

    rounds: Annotated[int, Field(ge=1, le=50, strict=True, json_schema_extra={"unit": "count"})] = 3
    """Rounds, the first answer included (assumption)."""
    settled: Annotated[int, Field(ge=0, le=50, strict=True, json_schema_extra={"unit": "count"})] = 2
    """It stops once so many answers in a row are the same (assumption); 0 never."""
    most_tokens: Annotated[int, Field(ge=0, le=1_000_000, strict=True, json_schema_extra={"unit": "tokens"})] = 0
    """Longest answer of a round; one that is cut off is as bad as a wrong one. 0: any."""


class Rethinking:
    """Rethinking: a model thinks its answer over for some rounds, or until it says the same again.

    Rule: up to `rounds` answers, each behind all that was written before it, fewer from the load `calm` on and one from `busy`;
    the last one is given. It stops early where the last `settled` answers are the same.

    Charged: all answers, one after the other, with a context that grows by each of them (its keys and values are found in the
    prefix cache, where the pool has one and the replica is the same).

    References
    ----------
    Sequential thinking as TTSPM (arXiv:2505.20522) describes it; when to stop is ours.
    """

    Config: ClassVar = RethinkingConfig
    tags: ClassVar[Tags] = Tags(("before", "after"), ("query", "system"), ("rule",), "query", ("budget",))

    def __init__(self, config: RethinkingConfig, rng: Generator, models: ModelsView) -> None:
        self._config, self._models = config, models

    def spend(self, query: Query, arm: int) -> Effort:
        """As many rounds as the load allows."""
        config = self._config
        rounds = shrunk(config.rounds, self._models.load(arm), config)
        return Effort(rounds=rounds, pick="last", most_tokens=config.most_tokens)

    def goes_on(self, query: Query, arm: int, answers: Sequence[Answer]) -> bool:
        """Whether the last answers still differ, and the arm is not overrun."""
        settled = self._config.settled
        if settled and len(answers) >= settled and len({answer.label for answer in answers[-settled:]}) == 1:
            return False
        return self._models.load(arm) < self._config.busy
